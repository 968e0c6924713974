"""Random numbers by place: each entry of a tensor has its own, whatever block or thread draws it.

They are those of `jax.random.uniform` for the same key, so masks in blocks are those that
`npmerge.task_vectors.transforms.draw` draws of whole tensors.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
ROUNDS = 5  # of four rotations each
PARITY = 0x1BD11BDA


@functools.lru_cache(maxsize=64)
def key_of(seed: int, name: str) -> UInt32[np.ndarray, "2"]:
    """The key of a tensor, as the first transform of a merge with `jax.random.key(seed)` has it."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), 0), zlib.crc32(name.encode()))
    return np.asarray(jax.random.key_data(key))


def place_of(start: int) -> UInt32[np.ndarray, "2"]:
    """A position as two numbers of 32 bits, the higher one first."""
    return np.array([start >> 32, start & 0xFFFFFFFF], np.uint32)


def uniform(key: UInt32[Array, "2"], place: UInt32[Array, "2"], count: int) -> Float[Array, " count"]:
    """Numbers in [0, 1) for `count` positions from `place` on. Traceable.

    Source: as `jax.random.uniform` makes them of threefry with two words for each position, with 23 random bits.
    """
    low = place[1] + jax.lax.iota(jnp.uint32, count)
    high = place[0] + (low < place[1]).astype(jnp.uint32)
    first, second = threefry(key, high, low)
    mantissa = ((first ^ second) >> jnp.uint32(9)) | jnp.uint32(0x3F800000)
    return jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1


def threefry(key: UInt32[Array, "2"], x: UInt32[Array, "*shape"], y: UInt32[Array, "*shape"]) -> tuple[Array, Array]:
    """Threefry-2x32 with 20 rounds (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3). Traceable.

    Written out: the loop that JAX compiles to on CPUs, for faster compilation, takes ten times as long.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(PARITY))
    x, y = x + keys[0], y + keys[1]
    for k in range(ROUNDS):
        for rotation in ROTATIONS[k % 2]:
            x = x + y
            y = x ^ ((y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation)))
        x, y = x + keys[(k + 1) % 3], y + keys[(k + 2) % 3] + jnp.uint32(k + 1)
    return x, y
