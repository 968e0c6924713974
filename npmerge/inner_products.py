"""Coefficients from inner products: a merge in the span of the models follows from the Gram matrix of each tensor.

Spherical means and Model Stock are nonlinear in the models but linear combinations of them, and the coefficients depend on
norms and angles only. These are N x N numbers per tensor: `init` finds them on the host in float64, whatever the size of
the tensor, and the merge is a choice of coefficients that `Learned` can start from.
"""

import abc
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.base import Merge, Stats
from npmerge.linear import LinearMerge
from npmerge.stack import Stack
from npmerge.telling import tell
from npmerge.weights import Weights, check_weights, shares_of


class Angles(NamedTuple):
    """Lengths and angles of the models' vectors, a group of N vectors for each that the tensor is made of.

    Attributes:
        path: of the tensor, for messages.
        norms: the lengths; in a group whose coefficients are asked for not all are zero.
        cosines: of the angles between each two; 0 with a vector of length zero.
    """

    path: str
    norms: Float[np.ndarray, "groups models"]
    cosines: Float[np.ndarray, "groups models models"]


class Angular(LinearMerge):
    """A merge whose coefficients follow from the lengths of the models' vectors and the angles between them.

    A tensor is one vector, or with `per_channel` each of its output channels (the last axis) is; one of a single axis is one
    vector all the same. With `task_vectors` they are the differences from the base. Subclasses are frozen dataclasses that
    write `coefficients`, and may have these two and `weights`, one number per model, as fields.
    """

    weights: Weights = None
    task_vectors: bool = False
    per_channel: bool = False

    def __post_init__(self) -> None:
        """Check the weights."""
        super().__post_init__()
        object.__setattr__(self, "weights", check_weights(self, self.weights))

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether task vectors are merged."""
        return self.task_vectors

    @abc.abstractmethod
    def coefficients(self, angles: Angles, shares: Float[np.ndarray, " models"]) -> Float[np.ndarray, "groups models"]:
        """Of the models, by their angles and their shares."""

    def shares(self, stack: Stack) -> Float[np.ndarray, " models"]:
        """The weights divided by their sum.

        They are the coefficients where there are no angles: of single numbers, of running statistics, and where all models that
        have a share are zero.
        """
        return shares_of(self, self.weights, stack)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One coefficient per model and tensor, or channel.

        Raises:
            ValueError: another number of models than the method merges, or of weights than of models; weights that sum to zero;
                task vectors without a base; tensors for which the method is undefined, such as opposite ones (the path).
        """
        if self.needs_base:
            self.require_base(stack)
        self.require_models(stack)
        shares, bases = self.shares(stack), [stack.base] if self.needs_base else []
        return jax.tree_util.tree_map_with_path(
            lambda path, *x: self._of_tensor(path_name(path), shares, *x), stack.params, *bases
        )

    def _of_tensor(
        self, path: str, shares: Float[np.ndarray, " models"], x: Float[Array, "models ..."], base: Array | None = None
    ) -> Float[Array, "models ..."]:
        vectors = _vectors(x, base, split=self.per_channel and x.ndim > 2)
        c = np.array(np.broadcast_to(shares, vectors.shape[:2]))
        if not is_statistic(path) and vectors.shape[2] > 1:
            angles = _angles(path, vectors)
            some = (angles.norms * shares).any(1)
            if some.any():
                c[some] = self.coefficients(Angles(path, angles.norms[some], angles.cosines[some]), shares)
        shape = (len(x),) + (1,) * (x.ndim - 2) + (-1,) * (x.ndim > 1)
        return jnp.asarray(c.T.reshape(shape), jnp.float32)


def _vectors(x: Array, base: Array | None, *, split: bool) -> Float[np.ndarray, "groups models size"]:
    flat = np.asarray(x, np.float64) - (0 if base is None else np.asarray(base, np.float64))
    return np.moveaxis(flat.reshape(len(flat), -1, flat.shape[-1] if split else 1), 2, 0)


def _angles(path: str, vectors: Float[np.ndarray, "groups models size"]) -> Angles:
    gram = vectors @ vectors.swapaxes(1, 2)
    tell(2 * gram.size * vectors.shape[2])
    norms = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    product = norms[:, :, None] * norms[:, None, :]
    return Angles(path, norms, np.clip(np.divide(gram, product, out=np.zeros_like(gram), where=product > 0), -1, 1))


def arc(merge: Merge, angles: Angles, t: float, *, linear_from: float) -> Float[np.ndarray, "groups 2"]:
    """sin((1-t) omega) / sin(omega) and sin(t omega) / sin(omega) for two models, omega the angle between them.

    Linear, 1 - t and t, from |cos omega| = `linear_from` on, and with a vector of length zero.

    Raises:
        ValueError: opposite vectors, which no one arc joins.
    """
    cosine = angles.cosines[:, 0, 1]
    if (cosine < -1 + 1e-6).any():
        raise ValueError(f"{type(merge).__name__} is undefined for opposite tensors, as those at {angles.path!r} are")
    linear = ((np.abs(cosine) >= linear_from) | ~angles.norms.all(1))[:, None]
    omega = np.arccos(np.where(linear, 0.0, cosine[:, None]))
    ends = np.array([1 - t, t])
    return np.where(linear, ends, np.sin(ends * omega) / np.where(linear, 1.0, np.sin(omega)))


def on_sphere(
    merge: Merge,
    angles: Angles,
    shares: Float[np.ndarray, " models"],
    combination: Float[np.ndarray, "groups models"],
) -> Float[np.ndarray, "groups models"]:
    """The coefficients that bring a combination of the models' directions to the weighted mean of the models' lengths.

    Args:
        merge: named in the message.
        angles: of the models.
        shares: the weights of the mean, in which a model of length zero counts.
        combination: one number for each direction, 0 for a model of length zero.

    Raises:
        ValueError: the directions cancel out.
    """
    scale = (angles.norms @ shares)[:, None] / np.where(angles.norms > 0, angles.norms, np.inf)
    return scale * unit(merge, angles, combination)


def unit(merge: Merge, angles: Angles, combination: Float[np.ndarray, "groups models"]) -> Float[np.ndarray, "groups models"]:
    """A combination of directions divided by its length. Raises ValueError if the directions cancel out."""
    length = length_of(combination, angles)
    if (length <= 1e-6 * np.abs(combination).sum(1, keepdims=True)).any():
        raise ValueError(f"{type(merge).__name__} is undefined for opposite tensors, as those at {angles.path!r} are")
    return combination / length


def length_of(combination: Float[np.ndarray, "groups models"], angles: Angles) -> Float[np.ndarray, "groups 1"]:
    """The length of a combination of the models' directions."""
    square = np.einsum("gi,gij,gj->g", combination, angles.cosines, combination)
    return np.sqrt(np.maximum(square, 0))[:, None]
