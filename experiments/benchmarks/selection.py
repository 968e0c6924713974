"""Rows of the benchmarks: the entries of largest magnitude, and TIES, which is little else."""

import jax
import jax.numpy as jnp
import numpy as np

import npmerge as nm
from experiments.benchmarks.timing import Row, interleaved
from npmerge.selection import kept_of, largest

DENSITY = 0.2


def rows(*, quick: bool, repeats: int) -> list[Row]:
    """All of them; quick ones are of small tensors."""
    size, repeats = (1000, 1) if quick else (32_000_000, min(repeats, 5))
    values = np.random.default_rng(0).standard_normal(size, np.float32)
    return [against_sort(values, repeats), against_partition(values, repeats), ties(values[: size // 4], repeats)]


def against_sort(values: np.ndarray, repeats: int) -> Row:
    """The mask against the sorted magnitudes alone, which do not tell equal ones apart yet."""
    x, kept = jnp.asarray(values), kept_of(DENSITY, values.size)
    ours, peer = jax.jit(lambda v: largest(v, kept)), jax.jit(lambda v: jnp.sort(jnp.abs(v)))
    return f"{_described(values)}, mask", "jnp.sort", *interleaved(lambda: ours(x), lambda: peer(x), repeats=repeats)


def against_partition(values: np.ndarray, repeats: int) -> Row:
    """The mask against one of all entries that are not below numpy's k-th, which keeps too many of equal ones."""
    x, kept = jnp.asarray(values), kept_of(DENSITY, values.size)
    ours = jax.jit(lambda v: largest(v, kept))

    def peer() -> np.ndarray:
        magnitudes = np.abs(values)
        return magnitudes >= np.partition(magnitudes, values.size - kept)[values.size - kept]

    return f"{_described(values)}, mask", "numpy.partition", *interleaved(lambda: ours(x), peer, repeats=repeats)


def ties(values: np.ndarray, repeats: int) -> Row:
    """The merge of two models, against task arithmetic of the same two, which selects and elects nothing."""
    stack = nm.Stack({"w": jnp.asarray(np.stack([values, np.roll(values, 1)]))}, {"w": jnp.zeros(values.size)})
    merges = nm.Ties(DENSITY), nm.TaskArithmetic()
    ours, peer = (lambda m=m: m.apply(m.init(stack), stack) for m in merges)
    return (
        f"TIES of 2 models of {values.size / 1e6:g} M parameters",
        "task arithmetic",
        *interleaved(ours, peer, repeats=repeats),
    )


def _described(values: np.ndarray) -> str:
    return f"the {DENSITY:.0%} largest of {values.size / 1e6:g} M float32"
