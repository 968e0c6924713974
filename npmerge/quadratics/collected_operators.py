"""Operators of quadratic merges from collected statistics, checked against the models and brought to their leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.graph import PyTree, flatten, path_name
from npmerge.base import Merge, Stats
from npmerge.quadratics.operators import Diagonal, Identity, Kronecker, Operator, on_leaves
from npmerge.stack import Stack
from npmerge.statistics.fisher_information import DiagonalFisher, information_of
from npmerge.statistics.input_grams import InputGram, grams_of
from npmerge.statistics.kronecker import KroneckerFactors, SiteFactors
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
        return _kronecker(merge, stack, stats)
    return jax.tree.map(lambda _: Identity(), stack.params)


def _kronecker(merge: Merge, stack: Stack, stats: Stats | None) -> PyTree:
    """`Kronecker` where sites read a leaf.

    Sites that read the same part of it are one, whose factors follow each other along the axis of the models.

    Raises:
        ValueError: no factors, those of other models or another layer, values that are not finite, or sites that share a part
            of a weight.
    """
    if stats is None or KroneckerFactors not in stats:
        name = type(merge).__name__
        raise ValueError(f"{name} needs stats: pass npmerge.collect(apply, graph, models, batches, [KroneckerFactors()])")
    leaves = flatten(stack.params)
    at: dict[str, list[SiteFactors]] = {}
    for name, f in stats[KroneckerFactors].items():
        _check(name, f, leaves.get(f.site.path))
        at.setdefault(f.site.path, []).append(f)

    def leaf(path: tuple, x: Array) -> Operator:
        parts = _by_part(at.get(path_name(path), []), x.shape[1:])
        joined = [[jnp.concatenate(a) for a in zip(*((f.inputs, f.gradients) for f in p), strict=True)] for p in parts]
        if not parts:
            return Identity()
        inputs, gradients = zip(*joined, strict=True)
        return Kronecker(inputs, gradients, tuple(p[0].site for p in parts))

    return jax.tree_util.tree_map_with_path(leaf, stack.params)


def _check(name: str, f: SiteFactors, leaf: Array | None) -> None:
    expected: Any = "no such weight"
    if leaf is not None:
        try:
            *copies, rows, columns = jax.eval_shape(f.site.matrix, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)).shape
            expected = tuple((len(leaf), *copies, n, n) for n in (rows, columns))
        except (TypeError, ValueError):
            expected = f"a weight of shape {leaf.shape[1:]}"
    got = np.shape(f.inputs), np.shape(f.gradients)
    if got != expected:
        raise ValueError(f"the factors of {name!r} are of other models or another layer: got {got}, expected {expected}")
    known = [x for x in (f.inputs, f.gradients) if not isinstance(x, jax.core.Tracer)]
    if not all(np.isfinite(np.asarray(x)).all() for x in known):
        raise ValueError(f"the factors of {name!r} are not finite: is there a NaN in the data, or a label or token too large?")


def _by_part(several: list[SiteFactors], leaf: tuple[int, ...]) -> list[list[SiteFactors]]:
    """Those of each part of a leaf that sites read."""
    parts: dict[bytes, list[SiteFactors]] = {}
    seen = np.zeros(int(np.prod(leaf)), bool)
    for f in several:
        with jax.ensure_compile_time_eval():  # which elements they are is known when models are traced
            places = np.asarray(f.site.places(leaf))
        if places.tobytes() not in parts and seen[places.ravel()].any():
            raise ValueError(f"site {f.site.name!r} reads a part of its weight that another site reads otherwise")
        seen[places.ravel()] = True
        parts.setdefault(places.tobytes(), []).append(f)
    return list(parts.values())
