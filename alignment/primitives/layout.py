"""Operations that move, cut or join axes, and those that look things up."""

from collections.abc import Sequence

from alignment.primitives.registry import Axes, Equation, concrete, filler, fixed, hold, restrict, rule, unsupported
from alignment.terms import Group, Prod, Term, Terms, product, sequence


@rule("broadcast_in_dim")
def _broadcast(terms: Terms, eqn: Equation) -> list[Axes]:
    axes: list[Term | None] = [None] * len(eqn.outs[0])
    for d, o in enumerate(eqn.params["broadcast_dimensions"]):
        if eqn.ins[0].shape[d] == eqn.outs[0][o]:
            axes[o] = eqn.ins[0].axes[d]
    return [tuple(axes)]


@rule("transpose")
def _transpose(terms: Terms, eqn: Equation) -> list[Axes]:
    return [tuple(eqn.ins[0].axes[d] for d in eqn.params["permutation"])]


@rule("squeeze")
def _squeeze(terms: Terms, eqn: Equation) -> list[Axes]:
    gone = {d % len(eqn.ins[0].shape) for d in eqn.params["dimensions"]}
    return [tuple(t for d, t in enumerate(eqn.ins[0].axes) if d not in gone)]


@rule("reshape")
def _reshape(terms: Terms, eqn: Equation) -> list[Axes]:
    value, new = eqn.ins[0], eqn.outs[0]
    out: list[Term | None] = []
    if 0 in new:
        return [fixed(terms, new, "axis of size zero")]
    for old_dims, new_dims in _matching_runs(value.shape, new):
        sizes = [new[d] for d in new_dims]
        if all(value.axes[d] is None or value.shape[d] == 1 for d in old_dims):
            out += [None] * len(sizes)
            continue
        whole = product([concrete(terms, value, d) for d in old_dims])
        pieces = terms.factor(whole, sizes)
        if pieces is None:
            reason = "reshape across a structured axis"
            terms.pin(whole, reason)
            pieces = [terms.fresh(n, pin=reason) for n in sizes]
        out += pieces
    return [tuple(out)]


def _matching_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of old and new dimensions with equal products, in order; together they cover both shapes."""
    runs, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        left, right = 1, 1
        while True:
            if left == right and (i > i0 or j > j0):
                break
            if left <= right and i < len(old):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        runs.append((range(i0, i), range(j0, j)))
    return runs


@rule("concatenate")
def _concatenate(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["dimension"]
    axes: list[Term | None] = []
    for d in range(len(eqn.outs[0])):
        if d == along:
            axes.append(sequence([concrete(terms, v, d) for v in eqn.ins if v.shape[d]]))
            continue
        named = [t for v in eqn.ins if (t := v.axes[d]) is not None]
        for other in named[1:]:
            terms.unify(named[0], other)
        if named and any(v.axes[d] is None and not v.zero for v in eqn.ins):
            terms.restrict(named[0], Group.PERMUTATION)
        axes.append(named[0] if named else None)
    return [tuple(axes)]


@rule("pad")
def _pad(terms: Terms, eqn: Equation) -> list[Axes]:
    value, padding = eqn.ins
    axes: list[Term | None] = []
    for d, config in enumerate(eqn.params["padding_config"]):
        low, high, interior = map(int, config)
        term, n = value.axes[d], eqn.outs[0][d]
        if (low, high, interior) == (0, 0, 0):
            axes.append(term)
        elif min(low, high) < 0 or interior:
            axes.append(hold(terms, term, n, "padded inside or cropped"))
        else:
            ends = [filler(terms, w, zero=padding.zero) if w else Prod(()) for w in (low, high)]
            parts = [*ends[: low > 0], concrete(terms, value, d), *ends[1 : 1 + (high > 0)]]
            axes.append(sequence(parts))
    return [tuple(axes)]


@rule("slice")
def _slice(terms: Terms, eqn: Equation) -> list[Axes]:
    value, start, limit = eqn.ins[0], eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or [1] * len(start)
    axes: list[Term | None] = []
    for d, (a, b, step) in enumerate(zip(start, limit, strides, strict=True)):
        if step == 1:
            axes.append(_window(terms, value.axes[d], value.shape[d], int(a), int(b)))
        else:
            axes.append(value.axes[d] and hold(terms, value.axes[d], eqn.outs[0][d], "strided slice"))
    return [tuple(axes)]


@rule("split")
def _split(terms: Terms, eqn: Equation) -> list[Axes]:
    along, value, stop = eqn.params["axis"], eqn.ins[0], 0
    out = []
    for width in map(int, eqn.params["sizes"]):
        start, stop = stop, stop + width
        piece = _window(terms, value.axes[along], value.shape[along], start, stop)
        out.append((*value.axes[:along], piece, *value.axes[along + 1 :]))
    return out


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
    along = eqn.params["dimension"]
    first, *rest = [list(v.axes) for v in eqn.ins]
    for axes in (first, *rest):
        for d, term in enumerate(axes):
            restrict(terms, term, Group.PERMUTATION)
            if d == along:
                axes[d] = hold(terms, term, eqn.outs[0][d], "ranked along this axis")
            elif term is not None and (same := first[d]) is not None:
                terms.unify(same, term)
    return [tuple(first), *map(tuple, rest)]


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
    value = eqn.ins[0]
    whole = [value.shape[d] == n for d, n in enumerate(eqn.outs[0])]
    return [
        tuple(
            t if keep or t is None else hold(terms, t, n, "sliced at a computed place")
            for t, n, keep in zip(value.axes, eqn.outs[0], whole, strict=True)
        )
    ]


@rule("rev")
def _reverse(terms: Terms, eqn: Equation) -> list[Axes]:
    turned = eqn.params["dimensions"]
    return [
        tuple(
            hold(terms, t, n, "reversed") if d in turned and t is not None else t
            for d, (t, n) in enumerate(zip(eqn.ins[0].axes, eqn.outs[0], strict=True))
        )
    ]


@rule("iota")
def _iota(terms: Terms, eqn: Equation) -> list[Axes]:
    shape = eqn.outs[0]
    return [tuple(terms.fresh(n, pin="position") if d == eqn.params["dimension"] else None for d, n in enumerate(shape))]


@rule("gather")
def _gather(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers = eqn.params["dimension_numbers"]
    if numbers.operand_batching_dims:
        return unsupported(terms, eqn)
    table, indices = eqn.ins[:2]
    windows = iter([d for d in range(len(table.shape)) if d not in numbers.collapsed_slice_dims])
    batch = iter(indices.axes[:-1])
    for d in numbers.collapsed_slice_dims:
        if table.axes[d] is not None:
            terms.pin(table.axes[d], "looked up by index")
    axes: list[Term | None] = []
    for o, n in enumerate(eqn.outs[0]):
        if o not in numbers.offset_dims:
            axes.append(next(batch))
            continue
        d = next(windows)
        term = table.axes[d]
        axes.append(term if term is None or table.shape[d] == n else hold(terms, term, n, "gathered in part"))
    return [tuple(axes)]
