"""Isotropic merging in the common and in task-specific subspaces."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import check_fraction
from npmerge.task_vectors.spectral import Spectral, Triples, isotropic, leading, polar


@dataclass(frozen=True)
class IsoCTS(Spectral):
    """base + scale * mean(sigma) polar(U) polar(V)^T for each matrix (Marczak et al. 2025, algorithm 2).

    U, sigma and V are the first singular triples of the sum of the task vectors, the common part, and beside them the first
    ones of each task vector less its projection onto the common U. polar(U) is the nearest matrix with orthonormal columns.
    With `common` = 1 it is `IsoC`. As in the published program each task has the same number, min(out, in) (1 - common) / N
    rounded, here never more than there are; triples whose value is zero up to rounding are left out, here too. Tensors that
    are no matrices are averaged. Needs a base.

    Attributes:
        common: the share of the common part in min(out, in), published 0.8.

    Example:
        >>> models = [{"w": jnp.diag(jnp.array([4.0, 1.0, 0.0]))}, {"w": jnp.diag(jnp.array([4.0, -1.0, 2.0]))}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros((3, 3))})
        >>> for merge in (nm.IsoC(), nm.IsoCTS(common=0.4)):  # a direction that cancels out in the sum is kept
        ...     print(np.array(jnp.diag(merge(stack)["w"])).round(3))
        [5. 0. 5.]
        [3.667 3.667 3.667]
    """

    common: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("common", self.common)

    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """Common and specific directions, orthogonalised and equally strong."""
        rank, size = min(tau.shape[1:]), jnp.linalg.norm(tau)
        each = min(round((rank - int(rank * self.common)) / len(tau)), rank // len(tau))
        common = leading(tau.sum(0)[None], rank - each * len(tau), size)
        specific = leading(tau - common.u @ (common.u.T @ tau), each, size)
        u = jnp.concatenate([common.u, specific.u], axis=1)
        vt = jnp.concatenate([common.vt, specific.vt])
        return isotropic(Triples(polar(u), jnp.concatenate([common.s, specific.s]), polar(vt)))
