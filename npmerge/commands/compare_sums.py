"""What is summed over the entries of two models, and what is told of the sums."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from npmerge.commands.values import Values, inner

Measures = dict[str, float | None]


class Sums(NamedTuple):
    """Sums over the entries of two models, in float64; they add up over blocks and tensors.

    Entries that are NaN or infinite in one of the two, or in the base, count as zeros in all of them.

    Attributes:
        entries: how many there are.
        inner: of the products a x.
        reference: of the squares of the reference, a^2.
        model: of the squares of the other, x^2.
        distance: of (x - a)^2.
        differ: entries that are not equal; two NaN are.
        broken: entries of the other that are NaN or infinite.
        broken_reference: those of the reference.
        based: entries that are compared with the base too; without one this and what follows is 0.
        task_inner: of (a - base)(x - base).
        task_reference: of (a - base)^2.
        task_model: of (x - base)^2.
        both: entries in which both differ from the base.
        opposite: those of them in which they do so with opposite signs.
    """

    entries: float
    inner: float
    reference: float
    model: float
    distance: float
    differ: float
    broken: float
    broken_reference: float
    based: float = 0.0
    task_inner: float = 0.0
    task_reference: float = 0.0
    task_model: float = 0.0
    both: float = 0.0
    opposite: float = 0.0

    def measures(self) -> Measures:
        """What is told of them; None where a measure has no value.

        Returns:
            cosine: of the two; 1 if both are zero, 0 if one is.
            norm_change: |x| / |a| - 1.
            distance: |x - a| / |a|.
            differ: fraction of entries that are not equal.
            broken: number of entries that are NaN or infinite.
            broken_reference: that of the reference.
            task_cosine: of x - base and a - base; None without a base.
            sign_conflict: of the entries that both have changed, the fraction with opposite signs; None without a base.
        """
        return {
            "cosine": _cosine(self.inner, self.reference, self.model),
            "norm_change": _ratio(np.sqrt(self.model) - np.sqrt(self.reference), np.sqrt(self.reference)),
            "distance": _ratio(np.sqrt(self.distance), np.sqrt(self.reference)),
            "differ": _ratio(self.differ, self.entries),
            "broken": self.broken,
            "broken_reference": self.broken_reference,
            "task_cosine": _cosine(self.task_inner, self.task_reference, self.task_model) if self.based else None,
            "sign_conflict": _ratio(self.opposite, self.both) if self.based else None,
        }


def _cosine(inner: float, first: float, second: float) -> float | None:
    if first == 0 or second == 0:
        return float(first == second)
    return _finite(np.clip(inner / (np.sqrt(first) * np.sqrt(second)), -1, 1))


def _ratio(part: float, whole: float) -> float | None:
    """0 / 0 is 0; a change from nothing has no size."""
    if whole == 0:
        return 0.0 if part == 0 else None
    return _finite(part / whole)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def sums_of(a: Values, x: Values, base: Values | None) -> Sums:
    """The sums over a block of the reference, another model and the base."""
    keep = _all_finite(a, x, base)
    ours, theirs = _kept(a, keep), _kept(x, keep)
    d = theirs - ours
    unequal = d if keep is None else (a.wide != x.wide) & ~(np.isnan(a.wide) & np.isnan(x.wide))
    squares = inner(ours, theirs), inner(ours, ours), inner(theirs, theirs), inner(d, d)
    found = Sums(len(d), *squares, float(np.count_nonzero(unequal)), x.nans + x.infinities, a.nans + a.infinities)
    return found if base is None else found._replace(**_task_sums(ours, theirs, _kept(base, keep)))


def _all_finite(*several: Values | None) -> np.ndarray | None:
    masks = [v.finite for v in several if v is not None and v.finite is not None]
    return np.logical_and.reduce(masks) if masks else None


def _kept(values: Values, keep: np.ndarray | None) -> np.ndarray:
    return values.wide if keep is None else np.where(keep, values.wide, 0)


def _task_sums(a: np.ndarray, x: np.ndarray, base: np.ndarray) -> dict[str, float]:
    ours, theirs = a - base, x - base
    signs = np.sign(ours) * np.sign(theirs)  # a product of the values could round to zero
    return {
        "based": len(a),
        "task_inner": inner(ours, theirs),
        "task_reference": inner(ours, ours),
        "task_model": inner(theirs, theirs),
        "both": float(np.count_nonzero(signs)),
        "opposite": float(np.count_nonzero(signs < 0)),
    }


def total(several: Iterable[Sums]) -> Sums:
    """Their sum; of none, as of tensors without entries, zeros."""
    nothing = Sums(*(0.0,) * len(Sums._fields))
    return Sums(*(float(sum(column)) for column in zip(nothing, *several, strict=True)))
