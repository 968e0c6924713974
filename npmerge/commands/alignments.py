"""The alignments as the command line calls them."""

import dataclasses
from typing import TYPE_CHECKING

import alignment
from alignment.checks import spelled, unknown

if TYPE_CHECKING:
    from alignment import Alignment, Graph

METHODS = {
    "weight-matching": "WeightMatching",
    "activation-matching": "ActivationMatching",
    "procrustes": "Procrustes",
    "cca": "CCA",
    "scale": "Scale",
    "group-matching": "GroupMatching",
    "soft-permutation": "SoftPermutation",
    "straight-through": "StraightThrough",
    "cycle-consistent": "CycleConsistent",
}
"""Class of `alignment` by name, spelt out so that --help does without JAX. Only those that leave the reference as it is."""

PLEAS = "pleas"
"""The method of `npmerge align` that makes one network of a size that is asked for."""

ZIPIT, TRANSPORT = FUSIONS = ("zipit", "transport")
"""Those that make one network of a width that is asked for."""


def method_of(name: str) -> str:
    """A method as it is called here, where recipes write underscores and classes capitals."""
    return spelled(name, (*METHODS, PLEAS, *FUSIONS))


def alignment_of(name: str, *, approximate: bool) -> "Alignment":
    """An alignment with its default hyper-parameters.

    Args:
        name: a key of METHODS.
        approximate: also map nodes whose group does not hold the maps, where the alignment can.

    Raises:
        ValueError: for an unknown name (the nearest is told), or an alignment that has no approximate form.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, [*METHODS, PLEAS, *FUSIONS]))
    if not approximate:
        return _kind(name)()
    able = [key for key in METHODS if _has_approximate(_kind(key))]
    if name not in able:
        raise ValueError(f"--approximate is for {', '.join(able)}: {name} has no approximate form")
    return _kind(name)(approximate=True)  # type: ignore[call-arg]


def fusion_of(name: str, width: float, models: int, graph: "Graph", *, activations: bool) -> "Alignment":
    """The alignment whose average of the models is their merge.

    Args:
        name: one of FUSIONS.
        width: the units of every node that can change, as a multiple of those of the first network.
        models: how many are merged.
        graph: that of the first.
        activations: whether there are data; transport compares weights without.
    """
    from alignment import OptimalTransport, ZipIt
    from alignment.separability import rigid

    if name == ZIPIT:  # a network narrower than one of them is not reached by matches between models alone
        return ZipIt(width / models, beta=ZipIt.beta if width >= 1 else 1.0)
    fixed = rigid(graph)
    widths = tuple((n.name, max(1, int(width * n.size + 1e-4))) for n in graph.nodes.values() if n.name not in fixed)
    return OptimalTransport("activations" if activations else "weights", width=widths)


def _kind(name: str) -> "type[Alignment]":
    kind: type[Alignment] = getattr(alignment, METHODS[name])
    return kind


def _has_approximate(kind: "type[Alignment]") -> bool:
    return any(field.name == "approximate" for field in dataclasses.fields(kind))  # type: ignore[arg-type]
