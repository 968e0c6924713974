"""Merging without interference between task vectors."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import check_count, check_number
from npmerge.task_vectors.spectral import Spectral, svd


@dataclass(frozen=True)
class Wudi(Spectral):
    """base + scale * argmin_W sum_m |(W - tau_m) tau_m^T|^2 / |tau_m|^2 for each matrix (Cheng et al. 2025, WUDI-Merging).

    The published program takes 300 to 400 steps of Adam at 1e-5 from the sum of the task vectors, which stop early: with
    `iterations` that is done, by default the result is the minimum itself. It is RegMean on task vectors with the Gram
    matrices G_m = tau_m^T tau_m / |tau_m|^2, the solution of sum_m (W - tau_m) G_m = 0, but solved as the least squares problem
    that it is, with the pseudo-inverse of the task vectors side by side, whose condition is the square root of that of the Gram
    matrices. No ridge: inputs that no task vector has, up to rounding, are those of the mean (of the sum, if one stops early).
    Tensors that are no matrices are averaged. Needs a base.

    Attributes:
        iterations: steps from the sum, published 300; 0 is the sum itself, None the minimum. Steps of Adam are as long whatever
            the task vectors, so that `scale` then multiplies these rather than what is made of them.
        rate: of Adam, published 1e-5.

    Example:
        >>> models = [{"w": jnp.array([[3.0], [0.0]])}, {"w": jnp.array([[0.0], [2.0]])}]  # (in, out): inputs of their own
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros((2, 1))})
        >>> print(np.array(nm.Wudi()(stack)["w"]).round(3))  # both whole: they do not interfere
        [[3.]
         [2.]]
    """

    iterations: int | None = None
    rate: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("rate", self.rate)
        if self.iterations is not None:
            check_count("iterations", self.iterations, 0)

    def matrix(self, tau: Float[Array, "models out in"]) -> Float[Array, "out in"]:
        """The mean, and what its residuals call for: W = mean + residuals (rows^T)^+; or steps from the sum."""
        square, mean = (tau**2).sum((1, 2), keepdims=True), tau.mean(0)
        rows = tau / jnp.sqrt(jnp.where(square > 0, square, 1))
        if self.iterations is not None:
            return _descended(tau, rows, self.iterations, self.rate)
        residuals = (tau - mean[None]) @ rows.mT
        u, s, vt = svd(rows.reshape(-1, rows.shape[-1]))
        cutoff = s.max() * max(u.shape[0], vt.shape[1]) * float(jnp.finfo(s.dtype).eps)
        inverse = jnp.where(s > cutoff, 1 / jnp.where(s > cutoff, s, 1), 0)
        return mean + jnp.moveaxis(residuals, 0, 1).reshape(len(mean), -1) @ u * inverse[None] @ vt


def _descended(tau: Array, rows: Array, iterations: int, rate: float) -> Float[Array, "out in"]:
    """So many steps of Adam (betas 0.9 and 0.999, epsilon 1e-8) from the sum of the task vectors."""

    def step(state: tuple[Array, Array, Array], t: Array) -> tuple[tuple[Array, Array, Array], None]:
        w, first, second = state
        gradient = 2 * ((w[None] - tau) @ rows.mT @ rows).sum(0)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        some = second > 0  # the root has no derivative at zero
        size = jnp.where(some, jnp.sqrt(jnp.where(some, second, 1) / (1 - 0.999**t)), 0)
        return (w - rate * first / (1 - 0.9**t) / (size + 1e-8), first, second), None

    start, steps = tau.sum(0), jnp.arange(1, iterations + 1, dtype=tau.dtype)
    return jax.lax.scan(step, (start, jnp.zeros_like(start), jnp.zeros_like(start)), steps)[0][0]
