"""Masks of models as bits, eight entries in a byte."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt8


def packed(masks: Bool[Array, "models ..."]) -> UInt8[Array, "models bytes"]:
    """The entries of each model in order, the last byte filled up with zeros."""
    return jnp.packbits(masks.reshape(len(masks), -1), axis=1)


def unpacked(bits: UInt8[Array, "models bytes"], shape: tuple[int, ...]) -> Bool[Array, "models ..."]:
    """The masks of `packed`, of the shape of one model's tensor."""
    return jnp.unpackbits(bits, axis=1, count=math.prod(shape)).reshape(len(bits), *shape).astype(bool)
