"""Soft permutations: doubly stochastic maps learned by gradient descent, hard at the end."""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from alignment.assignment import assign_copies
from alignment.base import Alignment, Stats
from alignment.checks import check_count, check_number
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree
from alignment.maps import Maps, NodeMap
from alignment.methods.starts import orders_of
from alignment.permutations import Order
from alignment.sinkhorn import sinkhorn
from alignment.weight_distance import weight_distance

Logits = dict[str, Float[Array | np.ndarray, "*copies n n"]]
SHARE = 0.9  # of each unit that is at its chosen place to begin with
EXACT = 1e3  # exp(-EXACT) is zero


@dataclass(frozen=True)
class SoftPermutation(Alignment):
    """Each node's map is a doubly stochastic matrix S = sinkhorn(X / temperature) of logits X, which are theta.

    "Re-basin via implicit Sinkhorn differentiation" (Pena et al. 2023): out axes take S, in axes S^T. `init` descends on the
    data-free loss of the paper, `weight_distance`. Its losses with data are learned by `npmerge.fit` on the same theta:
    `along_line(SoftPermutation(), graph, apply, objective)` at random points, at the midpoint with `interval=(0.5, 0.5)`.

    A soft map changes the function; `rounded`, which `align` calls, makes it the permutation that the logits prefer. Until
    then running statistics are mixed as units are (the published code permutes them). Models learn independently.

    Attributes:
        start: None for logits I + 0.1 N(0, 1), as published. An alignment by permutations for its result, softened: some 0.9
            of each unit at the place it chose and noise about it, at the last temperature.
        steps: of Adam in `init`; 0 for what `start` says.
        learning_rate: of Adam. One suits all networks, for Adam's epsilon is far below the gradients.
        temperature: the first and the last, geometric over the steps; `maps` uses the last.
        iterations: of Sinkhorn.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[1.0], [2.0]])}
        >>> b = {"up": jnp.array([[2.0, 1.0]]), "down": jnp.array([[2.0], [1.0]])}
        >>> graph, matching = alignment.trace(apply, a, jnp.ones((1, 1))), alignment.SoftPermutation(steps=20)
        >>> theta = matching.init(graph, [a, b])
        >>> matching.maps(theta, graph)[1]["up"].push.sum(0).round(3).tolist()  # doubly stochastic
        [1.0, 1.0]
        >>> matching.maps(matching.rounded(theta), graph)[1]["up"].push.tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    start: Alignment | None = None
    steps: int = 200
    learning_rate: float = 0.1
    temperature: tuple[float, float] = (1.0, 1.0)
    iterations: int = 30

    def __post_init__(self) -> None:
        if self.start is not None and not isinstance(self.start, Alignment):
            raise ValueError(f"start must be an alignment or None, got {self.start!r}")
        check_count("steps", self.steps, 0)
        check_number("learning_rate", self.learning_rate, positive=True)
        if not isinstance(self.temperature, tuple | list) or len(self.temperature) != 2:
            raise ValueError(f"temperature must be two positive numbers (first, last), got {self.temperature!r}")
        for temperature in self.temperature:
            check_number("temperature", temperature, positive=True)
        object.__setattr__(self, "temperature", tuple(self.temperature))  # a list has no hash
        check_count("iterations", self.iterations)

    @property
    def needs(self) -> tuple[type, ...]:
        """What the start needs."""
        return () if self.start is None else self.start.needs

    def init(
        self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None
    ) -> list[Logits]:
        """For each model, node -> logits (*copies, units, units); none for model 0."""
        orders = [{}, *orders_of(self.start, graph, models, stats=stats, key=key)[1:]]
        noise = jax.random.key(0) if key is None else key  # the same for every model, so that each is aligned on its own
        theta: list[Logits] = [{name: self._logits(name, o, noise) for name, o in model.items()} for model in orders]
        return _descended(self, graph, theta, tuple(models)) if self.steps and len(models) > 1 else theta

    def maps(self, theta: list[Logits], graph: Graph) -> Sequence[Maps]:
        """Push S, pull its transpose. Raises ValueError for logits that are not finite (unless traced)."""
        check_finite(theta, "logits")
        return [{name: self._map(jnp.asarray(logits)) for name, logits in model.items()} for model in theta]

    def rounded(self, theta: list[Logits]) -> list[Logits]:
        """Logits of the best assignment of these, so large that the maps are exactly 0 and 1. Raises ValueError as `maps`."""
        check_finite(theta, "logits")
        return [{name: self._hard(np.asarray(logits)) for name, logits in model.items()} for model in theta]

    def _map(self, logits: Float[Array, "*copies n n"]) -> NodeMap:
        s = sinkhorn(logits / self.temperature[1], iterations=self.iterations)
        return NodeMap(s, s.mT)

    def _logits(self, name: str, order: Order, key: Array) -> Float[Array, "*copies n n"]:
        n = order.shape[-1]
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), (*order.shape, n), jnp.float32)
        weight = 1.0 if self.start is None else np.log(max(n - 1, 1) * SHARE / (1 - SHARE))
        logits = np.float32(weight) * jax.nn.one_hot(order, n, dtype=jnp.float32) + 0.1 * noise
        return logits if self.start is None else self.temperature[1] * logits

    def _hard(self, logits: Float[np.ndarray, "*copies n n"]) -> Float[np.ndarray, "*copies n n"]:
        hard = np.eye(logits.shape[-1], dtype=logits.dtype)[assign_copies(logits)]
        return (EXACT * self.temperature[1] * hard).astype(logits.dtype)


def annealed(temperature: optax.Schedule) -> optax.GradientTransformation:
    """Lower the temperature of soft permutations while they are learned: X_(k+1) = X_k t_k / t_(k+1) + update.

    S depends on logits / temperature alone, so scaling the logits X is the schedule t relative to its own beginning. The
    update of step k is added behind it, as it is. The transformation goes last:
    `optax.chain(optax.adam(0.1), annealed(optax.exponential_decay(1.0, 100, 0.1)))` for theta of an alignment; where
    coefficients are learned too, `optax.masked(annealed(...), {"alignment": True, "merge": False})`.

    Args:
        temperature: step -> a positive number.

    Raises:
        ValueError: where it is updated without the parameters.

    Example:
        >>> theta = {"up": jnp.array([[1.0, 0.0], [0.0, 1.0]])}  # logits
        >>> optimizer = optax.chain(optax.sgd(0.1), alignment.annealed(lambda step: 0.5**step))
        >>> updates, _ = optimizer.update({"up": jnp.zeros((2, 2))}, optimizer.init(theta), theta)
        >>> optax.apply_updates(theta, updates)["up"].tolist()  # half the temperature: logits twice as large
        [[2.0, 0.0], [0.0, 2.0]]
    """

    def init(params: PyTree) -> optax.ScaleByScheduleState:
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: optax.ScaleByScheduleState, params: PyTree = None
    ) -> tuple[PyTree, optax.ScaleByScheduleState]:
        if params is None:
            raise ValueError("annealed scales the logits themselves: call update(updates, state, params)")
        following = optax.safe_increment(state.count)
        growth = jnp.asarray(temperature(state.count) / temperature(following) - 1, jnp.float32)
        scaled = jax.tree.map(lambda u, p: u + growth.astype(p.dtype) * p, updates, params)
        return scaled, optax.ScaleByScheduleState(count=following)

    return optax.GradientTransformation(init, update)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descended(alignment: SoftPermutation, graph: Graph, theta: list[Logits], models: tuple) -> list[Logits]:
    optimizer = optax.adam(alignment.learning_rate, eps=1e-16)  # gradients of a mean over all weights are tiny
    first, last = alignment.temperature

    def loss(theta: list[Logits], sharpness: Array) -> Array:
        return weight_distance(alignment, graph, jax.tree.map(lambda x: sharpness * x, theta), models)

    def step(carry: tuple, sharpness: Array) -> tuple[tuple, None]:
        theta, state = carry
        with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
            updates, state = optimizer.update(jax.grad(loss)(theta, sharpness), state)
        return (optax.apply_updates(theta, updates), state), None

    sharpness = jnp.geomspace(last / first, 1, alignment.steps, dtype=jnp.float32)  # relative to the temperature of `maps`
    return jax.lax.scan(step, (theta, optimizer.init(theta)), sharpness)[0][0]
