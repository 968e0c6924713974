"""Some tensors are learned; the others are merged as the closed form has them, whatever is learned."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten, path_name
from npmerge.base import Merge, Stats
from npmerge.learned import Learned
from npmerge.linear import merged_by
from npmerge.objectives import EqualShares
from npmerge.stack import Stack


@dataclass(frozen=True)
class PartlyLearned(Merge):
    """A learned merge of some leaves; the others have the coefficients of its start.

    Theta is `{"latents": of the learned leaves, "fixed": of the others}`. Fixed coefficients are kept as the integers that
    have their bits: `fit` learns the floating-point leaves of theta and leaves others as they are.

    Attributes:
        learned: how those leaves are merged.
        paths: of the leaves that are learned.
    """

    learned: Learned
    paths: frozenset[str]

    @property
    def lean(self) -> bool:
        """See `Learned.lean`."""
        return self.learned.lean

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The start. Raises ValueError as `Learned` does, for the leaves that are learned."""
        ours, others = self.parts(stack)
        fixed = flatten(self.learned.start.init(others, stats=stats, key=key)) if others.params else {}
        bits = {path: jnp.asarray(np.asarray(c, np.float32).view(np.int32)) for path, c in fixed.items()}
        return {"latents": self.learned.init(ours, stats=stats, key=key), "fixed": bits}

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """The merged network."""
        ours, others = self.parts(stack)
        merged = dict(self.learned.apply(theta["latents"], ours))
        if others.params:
            coefficients = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.float32), theta["fixed"])
            merged |= merged_by(coefficients, others, needs_base=self.learned.start.needs_base)
        return jax.tree_util.tree_map_with_path(lambda path, _: merged[path_name(path)], stack.params)

    def parts(self, stack: Stack) -> tuple[Stack, Stack]:
        """The leaves that are learned and the others, by path."""

        def chosen(tree: PyTree, learned: bool) -> dict[str, Array]:
            return {path: x for path, x in flatten(tree).items() if (path in self.paths) == learned}

        def part(learned: bool) -> Stack:
            return Stack(chosen(stack.params, learned), None if stack.base is None else chosen(stack.base, learned))

        return part(True), part(False)


@dataclass(frozen=True)
class LatentLoss:
    """A loss of latents alone, as one of the theta of a `PartlyLearned`."""

    loss: EqualShares

    reads_batches = False

    def __call__(self, theta: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The loss of the latents."""
        return self.loss(theta["latents"], stack, batch)


def shares_of_theta(merge: Any) -> EqualShares | LatentLoss:
    """`EqualShares` of the coefficients that are learned."""
    return LatentLoss(EqualShares(merge.learned)) if isinstance(merge, PartlyLearned) else EqualShares(merge)


def latents_of(merge: Merge, theta: PyTree) -> dict[str, Array]:
    """What is learned, by group."""
    return theta["latents"] if isinstance(merge, PartlyLearned) else theta
