"""Operations that take parts of axes, write to them, look things up or rank them."""

from collections.abc import Sequence

from alignment.primitives.registry import Axes, Equation, Value, hold, restrict, rule
from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Term


@rule("slice")
def _slice(terms: Terms, eqn: Equation) -> list[Axes]:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    return [_sliced(terms, eqn.ins[0], start, limit, eqn.params["strides"] or [1] * len(start))]


def _sliced(terms: Terms, value: Value, start: Sequence[int], limit: Sequence[int], strides: Sequence[int]) -> Axes:
    axes: list[Term | None] = list(value.axes)
    for d, (a, b, step) in enumerate(zip(start, limit, strides, strict=True)):
        size, taken = value.shape[d], range(int(a), int(b), int(step))
        if axes[d] is None:
            continue
        if len(taken) == 1 < size and (others := terms.separate(axes, d, taken[0])) is not None:
            axes = others
        elif step > 1 and len(taken) > 1:
            axes[d] = hold(terms, axes[d], len(taken), "strided slice")
        else:
            axes[d] = _window(terms, axes[d], size, taken.start, taken.start + len(taken))
    return tuple(axes)


@rule("unstack")
def _unstack(terms: Terms, eqn: Equation) -> list[Axes]:
    value, along = eqn.ins[0], eqn.params["axis"]
    starts, limits = [0] * len(value.shape), list(value.shape)
    pieces = []
    for place in range(value.shape[along]):
        starts[along], limits[along] = place, place + 1
        axes = _sliced(terms, value, starts, limits, [1] * len(starts))
        pieces.append((*axes[:along], *axes[along + 1 :]))
    return pieces


@rule("split")
def _split(terms: Terms, eqn: Equation) -> list[Axes]:
    along, value = eqn.params["axis"], eqn.ins[0]
    starts, limits = [0] * len(value.shape), list(value.shape)
    pieces, stop = list[Axes](), 0
    for width in map(int, eqn.params["sizes"]):
        starts[along], limits[along] = stop, (stop := stop + width)
        pieces.append(_sliced(terms, value, starts, limits, [1] * len(starts)))
    return pieces


@rule("top_k", "approx_top_k")
def _top_k(terms: Terms, eqn: Equation) -> list[Axes]:
    value, shape = eqn.ins[0], eqn.outs[0]
    along = eqn.params.get("axis", eqn.params.get("reduction_dimension", -1)) % len(shape)
    axes = list(value.axes)
    for d, term in enumerate(axes):
        restrict(terms, term, Group.PERMUTATION)
        if d == along:
            axes[d] = hold(terms, term, shape[d], "ranked along this axis")
    return [tuple(axes)] * len(eqn.outs)


@rule("sort")
def _sort(terms: Terms, eqn: Equation) -> list[Axes]:
    along, axes = eqn.params["dimension"], list[Term | None]()
    for d, n in enumerate(eqn.outs[0]):
        named = [t for v in eqn.ins if (t := v.axes[d]) is not None]
        for other in named[1:]:
            terms.unify(named[0], other)
        restrict(terms, named[0] if named else None, Group.PERMUTATION)
        axes.append(hold(terms, named[0], n, "ranked along this axis") if named and d == along else next(iter(named), None))
    return [tuple(axes)] * len(eqn.outs)


def _window(terms: Terms, term: Term | None, size: int, start: int, stop: int) -> Term | None:
    """The part [start, stop) of an axis."""
    if term is None or (start, stop) == (0, size):
        return term
    if start == stop:
        return terms.fresh(0, pin="axis of size zero")
    widths = [w for w in (start, stop - start, size - stop) if w]
    pieces = terms.cut(term, widths)
    if pieces is None:
        return hold(terms, term, stop - start, "slice across a structured axis")
    return pieces[1 if start else 0]


@rule("dynamic_slice")
def _dynamic_slice(terms: Terms, eqn: Equation) -> list[Axes]:
    value, *starts = eqn.ins
    if all(s.constant is not None or value.shape[d] == n for d, (s, n) in enumerate(zip(starts, eqn.outs[0], strict=True))):
        known = [min(max(int(s.constant or 0), 0), m - n) for s, m, n in zip(starts, value.shape, eqn.outs[0], strict=True)]
        return [_sliced(terms, value, known, [a + n for a, n in zip(known, eqn.outs[0], strict=True)], [1] * len(known))]
    whole = [value.shape[d] == n for d, n in enumerate(eqn.outs[0])]
    return [
        tuple(
            t if keep or t is None else hold(terms, t, n, "sliced at a computed place")
            for t, n, keep in zip(value.axes, eqn.outs[0], whole, strict=True)
        )
    ]


@rule("dynamic_update_slice")
def _dynamic_update(terms: Terms, eqn: Equation) -> list[Axes]:
    value, update = eqn.ins[:2]
    return [
        tuple(
            _overwritten(terms, value, d, update, d, reason="overwritten at a computed place") for d in range(len(value.shape))
        )
    ]


def _overwritten(terms: Terms, value: Value, d: int, update: Value, e: int, *, reason: str) -> Term | None:
    """Axis `d` of an array after part of it was replaced (or added to) by an update along its axis `e`."""
    old, new = value.axes[d], update.axes[e]
    if value.shape[d] != update.shape[e]:
        for term in (old, new):
            if term is not None:
                terms.pin(term, reason)
        return terms.fresh(value.shape[d], pin=reason, moved=True)
    if old is not None and new is not None:
        terms.unify(old, new)
    elif (old is None and not value.zero) or (new is None and not update.zero):
        restrict(terms, new if old is None else old, Group.PERMUTATION)
    return new if old is None else old


@rule("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers, (value, indices, update) = eqn.params["dimension_numbers"], eqn.ins
    batched = dict(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    windows = iter(numbers.update_window_dims)
    scattered = [d for d in range(len(update.shape)) if d not in numbers.update_window_dims]
    axes: list[Term | None] = []
    for d, term in enumerate(value.axes):
        if d in batched:
            e = batched[d]
            axes.append(_paired(terms, _paired(terms, term, indices.axes[e]), update.axes[scattered[e]]))
        elif d in numbers.inserted_window_dims:
            axes.append(hold(terms, term, value.shape[d], "written to by index"))
        else:
            axes.append(_overwritten(terms, value, d, update, next(windows), reason="written to by index"))
    for d, term in zip(scattered, indices.axes[:-1], strict=True):
        _paired(terms, update.axes[d], term)
    if eqn.name not in ("scatter", "scatter-add", "scatter-sub"):
        for term in (*value.axes, *update.axes):
            restrict(terms, term, Group.PERMUTATION)
    return [tuple(axes)]


def _paired(terms: Terms, a: Term | None, b: Term | None) -> Term | None:
    """Two axes walked along together."""
    if a is not None and b is not None:
        terms.unify(a, b)
    restrict(terms, a if a is not None else b, Group.PERMUTATION)
    return a if a is not None else b


@rule("iota")
def _iota(terms: Terms, eqn: Equation) -> list[Axes]:
    shape = eqn.outs[0]
    return [tuple(terms.fresh(n, pin="position") if d == eqn.params["dimension"] else None for d, n in enumerate(shape))]


@rule("gather")
def _gather(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers = eqn.params["dimension_numbers"]
    (table, indices), fill = eqn.ins[:2], eqn.params["fill_value"]
    batched = dict(zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True))
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = iter([d for d in range(len(table.shape)) if d not in gone])
    batch = iter([_paired(terms, t, table.axes[batched[e]]) if e in batched else t for e, t in enumerate(indices.axes[:-1])])
    for e, term in enumerate(indices.axes[:-1]):
        if term is not None and e not in batched:
            terms.move(term)  # what stands at its places is not what stands there elsewhere
    for d, term in enumerate(table.axes):
        if term is not None and d in numbers.collapsed_slice_dims:
            terms.pin(term, "looked up by index")
        if fill is not None and fill == fill and fill != 0:  # rows of a constant that is not NaN
            restrict(terms, term, Group.PERMUTATION)
    axes: list[Term | None] = []
    for o, n in enumerate(eqn.outs[0]):
        if o not in numbers.offset_dims:
            axes.append(next(batch))
            continue
        d = next(windows)
        term = table.axes[d]
        axes.append(term if term is None or table.shape[d] == n else hold(terms, term, n, "gathered in part"))
    return [tuple(axes)]
