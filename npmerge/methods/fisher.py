"""Fisher-weighted averaging."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten
from npmerge.base import LinearMerge, Stats
from npmerge.stack import Stack
from npmerge.statistics import DiagonalFisher


@dataclass(frozen=True)
class Fisher(LinearMerge):
    """sum_m F_m params_m / sum_m F_m elementwise, F_m the diagonal Fisher information (Matena and Raffel 2022, equation 4).

    Where no model has any information the parameter is averaged (some implementations give zero). No floor is added to the
    information: it would only matter there. Needs `DiagonalFisher`.
    """

    needs = (DiagonalFisher,)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per parameter. Raises ValueError without statistics, or with those of other models."""
        if stats is None or DiagonalFisher not in stats:
            raise ValueError("Fisher needs stats: pass npmerge.collect(apply, graph, models, batches, [DiagonalFisher()])")
        fisher = stats[DiagonalFisher]
        mine, theirs = ({path: x.shape for path, x in flatten(tree).items()} for tree in (stack.params, fisher))
        for path in [*mine, *theirs]:
            if mine.get(path) != theirs.get(path):
                raise ValueError(
                    f"the Fisher statistics are of other models: at {path!r} got {theirs.get(path)}, expected {mine.get(path)}"
                )
        return _shares(fisher)


@jax.jit
def _shares(fisher: PyTree) -> PyTree:
    return jax.tree.map(_share, fisher)


def _share(f: Float[Array, "models ..."]) -> Float[Array, "models ..."]:
    # scaled by the largest first: a sum of tiny values must not underflow
    largest = f.max(0, keepdims=True)
    f = f / jnp.where(largest > 0, largest, 1)
    total = f.sum(0, keepdims=True)
    return jnp.where(total > 0, f / jnp.where(total > 0, total, 1), 1 / f.shape[0])
