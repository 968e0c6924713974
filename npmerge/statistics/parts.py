"""What was measured at the places where a network reads its weights, brought to the weights: leaf by leaf, part by part."""

import math
from collections.abc import Iterable
from typing import Protocol, TypeVar

import jax
import numpy as np
from jaxtyping import Array

from alignment.sites import Use


class Measured(Protocol):
    """What was measured at a site or lookup."""

    @property
    def site(self) -> Use:
        """Where."""


M = TypeVar("M", bound=Measured)


def by_leaf(found: Iterable[M]) -> dict[str, list[M]]:
    """What was measured of each weight, by its path."""
    at: dict[str, list[M]] = {}
    for each in found:
        at.setdefault(each.site.path, []).append(each)
    return at


def by_part(several: list[M], leaf: tuple[int, ...]) -> list[list[M]]:
    """What was measured of each part of a leaf of this shape: a part that is read in several places is one.

    Raises:
        ValueError: for sites that share some elements of a weight, but not all.
    """
    if len(several) == 1:
        return [several]
    parts: dict[bytes, list[M]] = {}
    seen = np.zeros(math.prod(leaf), bool)
    for each in several:
        with jax.ensure_compile_time_eval():  # which elements they are is known when models are traced
            places = np.asarray(each.site.places(leaf))
        if places.tobytes() not in parts and seen[places.ravel()].any():
            raise ValueError(f"site {each.site.name!r} reads a part of its weight that another site reads otherwise")
        seen[places.ravel()] = True
        parts.setdefault(places.tobytes(), []).append(each)
    return list(parts.values())


def matrices_of(site: Use, leaf: Array | None) -> tuple[int, ...] | str:
    """The shape (models, *copies, rows, columns) of what a site reads of a leaf (models, ...), or what is there instead."""
    if leaf is None:
        return "no such weight"
    try:
        of_one = jax.eval_shape(site.matrix, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)).shape
    except (TypeError, ValueError):
        return f"a weight of shape {leaf.shape[1:]}"
    return (len(leaf), *of_one)


def all_finite(*arrays: Array) -> bool:
    """Whether they hold neither NaN nor infinities, as far as they are not traced."""
    return all(isinstance(x, jax.core.Tracer) or bool(np.isfinite(np.asarray(x)).all()) for x in arrays)
