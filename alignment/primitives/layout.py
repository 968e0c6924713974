"""Operations that move, join or reshape axes."""

from collections.abc import Sequence
from dataclasses import replace

from alignment.primitives.registry import Axes, Equation, concrete, filler, fixed, hold, restrict, rule
from alignment.unification.algebra import SEPARATED, Terms
from alignment.unification.terms import Case, Group, Prod, Ref, Term, product, sequence


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
    for old_dims, new_dims in matching_runs(value.shape, new):
        sizes = [new[d] for d in new_dims]
        if all(value.axes[d] is None or value.shape[d] == 1 for d in old_dims):
            out += [None] * len(sizes)
            continue
        whole = product([concrete(terms, value, d) for d in old_dims])
        pieces = terms.factor(whole, sizes)
        if pieces is None:
            reason = "reshape across a structured axis"
            terms.pin(whole, reason)
            pieces = [terms.fresh(n, pin=reason, moved=True) for n in sizes]
        out += pieces
    return [tuple(out)]


def matching_runs(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
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


@rule("stack")
def _stack(terms: Terms, eqn: Equation) -> list[Axes]:
    """One axis more, at each place of which the others may be another node."""
    along, n = eqn.params["axis"], len(eqn.ins)
    if n == 1:
        return [(*eqn.ins[0].axes[:along], None, *eqn.ins[0].axes[along:])]
    places = terms.fresh(n, pin=SEPARATED)
    assert isinstance(places, Ref)
    axes: list[Term | None] = []
    for d in range(len(eqn.ins[0].shape)):
        if all(v.axes[d] is None for v in eqn.ins):
            axes.append(None)
        else:
            axes.append(terms.resolve(Case(places.atom, tuple(concrete(terms, v, d) for v in eqn.ins))))
    return [(*axes[:along], places, *axes[along:])]


def _without(items: tuple, d: int) -> tuple:
    return items[:d] + items[d + 1 :]


@rule("concatenate")
def _concatenate(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["dimension"]
    if all(v.shape[along] == 1 for v in eqn.ins):  # a stack, written otherwise
        flat = [replace(v, shape=_without(v.shape, along), axes=_without(v.axes, along)) for v in eqn.ins]
        return _stack(terms, Equation("stack", {"axis": along}, flat, eqn.outs))
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
    if not padding.zero:  # rows of a constant: only permutations keep it
        for term in value.axes:
            restrict(terms, term, Group.PERMUTATION)
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


@rule("rev")
def _reverse(terms: Terms, eqn: Equation) -> list[Axes]:
    turned = eqn.params["dimensions"]
    return [
        tuple(
            hold(terms, t, n, "reversed") if d in turned and t is not None else t
            for d, (t, n) in enumerate(zip(eqn.ins[0].axes, eqn.outs[0], strict=True))
        )
    ]
