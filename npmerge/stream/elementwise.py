"""Kernels of the methods that need nothing but the entries of one parameter."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npmerge.arithmetic import summed
from npmerge.recipe.plan import Step
from npmerge.stream.arrays import Padded, Rounded, moved, padded, precise, rounded, told, vectors
from npmerge.stream.blocks import Block, Merged, Tensor

Formula = Callable[..., Float[Array, " entries"]]
"""Of a block and a few numbers; traceable."""


@dataclass(frozen=True)
class Elementwise:
    """What a formula makes of each entry.

    Attributes:
        formula: of this file, one object for all steps.
        numbers: that it takes, traced.
    """

    formula: Formula
    numbers: tuple[float, ...] = ()
    in_blocks = True

    def survey(self, tensor: Tensor) -> None:
        """Nothing."""

    def merge(self, block: Block, surveyed: None, step: Step) -> Merged:
        """See `Kernel`."""
        with precise(block):
            found = _merged(self.formula, padded(block), tuple(map(np.float32, self.numbers)), step.dtype)
            return told(found, len(block.models[0]), step.dtype)


def mean(block: Padded) -> Float[Array, " entries"]:
    """The plain mean of the models, what every method makes of running statistics."""
    models = vectors(block._replace(base=None))
    return summed(models) / len(models)


def near_swap(block: Padded, t: Float[Array, ""], floor: Float[Array, ""]) -> Float[Array, " entries"]:
    """From the first model towards the second, by t at most: `npmerge.methods.NearSwap`, with a floor under differences."""
    first, second = vectors(block._replace(base=None))
    step = second - first
    share = jnp.minimum(t.astype(step.dtype) / jnp.maximum(jnp.abs(step), floor.astype(step.dtype)), 1)
    return first + share * step


def consensus(
    block: Padded, threshold: Float[Array, ""], agreement: Float[Array, ""], scale: Float[Array, ""]
) -> Float[Array, " entries"]:
    """The sum of the task vectors where enough tasks need it: `npmerge.methods.ConsensusTA`."""
    found = vectors(block)
    whole = summed(found)
    needed = [jnp.abs(x) > threshold.astype(x.dtype) * jnp.abs(whole - x) for x in found]
    enough = summed(x.astype(jnp.float32) for x in needed) >= agreement
    return moved(block, scale.astype(whole.dtype) * jnp.where(enough, whole, 0))


@partial(jax.jit, static_argnames=("formula", "dtype"))
def _merged(formula: Formula, block: Padded, numbers: tuple[Array, ...], dtype: str) -> Rounded:
    return rounded(formula(block, *numbers), dtype)
