"""A small flow that makes images of a category in a style, adapters of low rank for it, and a classifier that judges them."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from alignment.graph import PyTree, flatten, path_name
from npmerge.lora_stack import Factors
from npmerge.models import Config
from npmerge.models.layers import Attention, FeedForward, embedding, gelu, layer_norm, linear

FREQUENCIES = 8
"""Of the sines and cosines that tell the network the time."""


@dataclass(frozen=True)
class Flow(Config):
    """A transformer on patches that returns the velocity of a rectified flow (Liu et al. 2023).

    It reads a mapping: "x" (n, side, side, channels), "noise" likewise, "t" (n,) from 0 to 1, "category" and "domain" (n,);
    it sees (1 - t) noise + t x.

    Attributes:
        categories: rows of their embedding.
        domains: rows of theirs.
        side: height and width of the images.
        channels: of the images.
        width: features of a token.
        layers: number of blocks.
        patch: height and width of a patch.
    """

    categories: int
    domains: int
    side: int = 16
    channels: int = 3
    width: int = 48
    layers: int = 2
    patch: int = 4

    @property
    def input_shape(self) -> tuple[int, ...]:
        """That of an image."""
        return (self.side, self.side, self.channels)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Flow(self, rngs)


class _Block(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = layer_norm(width, 1e-6, rngs), layer_norm(width, 1e-6, rngs)
        self.attention = Attention(width, max(width // 16, 1), rngs)
        self.feed_forward = FeedForward(width, 2 * width, gelu, rngs)

    def __call__(self, x: Float[Array, "n t width"]) -> Float[Array, "n t width"]:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class _Flow(nnx.Module):
    def __init__(self, config: Flow, rngs: nnx.Rngs):
        self.config, width = config, config.width
        values = config.patch**2 * config.channels
        tokens = (config.side // config.patch) ** 2
        self.patches = linear(values, width, rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, width)))
        self.time = linear(2 * FREQUENCIES, width, rngs)
        self.category, self.domain = embedding(config.categories, width, rngs), embedding(config.domains, width, rngs)
        self.condition = linear(width, width, rngs)
        self.blocks = nnx.List([_Block(width, rngs) for _ in range(config.layers)])
        self.norm = layer_norm(width, 1e-6, rngs)
        self.head = linear(width, values, rngs)

    def __call__(self, inputs: Mapping[str, Array]) -> Float[Array, "n side side channels"]:
        t = inputs["t"][:, None, None, None]
        x = (1 - t) * inputs["noise"] + t * inputs["x"]
        angles = inputs["t"][:, None] * (2.0 ** jnp.arange(FREQUENCIES, dtype=jnp.float32) * jnp.pi / 2)[None]
        time = self.time(jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1))
        asked = self.category(inputs["category"]) + self.domain(inputs["domain"])
        condition = self.condition(nnx.silu(time + 25 * asked))  # embeddings begin 50 times as small
        x = self.patches(_cut(x, self.config.patch)) + self.positions[...] + condition[:, None]
        for block in self.blocks:
            x = block(x)
        return _joined(self.head(self.norm(x)), self.config)


def _cut(x: Float[Array, "n side side c"], patch: int) -> Float[Array, "n tokens values"]:
    n, side, _, channels = x.shape
    grid = x.reshape(n, side // patch, patch, side // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, patch * patch * channels)


def _joined(x: Float[Array, "n tokens values"], config: Flow) -> Float[Array, "n side side c"]:
    count, patch = config.side // config.patch, config.patch
    grid = x.reshape(len(x), count, count, patch, patch, config.channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), config.side, config.side, config.channels)


def squares(outputs: Array, targets: Array) -> Float[Array, " n"]:
    """The mean squared error of each example."""
    return jnp.square(outputs - targets).mean(tuple(range(1, outputs.ndim)))


@dataclass(frozen=True)
class SquaredErrors:
    """The loss of a flow for each example. Equal for equal networks, so compiled once."""

    apply: Callable[[PyTree, PyTree], Array]

    def __call__(self, variables: PyTree, inputs: PyTree, targets: Array) -> Float[Array, " n"]:
        """Of the velocity."""
        return squares(self.apply(variables, inputs), targets)


def noised(key: Array, inputs: Mapping[str, Array], targets: Any) -> tuple[dict[str, Array], Array]:
    """Images at random times between noise and themselves, and the velocity there."""
    at, noise = jax.random.split(key)
    x = jnp.asarray(inputs["x"])
    found = {**inputs, "x": x, "noise": jax.random.normal(noise, x.shape), "t": jax.random.uniform(at, x.shape[:1])}
    return found, x - found["noise"]


@functools.partial(jax.jit, static_argnames=("apply", "steps"))
def sampled(
    apply: Callable[[PyTree, PyTree], Array],
    variables: PyTree,
    noise: Float[Array, "n side side c"],
    category: Int[Array, " n"],
    domain: Int[Array, " n"],
    *,
    steps: int,
) -> Float[Array, "n side side c"]:
    """Images out of noise, by Euler's method."""

    def step(x: Array, t: Array) -> tuple[Array, None]:
        at = jnp.full(len(x), t)
        inputs = {"x": jnp.zeros_like(x), "noise": x / (1 - at)[:, None, None, None], "t": at}  # so that it sees x itself
        return x + apply(variables, {**inputs, "category": category, "domain": domain}) / steps, None

    return jnp.clip(jax.lax.scan(step, noise, jnp.arange(steps, dtype=jnp.float32) / steps)[0], -1, 1)


@dataclass(frozen=True, eq=False)
class Adapted:
    """The loss of a base with adapters, as a function of their factors."""

    loss: Callable[[PyTree, PyTree, Array], Array]
    base: PyTree

    def __call__(self, factors: Mapping[str, Factors], inputs: PyTree, targets: Array) -> Float[Array, " n"]:
        """For each example."""

        def leaf(path: tuple, x: Array) -> Array:
            found = factors.get(path_name(path))
            return x if found is None else x + found[0] @ found[1]

        return self.loss(jax.tree_util.tree_map_with_path(leaf, self.base), inputs, targets)


def adapters(base: PyTree, rank: int, seed: int) -> dict[str, Factors]:
    """Factors for every matrix but the embeddings, whose product is zero (Hu et al. 2022)."""
    matrices = {name: x for name, x in flatten(base).items() if x.ndim == 2 and name.endswith("kernel")}
    keys = jax.random.split(jax.random.key(seed), len(matrices))
    return {
        name: (jax.random.normal(key, (len(x), rank)) / len(x) ** 0.5, jnp.zeros((rank, x.shape[1])))
        for key, (name, x) in zip(keys, matrices.items(), strict=True)
    }


@dataclass(frozen=True)
class TwoAnswers:
    """The loss of a classifier that tells category and style: its outputs are logits of the one and then of the other.

    Attributes:
        apply: the classifier, which takes images as vectors.
        categories: how many there are.
    """

    apply: Callable[[PyTree, Array], Array]
    categories: int

    def __call__(self, variables: PyTree, inputs: PyTree, targets: Int[Array, "n 2"]) -> Float[Array, " n"]:
        """The sum of both cross entropies."""
        sides = self._sides(variables, inputs)
        cross = optax.softmax_cross_entropy_with_integer_labels
        return cross(sides[0], targets[:, 0]) + cross(sides[1], targets[:, 1])

    def right(self, variables: PyTree, inputs: PyTree, targets: Int[Array, "n 2"]) -> Float[Array, " n"]:
        """Whether both answers are right."""
        category, style = (side.argmax(-1) for side in self._sides(variables, inputs))
        return ((category == targets[:, 0]) & (style == targets[:, 1])).astype(jnp.float32)

    def _sides(self, variables: PyTree, inputs: PyTree) -> tuple[Array, Array]:
        x = inputs["x"]
        logits = self.apply(variables, x.reshape(len(x), -1))
        return logits[:, : self.categories], logits[:, self.categories :]
