"""The entries of a second model that matter most."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.linear import LinearMerge
from npmerge.stack import Stack
from npmerge.telling import tell


@dataclass(frozen=True)
class ArceeFusion(LinearMerge):
    """The second model where I >= median(I) + 1.5 (Q_3(I) - Q_1(I)), the first (mergekit's base) elsewhere, for each tensor.

    I = |params_1 - params_0| KL(softmax(params_1) || softmax(params_0)), the softmax over the inputs of an output channel
    (all axes but the last; a tensor of one axis is one vector), Q_1 and Q_3 the quartiles. `arcee_fusion` in mergekit, which
    takes the last axis of PyTorch: the same for matrices, the width of the kernel for convolutions, and features rather than
    tokens for embeddings. It adds 1e-8 to probabilities and takes quartiles of a random sample of larger tensors; here they
    are exact. As there a quartile is an entry, the lower one between two.

    Example:
        >>> first, second = {"w": jnp.ones(5)}, {"w": jnp.array([1.01, 1.02, 4.0, 0.99, 1.0])}
        >>> print(nm.ArceeFusion()(nm.stack_models([first, second]))["w"])  # only what stands out
        [1. 1. 4. 1. 1.]
    """

    models = (2, 2)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Coefficients 0 and 1, two per parameter. Raises ValueError unless there are two models."""
        self.require_models(stack)
        return jax.tree.map(_chosen, stack.params)


def _chosen(x: Float[Array, "2 ..."]) -> Float[Array, "2 ..."]:
    first, second = np.asarray(x, np.float64)
    tell(22 * first.size)  # two softmaxes of 5 each, what is made of them 8, finding quartiles about 4
    importance = np.abs(second - first) * _divergence(second, first)
    low, middle, high = np.quantile(importance, [0.25, 0.5, 0.75], method="lower")
    mask = importance >= middle + 1.5 * (high - low)
    return jnp.asarray(np.stack([~mask, mask]), jnp.float32)


def _divergence(p: Float[np.ndarray, "..."], q: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """KL(softmax(p) || softmax(q)) of each output channel."""
    from scipy.special import log_softmax  # takes a sixth of the time in which `npmerge merge` starts

    axes = tuple(range(p.ndim - 1)) if p.ndim > 1 else None
    log_p, log_q = log_softmax(p, axes), log_softmax(q, axes)
    return np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axes, keepdims=True), 0)
