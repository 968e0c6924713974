"""Walking over a tensor block by block, in each of which every axis is one node or fixed."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Part, Product, Segments, shared

AnyArray = TypeVar("AnyArray", Array, np.ndarray)
Bare = NodeAxis | Fixed
Change = Callable[[Sequence[Bare], AnyArray], AnyArray]


def each_block(labels: Sequence[AxisLabel], x: AnyArray, change: Change[AnyArray]) -> AnyArray:
    """Replace each block of an array by `change(labels, block)`, where the labels are bare: `NodeAxis` or `Fixed`.

    Products become axes of their own, segments and cases are taken apart. The blocks may change their widths; a node that
    fills several intervals of an axis keeps the share of each.

    Raises:
        ValueError: for a change of width of only some of the cases of an axis.
    """
    for d, label in enumerate(labels):
        if isinstance(label, Product):
            return _opened(labels, x, change, d, label.factors)
    for d, label in enumerate(labels):
        if isinstance(label, Segments):
            pieces = [piece for part in label.parts for piece in _segment(labels, x, change, d, part)]
            return _joined([values for _, values in sorted(pieces, key=lambda piece: piece[0])], d, label)
    for label in labels:
        if isinstance(label, Cases):
            return _by_place(labels, x, change, label)
    return change([label for label in labels if isinstance(label, NodeAxis | Fixed)], x)


def name_of(label: AxisLabel) -> str:
    """The node, or the name of the fixed axis, that stands alone on an axis; "" for any other label."""
    match label:
        case NodeAxis(name) | Fixed(_, name):
            return name
    return ""


def axis_of(labels: Sequence[AxisLabel], name: str) -> int:
    """The axis of a block that a node, or a fixed axis with a name, stands on."""
    return [name_of(label) for label in labels].index(name)


def _opened(
    labels: Sequence[AxisLabel], x: AnyArray, change: Change[AnyArray], d: int, factors: tuple[AxisLabel, ...]
) -> AnyArray:
    x = x.reshape(*x.shape[:d], *(f.size for f in factors), *x.shape[d + 1 :])
    x = each_block([*labels[:d], *factors, *labels[d + 1 :]], x, change)
    end = d + len(factors)
    return x.reshape(*x.shape[:d], math.prod(x.shape[d:end]), *x.shape[end:])


def _segment(labels: Sequence[AxisLabel], x: AnyArray, change: Change[AnyArray], d: int, part: Part) -> list[tuple]:
    """The changed pieces of one part, each with the interval of the old axis that it stands for."""
    lengths = [b - a for a, b in part.intervals]
    taken = _joined([_window(x, d, a, b) for a, b in part.intervals], d, part.label)
    new = each_block([*labels[:d], part.label, *labels[d + 1 :]], taken, change)
    if len(lengths) == 1:
        return [(part.intervals[0], new)]
    ends = itertools.accumulate(shared(lengths, new.shape[d]), initial=0)
    windows = [_window(new, d, a, b) for a, b in itertools.pairwise(ends)]
    return list(zip(part.intervals, windows, strict=True))


def _by_place(labels: Sequence[AxisLabel], x: AnyArray, change: Change[AnyArray], case: Cases) -> AnyArray:
    along, blocks = axis_of(labels, case.index), []
    for place in range(x.shape[along]):
        here = [label.options[place] if isinstance(label, Cases) and label.index == case.index else label for label in labels]
        here[along] = Fixed(1)
        blocks.append(each_block(here, _window(x, along, place, place + 1), change))
    return _joined(blocks, along, case)


def _window(x: AnyArray, d: int, start: int, stop: int) -> AnyArray:
    return x[(slice(None),) * d + (slice(start, stop),)]


def _joined(pieces: Sequence[Any], d: int, label: AxisLabel) -> Any:
    if len({(*p.shape[:d], *p.shape[d + 1 :]) for p in pieces}) > 1:
        raise ValueError(f"the parts of {label} would have different widths")
    if len(pieces) == 1:
        return pieces[0]
    return jnp.concatenate(pieces, d) if isinstance(pieces[0], jax.Array) else np.concatenate(pieces, d)
