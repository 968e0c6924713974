"""The layers of a merged network by gradient descent on the errors of all of them, as PLeaS was published."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from alignment.graph import PyTree
from npmerge.fitting.fit import quiet_fit as fit
from npmerge.least_squares.normal_equations import Errors, errors_of
from npmerge.least_squares.prepared import Prepared
from npmerge.least_squares.targets import Networks, Targets
from npmerge.linear_layers import Layer


@dataclass(frozen=True)
class Descent:
    """Adam on the mean squared errors of all sites jointly, its rate falling to zero along a cosine.

    Attributes:
        steps: one batch each.
        learning_rate: the first one.
        memory_limit: bytes for the features of the examples whose errors are found at once.
    """

    steps: int
    learning_rate: float
    memory_limit: float

    def __call__(self, found: Prepared, batches: list[tuple]) -> tuple[dict[str, Layer], dict[str, float], dict[str, float]]:
        """The layers that are better than at the start, and the relative errors of all before and after.

        Raises:
            ValueError: a descent that diverged.
        """
        names, targets = found.names, found.targets
        if not names:
            return {}, {}, {}
        start = found.layers.several(names, found.start)
        given = _Given(found.networks, start, {name: jnp.asarray(found.allowed(name)) for name in names})
        optimizer = optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps))
        result = fit(start, _JointError(targets), given, batches, optimizer, steps=self.steps)
        if result.status == "diverged":
            raise ValueError(f"the descent diverged: lower learning_rate={self.learning_rate}")
        ends = {name: given.masked(name, result.theta[name]) for name in names}
        total: Any = None
        for x in targets.pieces(names, found.networks, [x for x, *_ in batches], self.memory_limit):
            new = _errors(targets, given, ends, x)
            total = new if total is None else jax.tree.map(jnp.add, total, new)
        before, after = ({name: total[name][k].relative() for name in names} for k in range(2))
        better = {name: ends[name] for name in names if after[name] <= before[name]}
        return better, before, {name: min(after[name], before[name]) for name in names}


class _Given(NamedTuple):
    """What the descent does not move: the originals, the layers as they were, and the entries that may move."""

    networks: Networks
    start: dict[str, Layer]
    allowed: dict[str, Array]

    def masked(self, name: str, layer: Layer) -> Layer:
        """A layer with the entries of the start where it may not move."""
        return layer._replace(matrix=jnp.where(self.allowed[name], layer.matrix, self.start[name].matrix))


@dataclass(frozen=True)
class _JointError:
    """The sum over all sites of the mean squared error, as a loss for `fit`."""

    targets: Targets

    def __call__(self, theta: dict[str, Layer], given: _Given, batch: tuple) -> Array:
        pairs = self.targets.pairs(theta, given.networks, batch[0])
        missing = [errors_of(pairs[name], given.masked(name, layer)).missing for name, layer in theta.items()]
        return jnp.stack([m / pairs[name].outputs.size for m, name in zip(missing, theta, strict=True)]).sum()


@functools.partial(jax.jit, static_argnums=0)
def _errors(targets: Targets, given: _Given, ends: dict[str, Layer], x: PyTree) -> dict[str, tuple[Errors, Errors]]:
    """Of one batch, for every site, at the start and at the end."""
    pairs = targets.pairs(ends, given.networks, x)
    return {name: (errors_of(pairs[name], given.start[name]), errors_of(pairs[name], ends[name])) for name in ends}
