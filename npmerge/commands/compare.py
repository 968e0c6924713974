"""`npmerge compare`: how far models are from the first of them, tensor by tensor, layer by layer and as a whole."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands.text import shape_of
from npmerge.commands.values import Values, blocks, each_tensor, inner, values_of
from npmerge.recipe.layers import layers_of
from npmerge.stream.progress import shown

Measures = dict[str, float | None]

OUTSIDE = "outside the layers"
"""Where tensors are counted that are in no layer."""


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
    return _finite(inner / (np.sqrt(first) * np.sqrt(second)))


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
    """Their sum."""
    return Sums(*(float(sum(column)) for column in zip(*several, strict=True)))


@dataclass(frozen=True)
class Models:
    """The models that are compared, headers only.

    Attributes:
        reference: what the others are compared with.
        others: at least one.
        base: what task vectors are differences from, if any.
    """

    reference: StoredModel
    others: tuple[StoredModel, ...]
    base: StoredModel | None

    def sums(self, entry: Entry) -> list[Sums | None]:
        """Those of each other model for one tensor; None where it lacks the tensor or has another shape."""
        here = [_same_shape(entry, model) for model in self.others]
        base = self.base if self.base and _same_shape(entry, self.base) else None
        models = [self.reference, *([base] if base else []), *itertools.compress(self.others, here)]
        each = []
        for pieces in zip(*(blocks(model, entry.name) for model in models), strict=True):
            reference, *rest = map(values_of, pieces)
            origin = rest.pop(0) if base else None
            each.append([sums_of(reference, x, origin) for x in rest])
        found = iter([total(several) for several in zip(*each, strict=True)])
        return [next(found, None) if has else None for has in here]


def _same_shape(entry: Entry, model: StoredModel) -> bool:
    return entry.name in model.entries and model.entries[entry.name].shape == entry.shape


def compared(paths: Sequence[Path], base: Path | None = None) -> dict[str, Any]:
    """How far models are from the first of them: the content of `summary.json`.

    Args:
        paths: two or more models.
        base: the model that they were trained from, for task vectors.

    Raises:
        ValueError: fewer than two models, a model that has no tensor in common with the first, and what `open_model` raises.
    """
    if len(paths) < 2:
        raise ValueError(f"compare needs two models or more, got {len(paths)}")
    reference, *others = [open_model(path) for path in paths]
    models = Models(reference, tuple(others), None if base is None else open_model(base))
    left_out = _left_out(models)
    entries = list(reference.entries.values())
    with shown(sum(entry.nbytes for entry in entries), "comparing", quiet=False) as progress:
        found = each_tensor(models.sums, entries, progress.advance)
    names = [entry.name for entry in entries]
    by_model = [{name: sums[k] for name, sums in zip(names, found, strict=True)} for k in range(len(others))]
    return {
        "reference": str(paths[0]),
        "base": None if base is None else str(base),
        "models": [
            _of_model(path, {name: sums for name, sums in of.items() if sums})
            for path, of in zip(paths[1:], by_model, strict=True)
        ],
        "left_out": left_out,
    }


def _of_model(path: Path, tensors: Mapping[str, Sums]) -> dict[str, Any]:
    """Everything that is told of one model."""
    layers: dict[str, list[Sums]] = {}
    of = layers_of(tensors)
    for name, sums in tensors.items():
        place = of.place(name)
        layers.setdefault(f"{place.stack}{place.number}" if place else OUTSIDE, []).append(sums)
    return {
        "path": str(path),
        "whole": total(tensors.values()).measures(),
        "layers": {name: total(several).measures() for name, several in layers.items()},
        "tensors": {name: sums.measures() for name, sums in tensors.items()},
    }


def _left_out(models: Models) -> list[str]:
    """A line for each tensor that is not compared, or not with the base."""
    lines = []
    for model in (*models.others, *([models.base] if models.base else [])):
        lines += list(_differences(models.reference, model))
    return lines


def _differences(reference: StoredModel, model: StoredModel) -> Iterator[str]:
    """How the tensors of a model differ from the reference's in name and shape."""
    both = [entry for entry in reference.entries.values() if entry.name in model.entries]
    same = [entry for entry in both if _same_shape(entry, model)]
    if not same:
        names = f"the first are {next(iter(reference.entries))!r} and {next(iter(model.entries))!r}"
        raise ValueError(f"{reference.path} and {model.path} have no tensor of one name and shape in common: {names}")
    yield from (f"{name} is not in {model.path}" for name in reference.entries if name not in model.entries)
    yield from (f"{name} is only in {model.path}" for name in model.entries if name not in reference.entries)
    for entry in both:
        if entry not in same:
            theirs = shape_of(model.entries[entry.name].shape)
            yield f"{entry.name} has the shape {shape_of(entry.shape)} in {reference.path}, {theirs} in {model.path}"
