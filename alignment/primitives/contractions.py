"""Matrix products and convolutions: the contracted axes are each other's duals."""

from alignment.primitives.registry import Axes, Equation, concrete, fixed, restrict, rule, unsupported
from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Term, dual, product


@rule("dot_general")
def _dot_general(terms: Terms, eqn: Equation) -> list[Axes]:
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    lhs, rhs = eqn.ins
    for a, b in zip(lc, rc, strict=True):
        _contract(terms, lhs.axes[a], rhs.axes[b])
    batch: list[Term | None] = []
    for a, b in zip(lb, rb, strict=True):
        left, right = lhs.axes[a], rhs.axes[b]
        if left is not None and right is not None:
            terms.unify(left, right)
            terms.restrict(left, Group.PERMUTATION)
        batch.append(left if left is not None else right)
    left_free = [lhs.axes[d] for d in range(len(lhs.shape)) if d not in (*lc, *lb)]
    free = left_free + [rhs.axes[d] for d in range(len(rhs.shape)) if d not in (*rc, *rb)]
    contracted = [lhs.axes[a] if lhs.axes[a] is not None else rhs.axes[b] for a, b in zip(lc, rc, strict=True)]
    terms.together([*batch, *free, *contracted])  # the sum that each element of the result is
    return [(*batch, *free)]


def _contract(terms: Terms, left: Term | None, right: Term | None) -> None:
    """Sum over an axis: one side transforms by the inverse transpose of the other."""
    if left is not None and right is not None:
        terms.contract(left, right)
    else:  # contracting with a constant vector is a plain sum
        restrict(terms, left if left is not None else right, Group.PERMUTATION)


@rule("conv_general_dilated")
def _convolution(terms: Terms, eqn: Equation) -> list[Axes]:
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    if eqn.params["batch_group_count"] > 1:
        return unsupported(terms, eqn)
    lhs, rhs = eqn.ins
    channels, made = lhs.axes[numbers.lhs_spec[1]], concrete(terms, rhs, numbers.rhs_spec[0])
    inner = rhs.axes[numbers.rhs_spec[1]]
    summed = inner if inner is not None else channels
    if groups == 1:
        _contract(terms, channels, inner)
    else:  # one block of channels per group: groups move as wholes, and alike inside each
        width = lhs.shape[numbers.lhs_spec[1]] // groups
        block = terms.fresh(groups, group=Group.PERMUTATION)
        within = dual(inner) if inner is not None else terms.fresh(width, group=Group.PERMUTATION)
        summed = within
        if channels is not None:
            terms.unify(channels, product([block, within]))
        else:
            restrict(terms, inner, Group.PERMUTATION)
        terms.unify(made, product([block, terms.fresh(rhs.shape[numbers.rhs_spec[0]] // groups)]))
    for v, dims in ((lhs, numbers.lhs_spec[2:]), (rhs, numbers.rhs_spec[2:])):
        for d in dims:
            if v.axes[d] is not None:
                terms.pin(v.axes[d], "position under a convolution")
    axes = list(fixed(terms, eqn.outs[0], "position under a convolution"))
    out: list[Term | None] = [*axes]
    out[numbers.out_spec[0]], out[numbers.out_spec[1]] = lhs.axes[numbers.lhs_spec[0]], made
    terms.together([lhs.axes[numbers.lhs_spec[0]], made, *(rhs.axes[d] for d in numbers.rhs_spec[2:]), summed])
    return [tuple(out)]
