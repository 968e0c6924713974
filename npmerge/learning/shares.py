"""How much of the merged network comes from each model, from the first layer to the last."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

COLLAPSED = 0.9
"""The share from which on what was learned is one model rather than a merge."""


class Shares(NamedTuple):
    """Mean coefficients by depth.

    Attributes:
        names: of modules, from the inputs to the outputs.
        values: (modules, models).
    """

    names: list[str]
    values: Float[np.ndarray, "modules models"]


def shares_of(coefficients: Mapping[str, np.ndarray]) -> Shares:
    """The mean coefficient of each model in each module, weighted by the number of coefficients.

    Args:
        coefficients: by group, (models, ...), in order; groups are called after tensors or modules.
    """
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}
    for name, c in coefficients.items():
        module = _module(name)
        flat = c.reshape(len(c), -1).astype(np.float64)
        sums[module] = sums.get(module, 0.0) + flat.sum(1)
        counts[module] = counts.get(module, 0) + flat.shape[1]
    return Shares(list(sums), np.stack([sums[x] / counts[x] for x in sums]))


def collapsed(start: Mapping[str, np.ndarray], end: Mapping[str, np.ndarray]) -> tuple[int, float] | None:
    """The model onto which coefficients have collapsed, and its mean share; None if they have not.

    That is a share of 0.9 or more of all absolute coefficients, which the start did not give it.

    Args:
        start: coefficients by group, (models, ...), before learning.
        end: after it.
    """
    before, after = _total(start), _total(end)
    most = int(after.argmax())
    if len(after) < 2 or after[most] < COLLAPSED or before[most] >= COLLAPSED:
        return None
    return most, float(after[most])


def _total(coefficients: Mapping[str, np.ndarray]) -> Float[np.ndarray, " models"]:
    sums = np.sum([np.abs(c.reshape(len(c), -1).astype(np.float64)).sum(1) for c in coefficients.values()], axis=0)
    return sums / (sums.sum() or 1.0)


def names_of(paths: Mapping[str, Sequence[str]], group: Callable[[str], str]) -> dict[str, str]:
    """What the files call each module, where they call it otherwise than its path.

    Args:
        paths: of each tensor by its name.
        group: the granularity's, of a path.
    """
    found: dict[str, list[list[str]]] = {}
    for name, places in paths.items():
        for path in places:
            if path != name:
                found.setdefault(_module(group(path)), []).append(name.split(".")[:-1])
    return {module: ".".join(common) for module, names in found.items() if (common := _common(names))}


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """The parts with which all begin."""
    alike = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*names, strict=False))
    return [parts[0] for parts in alike]


def _module(name: str) -> str:
    """A tensor's name without what tells it from the others of its module, and without the root of the tree."""
    module, _, last = name.rpartition("/") if "/" in name else name.rpartition(".")
    whole = module if last in ("kernel", "bias", "scale", "weight", "embedding") and module else name
    return whole.removeprefix("params/")
