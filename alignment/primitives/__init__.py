"""One rule per primitive: how the axes of an equation's operands and results transform together.

A rule receives the store of terms and an `Equation` and returns, for each result, one entry per axis: a term, or None for
an axis along which the value is uniform (a broadcast), so that every map that keeps a constant vector keeps it. On the way
it unifies what must transform alike, restricts groups (a nonlinearity leaves permutations only) and pins what the
operation tells apart. A primitive without a rule pins every axis it touches; `rule` teaches it from outside:

    @alignment.primitives.rule("my_primitive")
    def _(terms, eqn):
        return [eqn.ins[0].axes]
"""

from alignment.primitives import contractions, elementwise, indexing, layout, reductions
from alignment.primitives.registry import RULES, UNSUPPORTED, Axes, Equation, Rule, Source, Value, fixed, rule, unsupported

__all__ = [
    "RULES",
    "UNSUPPORTED",
    "Axes",
    "Equation",
    "Rule",
    "Source",
    "Value",
    "contractions",
    "elementwise",
    "fixed",
    "indexing",
    "layout",
    "reductions",
    "rule",
    "unsupported",
]
