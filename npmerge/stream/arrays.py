"""What kernels do with flat blocks alike: pad them, widen them, add them up, and round what is merged.

Programs are compiled for a few lengths only, powers of sixteen; shorter blocks are filled up with zeros. On two cores a block
of 2^20 entries of three bfloat16 models takes XLA 1 ms of processor time to combine and round, numpy 5 ms.
"""

import operator
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float

from npmerge.arithmetic import wide
from npmerge.stream.blocks import Block, Merged
from npmerge.task_vectors.selection import count_each

SHORTEST = 2**16
"""Entries of the shortest blocks that programs are compiled for: they take 0.1 ms, and one program more to compile 100."""

LANES = 16
"""Sums that run side by side: as many as a register holds, so that they stay there."""

RUN = 32
"""Terms of float32 that are added up before their sum is widened: its rounding is below that of one term."""

DTYPES: dict[str, type] = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""What XLA rounds to, by the name that safetensors has for it."""

NARROW: dict[str, type] = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
"""What XLA may round to in two steps, so that it is left to the host."""


Values = Any
"""A numpy array, or what it is in a program."""


class Padded(NamedTuple):
    """A block as programs see it: flat arrays of a length that they are compiled for."""

    models: tuple[Values, ...]
    base: Values | None


def padded(block: Block) -> Padded:
    """The block, filled up with zeros."""
    length = padded_length(len(block.models[0]))
    base = None if block.base is None else filled(block.base, length)
    return Padded(tuple(filled(x, length) for x in block.models), base)


def padded_length(size: int) -> int:
    """The next power of sixteen, `SHORTEST` at least."""
    bits = max(size - 1, SHORTEST - 1).bit_length()
    return 2 ** (bits + -bits % 4)


def filled(x: np.ndarray, length: int) -> np.ndarray:
    """`x` with zeros behind its last axis up to this length; itself if it has it."""
    if x.shape[-1] == length:
        return x
    out = np.zeros((*x.shape[:-1], length), x.dtype)
    out[..., : x.shape[-1]] = x
    return out


def precise(block: Block | Padded) -> AbstractContextManager:
    """A context in which programs have 64 bits, if an input has; it is the thread's own."""
    arrays = block.models if block.base is None else (*block.models, block.base)
    return jax.enable_x64(any(x.dtype == np.float64 for x in arrays))


def vectors(block: Padded) -> list[Float[Array, " entries"]]:
    """The models less the base, or the models themselves without; in float32, or float64 if one of them is. Traceable."""
    wides = [wide(x) for x in (*block.models, *(() if block.base is None else (block.base,)))]
    dtype = max((x.dtype for x in wides), key=lambda d: d.itemsize)
    models, base = [x.astype(dtype) for x in wides[: len(block.models)]], wides[len(block.models) :]
    return [x - base[0].astype(dtype) for x in models] if base else models


def moved(block: Padded, by: Float[Array, " entries"]) -> Float[Array, " entries"]:
    """The base, if any, and what is added to it. Traceable."""
    return by if block.base is None else wide(block.base).astype(by.dtype) + by


def sums(terms: list[Float[Array, " entries"]]) -> Float[Array, " terms"]:
    """The sum over the entries of each term in float64, all in one pass; short runs of float32 in float32. Traceable.

    Six products of three models take XLA two thirds of the time that they take with every product in float64.
    """
    lanes = tuple(x.reshape(-1, RUN, LANES) for x in terms)
    zero = jnp.zeros((), terms[0].dtype)
    added = jax.lax.reduce(lanes, (zero,) * len(lanes), lambda a, b: tuple(map(operator.add, a, b)), (1,))
    return jnp.stack([x.astype(jnp.float64).sum() for x in added])


class Rounded(NamedTuple):
    """What a program returns of what it merged: see `Merged`."""

    values: Array
    nonfinite: Array
    rounding: Array


def rounded(x: Float[Array, " entries"], dtype: str) -> Rounded:
    """What was merged, rounded once to a dtype of safetensors, and what is to be told of it. Traceable."""
    values = x.astype(DTYPES.get(dtype, x.dtype))
    error = jnp.abs(values.astype(x.dtype) - x)
    finite = jnp.isfinite(values)
    # the maximum over long columns, which takes a third of the time of one of all
    return Rounded(values, count_each([~finite])[0], jnp.where(finite, error, 0).reshape(-1, 1024).max(0))


def told(found: Rounded, size: int, dtype: str) -> Merged:
    """The same on the host, without what was filled up."""
    values, rounding = np.asarray(found.values)[:size], float(np.asarray(found.rounding).max())
    if dtype not in NARROW:
        return Merged(values, int(found.nonfinite), rounding)
    narrow: np.ndarray = values.astype(NARROW[dtype])
    back = narrow.astype(values.dtype)
    finite = np.isfinite(back)
    return Merged(narrow, int(np.sum(~finite)), float(np.abs(back - values).max(initial=0, where=finite)))


def joined(parts: Sequence[Merged]) -> Merged:
    """Neighbouring blocks as one."""
    values, nonfinite, rounding = zip(*parts, strict=True)
    return Merged(np.concatenate(values), sum(nonfinite), max(rounding))
