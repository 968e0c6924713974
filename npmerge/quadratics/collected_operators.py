"""Operators of quadratic merges from collected statistics, checked against the models and brought to their leaves."""

from collections.abc import Iterable

import jax
from jaxtyping import Array

from alignment.graph import PyTree, path_name
from npmerge.base import Merge, Stats
from npmerge.quadratics.operators import Diagonal, Identity, Kronecker, Operator, on_leaves
from npmerge.stack import Stack
from npmerge.statistics.fisher_information import DiagonalFisher, information_of
from npmerge.statistics.input_grams import InputGram, grams_of
from npmerge.statistics.kronecker import KroneckerFactors, SiteFactors, factors_of
from npmerge.statistics.parts import by_leaf
from npmerge.telling import tell

NEEDS: dict[str, tuple[type, ...]] = {
    "identity": (),
    "diagonal": (DiagonalFisher,),
    "gram": (InputGram,),
    "kronecker": (KroneckerFactors,),
}
"""The statistics that each kind of operators is made of."""


def operators_of(kind: str, merge: Merge, stack: Stack, stats: Stats | None) -> PyTree:
    """An operator of that kind, a key of NEEDS, for each leaf of the models; the identity where there are no statistics.

    Raises:
        ValueError: no statistics, with the name of the merge, or those of other models.
    """
    tell(0)  # they are arranged, no more
    if kind == "diagonal":
        return jax.tree.map(Diagonal, information_of(merge, stack, stats))
    if kind == "gram":
        return on_leaves(stack.params, ((g.site, g.gram) for g in grams_of(merge, stack, stats)))
    if kind == "kronecker":
        return _kronecker(stack.params, factors_of(merge, stack, stats))
    return jax.tree.map(lambda _: Identity(), stack.params)


def _kronecker(params: PyTree, factors: Iterable[SiteFactors]) -> PyTree:
    """`Kronecker` where sites read a leaf, else the identity."""
    at = by_leaf(factors)

    def leaf(path: tuple, _: Array) -> Operator:
        parts = at.get(path_name(path))
        if parts is None:
            return Identity()
        inputs, gradients, sites = zip(*((f.inputs, f.gradients, f.site) for f in parts), strict=True)
        return Kronecker(inputs, gradients, sites)

    return jax.tree_util.tree_map_with_path(leaf, params)
