"""Isotropic merging in the common subspace."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from npmerge.task_vectors.spectral import Spectral, isotropic, leading


@dataclass(frozen=True)
class IsoC(Spectral):
    """base + scale * mean(sigma) U V^T, U diag(sigma) V^T the sum of the task vectors, for each matrix (Marczak et al. 2025).

    Iso-C, algorithm 1: all directions of the sum are made equally strong. Directions in which it is zero up to rounding stay
    zero and do not count in the mean; the published program gives the mean over all min(out, in) to them too, whatever vectors
    the decomposition finds there. Tensors that are no matrices are averaged. Needs a base.

    Example:
        >>> models = [{"w": jnp.diag(jnp.array([4.0, 0.0]))}, {"w": jnp.diag(jnp.array([0.0, 2.0]))}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros((2, 2))})
        >>> print(np.array(nm.IsoC()(stack)["w"]).round(3))  # both directions as strong as their mean
        [[3. 0.]
         [0. 3.]]
    """

    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """The sum with equal singular values."""
        return isotropic(leading(tau.sum(0)[None], min(tau.shape[1:]), jnp.linalg.norm(tau)))
