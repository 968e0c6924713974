"""The equations of a network evaluated at other widths: one rule for each primitive whose parameters name sizes.

What a walk knows of every value gives its new shape: an axis with a term has the size of the term, one along which the value
is uniform keeps its old size until it meets an axis that has changed, and is then broadcast to it.
"""

from collections.abc import Callable, Mapping
from typing import Any

from alignment.primitives import Value
from alignment.primitives.layout import matching_runs
from alignment.resizing.values import Equation, fitted


def _broadcast(e: Equation) -> list[Any]:
    return e.bind(e.ins[0].array, shape=e.shapes[0])


def _reshape(e: Equation) -> list[Any]:
    """What was repeated along an axis (a group's mean for each of its channels) is repeated as often as there are now units."""
    known, made = e.ins[0], e.outs[0]
    shape = list(known.array.shape)
    for old_dims, new_dims in matching_runs(known.value.shape, made.shape):
        terms = [term for d in new_dims if (term := made.axes[d]) is not None]
        pieces = e.sizes.factors(terms, [known.value.shape[d] for d in old_dims])
        for d, size in zip(old_dims, pieces or (), strict=False):
            if known.value.axes[d] is None:
                shape[d] = size
    return e.bind(fitted(known, tuple(shape)), new_sizes=e.shapes[0])


def _iota(e: Equation) -> list[Any]:
    return e.bind(shape=e.shapes[0])


def _slice(e: Equation) -> list[Any]:
    p, (known,) = e.eqn.params, e.ins
    starts, limits = ([_offset(e, known.value, d, k) for d, k in enumerate(p[n])] for n in ("start_indices", "limit_indices"))
    return e.bind(known.array, start_indices=tuple(starts), limit_indices=tuple(limits))


def _split(e: Equation) -> list[Any]:
    axis = e.eqn.params["axis"]
    return e.bind(e.ins[0].array, sizes=tuple(shape[axis] for shape in e.shapes))


def _pad(e: Equation) -> list[Any]:
    config = []
    for d, (low, high, interior) in enumerate(e.eqn.params["padding_config"]):
        end = e.outs[0].shape[d]
        if low > 0 or high > 0:
            starts = [_offset(e, e.outs[0], d, k) for k in (low, end - high, end)]
            low, high = starts[0], starts[2] - starts[1]
        config.append((low, high, interior))
    return e.bind(*e.arrays, padding_config=tuple(config))


def _concatenate(e: Equation) -> list[Any]:
    along, start, pieces = e.eqn.params["dimension"], 0, []
    for known in e.ins:
        end = start + known.value.shape[along]
        shape = list(e.shapes[0])
        shape[along] = _offset(e, e.outs[0], along, end) - _offset(e, e.outs[0], along, start)
        pieces.append(fitted(known, tuple(shape)))
        start = end
    return e.bind(*pieces)


def _stack(e: Equation) -> list[Any]:
    along, shape = e.eqn.params["axis"], e.shapes[0]
    return e.bind(*(fitted(known, (*shape[:along], *shape[along + 1 :])) for known in e.ins))


def _gather(e: Equation) -> list[Any]:
    (table, indices), sizes = e.ins[:2], e.eqn.params["slice_sizes"]
    whole = zip(sizes, table.value.shape, table.array.shape, strict=True)
    return e.bind(table.array, indices.array, slice_sizes=tuple(new if n == old else n for n, old, new in whole))


def _dynamic_slice(e: Equation) -> list[Any]:
    return e.bind(*e.arrays, slice_sizes=e.shapes[0])


def _dot_general(e: Equation) -> list[Any]:
    contracted, batch = e.eqn.params["dimension_numbers"]
    shapes = [list(known.array.shape) for known in e.ins]
    for a, b in (*zip(*contracted, strict=True), *zip(*batch, strict=True)):
        uniform = e.ins[0].value.axes[a] is None
        size = shapes[1][b] if uniform else shapes[0][a]
        shapes[0][a], shapes[1][b] = size, size
    return e.bind(*(fitted(known, tuple(shape)) for known, shape in zip(e.ins, shapes, strict=True)))


def _convolution(e: Equation) -> list[Any]:
    p, (images, kernel) = e.eqn.params, e.arrays
    numbers = p["dimension_numbers"]
    groups = images.shape[numbers.lhs_spec[1]] // kernel.shape[numbers.rhs_spec[1]]
    return e.bind(images, kernel, feature_group_count=groups)


def _overwrite(e: Equation) -> list[Any]:
    return e.bind(fitted(e.ins[0], e.shapes[0]), *e.arrays[1:])


CHANGED: Mapping[str, Callable[[Equation], list[Any]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "iota": _iota,
    "slice": _slice,
    "split": _split,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _overwrite,
    **dict.fromkeys(("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"), _overwrite),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
}


def _offset(e: Equation, value: Value, d: int, place: int) -> int:
    term = value.axes[d]
    return place if term is None else e.sizes.offset(term, place)
