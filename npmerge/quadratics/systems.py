"""Systems of shares solved together: small ones of equal shape in one batch, large ones each by itself."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from npmerge.quadratics.regularised import SINGULAR, regularised
from npmerge.telling import tell

TOGETHER = 128
"""Rows up to which a call for each system takes longer than solving it."""

Grams = Float[Array | np.ndarray, "models *copies rows rows"]
Place = tuple[int, tuple[int, ...]]
"""A site by its number, and a copy in it."""


class Solved(NamedTuple):
    """Solutions like what was solved for, in float32, and whether directions are open in a copy that read anything."""

    shares: list[Float[np.ndarray, "models *copies rows rows"]]
    singular: bool


def solved(several: Sequence[Sequence[Grams]], ridge: float, scale: float = 1.0) -> list[Solved]:
    """(sum_k G_k + r I)^-1 of what is given, r = ridge tr(sum_k G_k) / rows, in float64.

    Args:
        several: for each site G, and what else is solved for in its place.
        ridge: relative to the mean of the diagonal.
        scale: what off-diagonal elements of G are multiplied with.
    """
    found = [[np.zeros(x.shape, np.float32) for x in site] for site in several]
    singular = [False] * len(several)
    for places in _batches(several):
        sides = np.stack([np.stack([x[_at(copy)] for x in several[k]]) for k, copy in places]).astype(np.float64)
        sides[:, 0] *= np.where(np.eye(sides.shape[-1], dtype=bool), 1, scale)[None, None]
        shares, is_open = _of_batch(sides, ridge)
        for (k, copy), share, one in zip(places, shares, is_open, strict=True):
            for x, new in zip(found[k], share, strict=True):
                x[_at(copy)] = new
            singular[k] |= bool(one)
    return [Solved(*each) for each in zip(found, singular, strict=True)]


def _at(copy: tuple[int, ...]) -> Any:
    """The index of a copy in each model."""
    return (slice(None), *copy)


def _batches(several: Sequence[Sequence[Grams]]) -> Iterator[list[Place]]:
    """Sites and copies of equal shape; of large ones no two exist in float64 at once."""
    alike: dict[tuple[int, ...], list[Place]] = {}
    for k, site in enumerate(several):
        models, *copies, rows, _ = np.shape(site[0])
        alike.setdefault((len(site), models, rows), []).extend((k, copy) for copy in np.ndindex(*copies))
    for (*_, rows), places in alike.items():
        yield from [places] if rows <= TOGETHER else ([place] for place in places)


def _of_batch(
    sides: Float[np.ndarray, "systems kinds models rows rows"], ridge: float
) -> tuple[Float[np.ndarray, "systems kinds models rows rows"], Bool[np.ndarray, " systems"]]:
    """Those that are regular to the precision of float32 in one batch, the others one by one."""
    total, found = sides[:, 0].sum(1), np.zeros_like(sides)
    regular = _regular(total) if len(sides) > 1 else np.zeros(1, bool)
    is_open = ~regular
    if regular.any():
        found[regular] = _together(total[regular], sides[regular], ridge)
    for k in np.flatnonzero(~regular):
        found[k], is_open[k] = _alone(total[k], sides[k], ridge)
    return found, is_open


def _regular(total: Float[np.ndarray, "systems rows rows"]) -> Bool[np.ndarray, " systems"]:
    """By the reciprocal condition number in the norm of column sums; none where an inverse is not to be had."""
    tell(2 * total.size * total.shape[-1])
    try:
        inverses = np.linalg.inv(total)
    except np.linalg.LinAlgError:  # of one of them, it does not say which
        if len(total) == 1:
            return np.zeros(1, bool)
        return np.concatenate([_regular(half) for half in np.array_split(total, 2)])
    condition = np.abs(total).sum(1).max(1) * np.abs(inverses).sum(1).max(1)
    return condition * SINGULAR <= 1


def _together(total: np.ndarray, sides: np.ndarray, ridge: float) -> np.ndarray:
    systems, *_, rows = sides.shape
    size = ridge * np.trace(total, axis1=1, axis2=2) / rows
    held = total + size[:, None, None] * np.eye(rows)[None]
    tell(2 / 3 * total.size * rows + 2 * rows * sides.size)
    wanted = np.moveaxis(sides, 3, 1)
    return np.moveaxis(np.linalg.solve(held, wanted.reshape(systems, rows, -1)).reshape(wanted.shape), 1, 3)


def _alone(total: np.ndarray, sides: np.ndarray, ridge: float) -> tuple[np.ndarray, bool]:
    """Without the inputs that were never seen; along directions that are open, if the ridge does not hold those, nothing."""
    found, seen = np.zeros_like(sides), np.flatnonzero(np.diagonal(total) > 0)
    if not len(seen):
        return found, False
    wanted = np.moveaxis(sides[:, :, seen], 2, 0)
    size = ridge * np.trace(total) / len(total)
    shares, vague = regularised(total[np.ix_(seen, seen)], wanted.reshape(len(seen), -1), size)
    tell((9 if vague else 1 / 3) * len(seen) ** 3 + 2 * len(seen) * wanted.size)  # eigenvectors, or Cholesky's factor
    found[:, :, seen] = np.moveaxis(shares.reshape(wanted.shape), 0, 2)
    return found, vague or len(seen) < len(total)
