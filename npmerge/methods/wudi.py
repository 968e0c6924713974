"""Merging without interference between task vectors."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from npmerge.spectral import Spectral, svd


@dataclass(frozen=True)
class Wudi(Spectral):
    """base + scale * argmin_W sum_m |(W - tau_m) tau_m^T|^2 / |tau_m|^2 for each matrix (Cheng et al. 2025, WUDI-Merging).

    The published program takes 300 to 400 steps of Adam at 1e-5 from the sum of the task vectors, which stop early; this is the
    minimum itself. It is RegMean on task vectors with the Gram matrices G_m = tau_m^T tau_m / |tau_m|^2, the solution of
    sum_m (W - tau_m) G_m = 0, but solved as the least squares problem that it is, with the pseudo-inverse of the task vectors
    side by side, whose condition is the square root of that of the Gram matrices. No ridge: inputs that no task vector has, up
    to rounding, are those of the mean. Tensors that are no matrices are averaged. Needs a base.
    """

    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """The mean, and what its residuals call for: W = mean + residuals (rows^T)^+."""
        square, mean = (tau**2).sum((1, 2), keepdims=True), tau.mean(0)
        rows = tau / jnp.sqrt(jnp.where(square > 0, square, 1))
        residuals = (tau - mean[None]) @ rows.mT
        u, s, vt = svd(rows.reshape(-1, rows.shape[-1]))
        cutoff = s.max() * max(u.shape[0], vt.shape[1]) * float(jnp.finfo(s.dtype).eps)
        inverse = jnp.where(s > cutoff, 1 / jnp.where(s > cutoff, s, 1), 0)
        return mean + jnp.moveaxis(residuals, 0, 1).reshape(len(mean), -1) @ u * inverse[None] @ vt
