"""Centred kernel alignment: how similar two representations of the same inputs are, whatever their units."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.activations.moments import Statistic, by_fixed_copy
from alignment.activations.taps import capture
from alignment.graph import Graph, PyTree

HIGHEST = jax.lax.Precision.HIGHEST
FEW = 2048
"""Up to so many samples the unbiased HSIC is taken of their kernel matrices, where one far sample does not drown the others."""


@functools.partial(jax.jit, static_argnames="unbiased")
def linear_cka(x: Float[Array, "samples n"], y: Float[Array, "samples m"], *, unbiased: bool = True) -> Float[Array, ""]:
    """Linear CKA of two sets of features of the same samples, HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)).

    1 for the same features up to rotation, shift and one common scale, about 0 for independent ones (Kornblith et al. 2019).
    The unbiased HSIC of Song et al. (2012, equation 5) leaves the diagonals out; the biased one, |Y^T X|_F^2 of centred
    features, is far from 0 for independent noise when there are fewer samples than units. Differentiable; 0 where one side is
    constant, NaN where one is not finite.

    It is quadratic in the features, so a few large directions decide it: one translated sample, or one loud unit that the next
    layer does not even read, moves CKA as far as one likes and the function not at all (Davari et al. 2023). Read it beside
    a measure of the function. With more than 2048 samples a sample some 1e3 times as far out as the others is lost in rounding.

    Raises:
        ValueError: unless both are (samples, units) with the same number of samples, at least four (biased: two).

    Example:
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
        >>> turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
        >>> print(f"{alignment.linear_cka(x, 2 * x @ turn + 5):.2f}, {abs(alignment.linear_cka(x, noise)) < 0.1}")
        1.00, True
    """
    _check(x, y, unbiased)
    a, b = _unit(_centred(x)), _unit(_centred(y))
    return _ratio(*(_linear_hsic(*pair, unbiased) for pair in ((a, b), (a, a), (b, b))))


@functools.partial(jax.jit, static_argnames=("sigma", "unbiased"))
def rbf_cka(
    x: Float[Array, "samples n"], y: Float[Array, "samples m"], *, sigma: float = 1.0, unbiased: bool = True
) -> Float[Array, ""]:
    """CKA with the kernel exp(-|x_i - x_j|^2 / (2 s^2)), s^2 the median squared distance of each side times sigma^2.

    Large sigma tends to the linear one, small sigma looks at near neighbours only (Kornblith et al. 2019, section 5.1, use 0.4
    and 0.8). The kernel matrices (samples, samples) are built.

    Raises:
        ValueError: as `linear_cka`, or for a sigma that is not positive.

    Example:
        >>> x, noise = np.random.default_rng(0).normal(size=(2, 100, 3)).astype(np.float32)
        >>> print(f"{alignment.rbf_cka(x, 2 * x + 5):.2f}, {abs(alignment.rbf_cka(x, noise)) < 0.1}")
        1.00, True
    """
    if not sigma > 0:
        raise ValueError(f"sigma is a fraction of the median distance and must be positive, got {sigma}")
    _check(x, y, unbiased)
    k, m = _gaussian(_unit(_centred(x)), sigma), _gaussian(_unit(_centred(y)), sigma)
    return _ratio(*(_hsic(a, b, unbiased=unbiased) for a, b in ((k, m), (k, k), (m, m))))


class HSICs(NamedTuple):
    """Sums of HSICs over batches: of model 0 with each model, and of each model with itself."""

    cross: Float[Array, "models ..."]
    own: Float[Array, "models ..."]


@dataclass(frozen=True)
class MinibatchCKA(Statistic):
    """Linear CKA of every node of model 0 with the same node of each model, over batches (Nguyen et al. 2021, equation 2).

    The unbiased HSICs of every batch are averaged separately, weighted by samples, and only then divided: the average of ratios
    would depend on the batch size. One batch gives `linear_cka` of all its samples. Finalised to node -> (models,), the first
    of which is 1; the steps of a loop are further axes (models, *steps), heads are laid end to end. Every position of an image
    or a sequence counts as a sample. Kernel matrices of all samples are built for batches of up to 2048 of them only. HSICs are
    fourth powers of features: features beyond 1e9 leave the range of float32 (NaN).

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
        >>> b = {"up": 3 * jnp.eye(2)[:, ::-1], "down": jnp.ones((2, 1))}
        >>> x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
        >>> graph, batches = alignment.trace(apply, a, x), [(x[:20], None), (x[20:], None)]
        >>> found = nm.collect(apply, graph, [a, b], batches, [alignment.MinibatchCKA()])[alignment.MinibatchCKA]
        >>> print(found["up"].round(3))  # of a with itself and with b: the order and one common scale do not matter
        [1. 1.]
    """

    reads = frozenset({"activations"})

    def measure(self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple) -> dict[str, HSICs]:
        """The three HSICs of one batch, times its samples."""
        found = [capture(apply, graph, model, batch[0]).nodes for model in models]
        return {node: hsics_of(node, [by_fixed_copy(graph, node, f[node]) for f in found]) for node in graph.taps}

    def combine(self, a: dict[str, HSICs], b: dict[str, HSICs]) -> dict[str, HSICs]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: dict[str, HSICs]) -> dict[str, Float[Array, "models ..."]]:
        """The ratios."""
        return {node: _ratio(h.cross, jnp.broadcast_to(h.own[:1], h.own.shape), h.own) for node, h in state.items()}


def hsics_of(node: str, features: Sequence[Float[Array, "*steps samples units"]]) -> HSICs:
    """Unbiased HSICs of the features of several models at the same samples, times the number of these.

    Raises:
        ValueError: fewer than four samples; it names the node.
    """
    samples = features[0].shape[-2]
    if samples < 4:
        raise ValueError(f"MinibatchCKA needs at least four samples in every batch, got {samples} of node {node!r}")
    hsic = jnp.vectorize(lambda x, y: _linear_hsic(x, y, True), signature="(n,k),(n,k)->()")
    centred = [_centred(f) for f in features]
    pairs = [(hsic(centred[0], x), hsic(x, x)) for x in centred]
    return HSICs(*(samples * jnp.stack(values) for values in zip(*pairs, strict=True)))


def _check(x: Array, y: Array, unbiased: bool) -> None:
    least = 4 if unbiased else 2
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < least:
        raise ValueError(
            f"CKA takes features (samples, units) of the same samples, at least {least}: got {x.shape} and {y.shape}"
        )


def _centred(x: Float[Array, "*steps samples units"]) -> Float[Array, "*steps samples units"]:
    """Minus the mean of each unit; exactly zero for constant ones."""
    x = x.astype(jnp.float32)
    mean = x.mean(-2, keepdims=True)
    constant = jnp.abs(x - mean).max(-2, keepdims=True) <= 1e-6 * jnp.abs(mean)
    return jnp.where(constant, 0.0, x - mean)


def _unit(x: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Over the largest absolute value, so that no fourth power leaves the range of float32. CKA does not see the scale."""
    largest = jax.lax.stop_gradient(jnp.abs(x).max(initial=0))
    return x / jnp.where(largest == 0, 1.0, largest)


def _gaussian(x: Float[Array, "n units"], sigma: float) -> Float[Array, "n n"]:
    """The kernel matrix."""
    square = jnp.sum(jnp.square(x), 1)
    distance = square[:, None] + square[None, :] - 2 * jnp.matmul(x, x.T, precision=HIGHEST)
    distance = jnp.where(jnp.eye(len(x), dtype=bool), 0.0, jnp.maximum(distance, 0))
    median = jnp.median(distance[jnp.triu_indices(len(x), 1)])
    return jnp.exp(-distance / (2 * sigma**2 * jnp.where(median > 0, median, 1.0)))


def _linear_hsic(x: Float[Array, "n k"], y: Float[Array, "n m"], unbiased: bool) -> Float[Array, ""]:
    """Of centred features, from the smaller of feature and sample products."""
    n = float(len(x))  # its square is beyond what an integer of 32 bits holds
    if unbiased and n <= FEW:
        return _hsic(*(jnp.matmul(f, f.T, precision=HIGHEST) for f in map(_about_median, (x, y))), unbiased=True)
    if n**2 < x.shape[1] * y.shape[1]:
        overlap = jnp.sum(jnp.matmul(x, x.T, precision=HIGHEST) * jnp.matmul(y, y.T, precision=HIGHEST))
    else:
        overlap = jnp.sum(jnp.square(jnp.matmul(x.T, y, precision=HIGHEST)))
    if not unbiased:
        return overlap / (n - 1) ** 2
    # the rows of centred kernels sum to zero, which leaves this of the three terms of `_hsic`
    p, q = jnp.sum(jnp.square(x), 1), jnp.sum(jnp.square(y), 1)
    return (overlap - n / (n - 2) * jnp.sum(p * q) + p.sum() * q.sum() / ((n - 1) * (n - 2))) / (n * (n - 3))


def _about_median(x: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Centred so that one far sample leaves the others where they are: the unbiased HSIC does not see what is subtracted."""
    return x - jax.lax.stop_gradient(jnp.median(x, axis=0, keepdims=True))


def _hsic(k: Float[Array, "n n"], m: Float[Array, "n n"], *, unbiased: bool) -> Float[Array, ""]:
    """HSIC of two kernel matrices: tr(K H M H) / (n-1)^2, or without their diagonals (Song et al. 2012, equation 5).

    [tr(K M) + sum(K) sum(M) / ((n-1)(n-2)) - 2/(n-2) 1^T K M 1] / (n(n-3)).
    """
    n = float(len(k))
    if not unbiased:
        centred = k - k.mean(0, keepdims=True) - k.mean(1, keepdims=True) + k.mean()
        return jnp.sum(centred * m) / (n - 1) ** 2
    k, m = (jnp.where(jnp.eye(len(kernel), dtype=bool), 0.0, kernel) for kernel in (k, m))
    rows = jnp.sum(k, 1), jnp.sum(m, 1)
    total = jnp.sum(k * m) - 2 / (n - 2) * jnp.sum(rows[0] * rows[1])
    return (total + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2))) / (n * (n - 3))


def _ratio(cross: Array, x: Array, y: Array) -> Array:
    """HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), 0 where one side does not vary, NaN where one of the three is."""
    varies = ((x > 0) & (y > 0)) | jnp.isnan(cross + x + y)
    return jnp.where(varies, cross / jnp.sqrt(jnp.where(varies, x, 1.0)) / jnp.sqrt(jnp.where(varies, y, 1.0)), 0.0)
