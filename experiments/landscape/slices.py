"""The loss on a plane through three networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import npmerge as nm
from alignment.graph import PyTree, weights_of
from experiments.problem import Trained


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane through three networks: origin + x first + y second, with axes at right angles, in the length of weights.

    Attributes:
        origin: the first network.
        first: of length 1, towards the second network.
        second: of length 1, at right angles to it, towards the third; zero where the three lie on one line.
        corners: (x, y) of the three networks.
    """

    origin: PyTree
    first: PyTree
    second: PyTree
    corners: tuple[tuple[float, float], ...]

    def at(self, x: float, y: float) -> PyTree:
        """The network at a point."""
        return _combined(self.origin, self.first, self.second, np.float32(x), np.float32(y))


def through(a: PyTree, b: PyTree, c: PyTree) -> Plane:
    """The plane through three networks. Running statistics are taken along, but lengths are those of weights.

    Raises:
        ValueError: if the first two are the same.
    """
    first, second = _minus(b, a), _minus(c, a)
    length = np.sqrt(_inner(first, first))
    if not length > 0:
        raise ValueError("a plane goes through three networks: got the same one twice")
    first = jax.tree.map(lambda x: x / np.float32(length), first)
    along = _inner(first, second)
    second = jax.tree.map(lambda x, y: x - np.float32(along) * y, second, first)
    height = np.sqrt(_inner(second, second))
    scale = np.float32(1 / height if height > 1e-6 * length else 0)
    second = jax.tree.map(lambda x: scale * x, second)
    return Plane(a, first, second, ((0.0, 0.0), (length, 0.0), (along, height)))


def grid(plane: Plane, side: int, *, margin: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates that reach beyond the three networks by a fraction of their distances, on both axes."""
    x, y = np.array(plane.corners).T
    wide, high = np.ptp(x), max(np.ptp(y), 0.25 * np.ptp(x))
    return (
        np.linspace(x.min() - margin * wide, x.max() + margin * wide, side),
        np.linspace(y.min() - margin * high, y.min() + (1 + margin) * high, side),
    )


def losses(plane: Plane, xs: np.ndarray, ys: np.ndarray, outputs: Trained, batches: Sequence[tuple]) -> list[list[float]]:
    """The loss at each point, a row for each y. BatchNorm takes the statistics of each batch, as in training.

    Args:
        plane: the plane.
        xs: coordinates along its first axis.
        ys: along its second.
        outputs: the network in training mode.
        batches: what the loss is measured on.
    """
    return [[round(loss_of(outputs, plane.at(x, y), batches), 4) for x in xs] for y in ys]


def loss_of(outputs: Trained, variables: PyTree, batches: Sequence[tuple]) -> float:
    """In nats, on the statistics of each batch."""
    return nm.evaluate(outputs, variables, batches).loss


def _inner(a: PyTree, b: PyTree) -> float:
    pairs = zip(weights_of(a).values(), weights_of(b).values(), strict=True)
    return float(sum(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs))


def _minus(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.subtract, a, b)


@jax.jit
def _combined(origin: PyTree, first: PyTree, second: PyTree, x: Float[Array, ""], y: Float[Array, ""]) -> Any:
    return jax.tree.map(lambda o, a, b: o + x * a + y * b, origin, first, second)
