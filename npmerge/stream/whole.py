"""The kernel of the methods that need a tensor as a whole: those of `npmerge.methods` on a stack of this one tensor."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from npmerge.base import Merge
from npmerge.linear import LinearMerge, combine
from npmerge.recipe.plan import Step
from npmerge.stack import Stack
from npmerge.stream.arrays import Rounded, filled, joined, padded_length, precise, rounded, told
from npmerge.stream.blocks import BLOCK, Block, Merged, Tensor
from npmerge.task_vectors.spectral import Spectral


@dataclass(frozen=True)
class Whole:
    """A method of `npmerge.methods`.

    Attributes:
        method: with scale 1 if it is a spectral one, so that one program serves all scales.
        scale: of a spectral method.
        output: the axis of the outputs, first on disk; it comes last, where methods have it.
    """

    method: Merge
    scale: float = 1.0
    output: int = 0
    in_blocks = False

    def survey(self, tensor: Tensor) -> None:
        """Nothing."""

    def merge(self, block: Block, surveyed: None, step: Step) -> Merged:
        """See `Kernel`. Raises ValueError where the method does."""
        with precise(block):
            stack = self._stack(block, step)
            theta = self.method.init(stack)
            if isinstance(self.method, Spectral):
                theta = jax.tree.map(lambda one: one * np.float32(self.scale), theta)
            found = _applied(None if isinstance(self.method, LinearMerge) else self.method, theta, stack)[step.name]
            return in_parts(np.moveaxis(np.asarray(found), -1, self.output).reshape(-1), step.dtype)

    def _stack(self, block: Block, step: Step) -> Stack:
        wide = jnp.float64 if any(x.dtype == np.float64 for x in block.models) else jnp.float32

        def turned(x: np.ndarray) -> Array:
            return jnp.asarray(np.moveaxis(x.reshape(step.shape or (1,)), self.output, -1)).astype(wide)

        base = {step.name: turned(block.base)} if self.method.needs_base and block.base is not None else None
        return Stack({step.name: jnp.stack([turned(x) for x in block.models])}, base)


@partial(jax.jit, static_argnums=0)
def _applied(method: Merge | None, theta: dict, stack: Stack) -> dict:
    """A linear one's coefficients, which need not know what they are of, or what a method makes of its theta."""
    return combine(theta, stack) if method is None else method.apply(theta, stack)


def in_parts(values: Float[np.ndarray, " entries"], dtype: str) -> Merged:
    """Rounded block by block."""
    parts = []
    for start in range(0, max(len(values), 1), BLOCK):
        part = values[start : start + BLOCK]
        parts.append(told(_rounded(filled(part, padded_length(len(part))), dtype), len(part), dtype))
    return joined(parts)


@partial(jax.jit, static_argnames="dtype")
def _rounded(values: Float[Array, " entries"], dtype: str) -> Rounded:
    return rounded(values, dtype)
