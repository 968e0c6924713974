"""How each method is built, and the grids that its hyper-parameters are chosen from: those of the paper where it has them."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import npmerge as nm
from experiments.compositional.settings import NEWER, PAPER
from experiments.grids import InTurn, Way

TENTHS = tuple(k / 10 for k in range(11))
"""Of every factor in the paper, and of its probabilities to drop an entry."""

SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
"""Of newer methods, most of whose papers do not say where they search."""

Operator = Literal["kronecker", "gram"]


def ways(operator: Operator = "kronecker") -> Mapping[str, Way]:
    """Every method without learning.

    Args:
        operator: of MaTS: "kronecker" as published, "gram" where the network has no classes.
    """
    found = {
        "Average": Way(nm.Average, {}),
        "Slerp": Way(functools.partial(InTurn, nm.Slerp()), {}),
        "Mlerp": Way(nm.Mlerp, {}),
        "TaskArithmetic": Way(nm.TaskArithmetic, {"scale": TENTHS}),
        "Dare": Way(_dare, {"scale": TENTHS, "dropped": TENTHS[:-1]}),
        "Ties": Way(nm.Ties, {"scale": TENTHS}),
        "Fisher": Way(nm.Fisher, {}),
        "RegMean": Way(nm.RegMean, {"scale": TENTHS}),
        "MaTS": Way(functools.partial(_mats, operator), {"start": TENTHS, "iterations": tuple(range(10, 101, 10))}),
        "KarcherMean": Way(nm.KarcherMean, {}),
        "ModelStock": Way(nm.ModelStock, {}),
        "Breadcrumbs": Way(nm.Breadcrumbs, {"scale": SCALES, "density": (0.7, 0.8, 0.9)}),
        "ConsensusTA": Way(nm.ConsensusTA, {"scale": SCALES}),
        "TsvM": Way(nm.TsvM, {"scale": SCALES}),
        "IsoC": Way(nm.IsoC, {"scale": SCALES}),
        "Wudi": Way(functools.partial(nm.Wudi, iterations=300), {"scale": SCALES}),  # as published, not the exact minimum
        "RegMeanPlusPlus": Way(nm.RegMeanPlusPlus, {"scale": (0.0, 0.5, 0.9, 1.0)}),
        "ChainOfMerges": Way(nm.ChainOfMerges, {}),
    }
    assert tuple(found) == (*PAPER, *NEWER)
    return found


def shortened(way: Way, values: int | None) -> Way:
    """A way with so many values of each hyper-parameter, spread over its grid; None is all of them."""
    return way._replace(grids={name: spread(grid, values) for name, grid in way.grids.items()})


def first_alone(way: Way, chosen: Mapping[str, Any]) -> Way:
    """A way of which the first hyper-parameter alone is tuned, the others as they were chosen."""
    first = list(way.grids)[:1]
    others = {name: chosen[name] for name in way.grids if name not in first}
    return Way(functools.partial(way.make, **others), {name: way.grids[name] for name in first})


def at_ends(fields: Mapping[str, Any], way: Way) -> list[str]:
    """The hyper-parameters that lie at an end of their grid, so that what is better may be beyond it."""
    return [name for name, value in fields.items() if value in (way.grids[name][0], way.grids[name][-1])]


def spread(grid: Sequence[Any], values: int | None) -> tuple[Any, ...]:
    """So many values of a grid at most, its first one and its last among them; but not zero, which is often no merge at all."""
    if values is None or values >= len(grid):
        return tuple(grid)
    some = [value for value in grid if value]
    places = [round(k * (len(some) - 1) / max(values - 1, 1)) for k in range(values)]
    return tuple(some[place] for place in dict.fromkeys(places))


def class_of(name: str) -> type[nm.Merge]:
    """The class in `npmerge.METHODS`."""
    return next(method for method in nm.METHODS if method.__name__ == name)


def _dare(scale: float = 0.5, dropped: float = 0.5) -> nm.Dare:
    """With the published program's defaults and its name for 1 - density."""
    return nm.Dare(density=1 - dropped, scale=scale)


def _mats(operator: Operator, start: float = 0.3, iterations: int = 10) -> nm.MaTS:
    """From task arithmetic, whose factor is searched with the iterations, and without preconditioning, as published."""
    return nm.MaTS(operator, iterations=iterations, start=nm.TaskArithmetic(start), preconditioned=False)


def fields_told(fields: Mapping[str, Any]) -> str:
    """Hyper-parameters, in words."""
    return ", ".join(f"{name} {value:g}" for name, value in fields.items())
