"""The alignments as the command line calls them."""

import dataclasses
import re

from alignment import ALIGNMENTS, Alignment
from npmerge.checkpoint.network import unknown

METHODS: dict[str, type[Alignment]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "-", a.__name__).lower(): a for a in ALIGNMENTS if not a.resizes
}
"""Class by name: `WeightMatching` is weight-matching, `CCA` is cca. Only those that leave the reference as it is."""

PLEAS = "pleas"
"""The method of `npmerge align` that makes one network of a size that is asked for."""


def alignment_of(name: str, *, approximate: bool) -> Alignment:
    """An alignment with its default hyper-parameters.

    Args:
        name: a key of METHODS.
        approximate: also map nodes whose group does not hold the maps, where the alignment can.

    Raises:
        ValueError: for an unknown name (the nearest is told), or an alignment that has no approximate form.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    if not approximate:
        return METHODS[name]()
    able = [key for key, kind in METHODS.items() if _has_approximate(kind)]
    if name not in able:
        raise ValueError(f"--approximate is for {', '.join(able)}: {name} has no approximate form")
    return METHODS[name](approximate=True)  # type: ignore[call-arg]


def _has_approximate(kind: type[Alignment]) -> bool:
    return any(field.name == "approximate" for field in dataclasses.fields(kind))  # type: ignore[arg-type]
