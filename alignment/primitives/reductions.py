"""Sums, extrema and other reductions, cumulative ones, and pooling."""

from alignment.primitives.registry import Axes, Equation, Rule, hold, restrict, rule, unsupported
from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Term


def _reduction(kept_group: Group, gone_group: Group = Group.PERMUTATION) -> Rule:
    def reduce(terms: Terms, eqn: Equation) -> list[Axes]:
        gone = eqn.params["axes"]
        for d, term in enumerate(eqn.ins[0].axes):
            restrict(terms, term, gone_group if d in gone else kept_group)
        return [tuple(t for d, t in enumerate(eqn.ins[0].axes) if d not in gone)]

    return reduce


@rule("reduce_sum")
def _sum(terms: Terms, eqn: Equation) -> list[Axes]:
    """Of squares it is a squared norm, which rotations of the axes that are summed over leave as it is."""
    squares = eqn.ins[0].square
    return _reduction(*((Group.PERMUTATION, Group.ORTHOGONAL) if squares else (Group.LINEAR,)))(terms, eqn)


rule("reduce_max", "reduce_min")(_reduction(Group.SCALE))
rule("reduce_prod", "reduce_and", "reduce_or", "reduce_xor")(_reduction(Group.PERMUTATION))


@rule("argmax", "argmin")
def _arg_reduction(terms: Terms, eqn: Equation) -> list[Axes]:
    for d in eqn.params["axes"]:
        if (term := eqn.ins[0].axes[d]) is not None:
            terms.pin(term, "position of an extremum")
    return _reduction(Group.PERMUTATION)(terms, eqn)


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def _cumulative(terms: Terms, eqn: Equation) -> list[Axes]:
    along = eqn.params["axis"]
    group = Group.LINEAR if eqn.name == "cumsum" else Group.PERMUTATION
    axes = list(eqn.ins[0].axes)
    for d, term in enumerate(axes):
        restrict(terms, term, group)
        if d == along:
            axes[d] = hold(terms, term, eqn.outs[0][d], "order matters along this axis")
    return [tuple(axes)]


@rule("reduce_window_max", "reduce_window_min", "reduce_window_sum", "reduce_window")
def _pool(terms: Terms, eqn: Equation) -> list[Axes]:
    if len(eqn.outs) > 1:
        return unsupported(terms, eqn)
    p, value = eqn.params, eqn.ins[0]
    kept_group = Group.LINEAR if eqn.name == "reduce_window_sum" else Group.SCALE
    if eqn.name == "reduce_window":
        kept_group = Group.PERMUTATION
    axes: list[Term | None] = []
    for d, term in enumerate(value.axes):
        untouched = p["window_dimensions"][d] == 1 and value.shape[d] == eqn.outs[0][d] and p["padding"][d] == (0, 0)
        if untouched:
            restrict(terms, term, kept_group)
            axes.append(term)
        else:
            axes.append(hold(terms, term, eqn.outs[0][d], "pooled position"))
    return [tuple(axes)]
