"""Merging of singular vectors of several tasks made orthogonal to each other."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from npmerge.task_vectors.spectral import Spectral, leading, polar


@dataclass(frozen=True)
class TsvM(Spectral):
    """base + scale * polar(U) diag(sigma) polar(V)^T for each matrix (Gargiulo et al. 2025, Task Singular Vectors Merging).

    U, sigma and V are the first floor(min(out, in) / N) singular triples of each of the N task vectors, side by side;
    polar(U), the nearest matrix with orthonormal columns, takes the interference between tasks out. Of matrices with fewer
    directions than tasks one triple per task is taken, where the published program takes none and leaves the base. Triples
    whose value is zero are left out. Of one task it is the task. Tensors that are no matrices are averaged. Needs a base.

    Example:
        >>> for second in ([0.0, 2.0], [2.0, 0.0]):  # tasks in directions of their own, and two in one direction
        ...     models = [{"w": jnp.diag(jnp.array([4.0, 0.0]))}, {"w": jnp.diag(jnp.array(second))}]
        ...     stack = nm.stack_models(models, base={"w": jnp.zeros((2, 2))})
        ...     print(np.array(jnp.diag(nm.TsvM()(stack)["w"])).round(3))
        [4. 2.]
        [3. 0.]
    """

    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """The tasks' strongest directions, orthogonalised."""
        each = max(min(tau.shape[1:]) // len(tau), 1)
        u, s, vt = leading(tau, each, jnp.linalg.norm(tau))
        return polar(u) * s[None] @ polar(vt)
