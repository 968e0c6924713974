"""Sparse autoencoders: an overcomplete dictionary of directions, few of which are active at once (Bricken et al. 2023)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.universal_features.settings import Autoencoder

MOMENTS = optax.scale_by_adam(b2=0.99)


class Dictionary(NamedTuple):
    """Features of vectors x (tokens, units), which are divided by `scale` first.

    Attributes:
        encoder: what a feature looks for.
        bias: what it must exceed, negative.
        decoder: what it stands for, of length one.
        centre: what is there without any.
        scale: of the units.
    """

    encoder: Float[Array, "units features"]
    bias: Float[Array, " features"]
    decoder: Float[Array, "features units"]
    centre: Float[Array, " units"]
    scale: Float[Array, ""]

    def encode(self, x: Float[Array, "*places units"]) -> Float[Array, "*places features"]:
        """Activations, relu((x / scale - centre) W + b)."""
        return jax.nn.relu(jnp.matmul(x / self.scale - _last(self.centre, x), self.encoder) + _last(self.bias, x))

    def decode(self, features: Float[Array, "*places features"]) -> Float[Array, "*places units"]:
        """What they stand for, in the units of x."""
        return (jnp.matmul(features, self.decoder) + _last(self.centre, features)) * self.scale

    def __call__(self, x: Float[Array, "*places units"]) -> Float[Array, "*places units"]:
        """The reconstruction."""
        return self.decode(self.encode(x))


class Training(NamedTuple):
    """What a step changes: the dictionary and Adam's moments of it."""

    dictionary: Dictionary
    moments: Any


def learned(x: Float[np.ndarray, "tokens units"], how: Autoencoder, seed: int) -> Dictionary:
    """A dictionary of the vectors: least |x - x'|^2 + l1 * sum of activations, dead features started anew on the way.

    Args:
        x: what it is of.
        how: sizes and training.
        seed: of its initialisation and batches.
    """
    rng, data = np.random.default_rng(seed), jnp.asarray(x, jnp.float32)
    state, key = _started(data, how, jax.random.key(seed)), jax.random.key(seed + 1)
    per = how.steps // how.chunks
    for chunk in range(how.chunks):
        order = jnp.asarray(rng.integers(0, len(x), (per, how.batch)))
        falling = min(1.0, 2 * (1 - chunk / how.chunks))  # the rate, over the second half
        state, fired = _chunk(state, data, order, jnp.float32(how.l1), jnp.float32(how.rate * falling))
        if chunk < how.chunks - 1:
            state = _anew(state, data[order[-1]], fired == 0, jax.random.fold_in(key, chunk))
    return state.dictionary


def _started(x: Array, how: Autoencoder, key: Array) -> Training:
    """Random directions that are looked for and stand for the same; units of mean squared norm equal to their number."""
    units = x.shape[1]
    scale = jnp.sqrt(jnp.square(x).sum(1).mean() / units)
    decoder = _unit(jax.random.normal(key, (how.expansion * units, units)))
    dictionary = Dictionary(decoder.T, jnp.zeros(len(decoder)), decoder, x.mean(0) / scale, scale)
    return Training(dictionary, MOMENTS.init(dictionary))


@jax.jit
def _chunk(state: Training, x: Array, order: Int[Array, "steps batch"], l1: Array, rate: Array) -> tuple[Training, Array]:
    """Steps of Adam, and how often each feature was active in all of them."""

    def step(state: Training, indices: Array) -> tuple[Training, Array]:
        batch = x[indices]
        (_, fired), gradient = jax.value_and_grad(_loss, has_aux=True)(state.dictionary, batch, l1)
        decoder = state.dictionary.decoder
        along = (gradient.decoder * decoder).sum(1, keepdims=True) * decoder  # would only change lengths
        gradient = gradient._replace(decoder=gradient.decoder - along, scale=jnp.zeros(()))
        with jax.numpy_dtype_promotion("standard"):  # Optax counts in integers
            updates, moments = MOMENTS.update(gradient, state.moments)
        new = jax.tree.map(lambda p, u: p - rate * u, state.dictionary, updates)
        return Training(new._replace(decoder=_unit(new.decoder), scale=state.dictionary.scale), moments), fired

    state, fired = jax.lax.scan(step, state, order)
    return state, fired.sum(0)


def _loss(dictionary: Dictionary, x: Array, l1: Array) -> tuple[Array, Array]:
    features = dictionary.encode(x)
    error = jnp.square((x - dictionary.decode(features)) / dictionary.scale).sum(1).mean()
    return error + l1 * features.sum(1).mean(), (features > 0).sum(0)


@jax.jit
def _anew(state: Training, x: Array, dead: Bool[Array, " features"], key: Array) -> Training:
    """Dead features look for vectors that are badly reconstructed, drawn by the square of their error."""
    d = state.dictionary
    rest = (x - d(x)) / d.scale
    error = jnp.square(rest).sum(1)
    drawn = jax.random.choice(key, len(x), dead.shape, p=jnp.square(error) / jnp.square(error).sum())
    direction = _unit(rest[drawn])
    lengths = jnp.linalg.norm(d.encoder, axis=0)
    alive = jnp.where(dead, 0.0, lengths).sum() / jnp.maximum((~dead).sum(dtype=jnp.float32), 1)
    new = d._replace(
        decoder=jnp.where(dead[:, None], direction, d.decoder),
        encoder=jnp.where(dead[None], 0.2 * alive * direction.T, d.encoder),
        bias=jnp.where(dead, 0.0, d.bias),
    )

    def cleared(moment: Dictionary) -> Dictionary:
        return moment._replace(
            decoder=jnp.where(dead[:, None], 0.0, moment.decoder),
            encoder=jnp.where(dead[None], 0.0, moment.encoder),
            bias=jnp.where(dead, 0.0, moment.bias),
        )

    moments = state.moments._replace(mu=cleared(state.moments.mu), nu=cleared(state.moments.nu))
    return Training(new, moments)


def _last(x: Float[Array, " features"], like: Array) -> Float[Array, "*ones features"]:
    """As a row of as many axes as another array has."""
    return x.reshape((1,) * (like.ndim - 1) + x.shape)


def _unit(x: Float[Array, "rows units"]) -> Float[Array, "rows units"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-8)


@functools.partial(jax.jit)
def encoded(dictionary: Dictionary, x: Float[Array, "tokens units"]) -> Float[Array, "tokens features"]:
    """Activations, compiled."""
    return dictionary.encode(x)
