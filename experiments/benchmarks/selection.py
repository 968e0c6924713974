"""Rows of the benchmarks: the entries of largest magnitude, and TIES, which is little else."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import npmerge as nm
from alignment.graph import PyTree
from experiments.benchmarks.timing import Row, interleaved
from npmerge.models import Config, ResNet, abstract
from npmerge.task_vectors.selection import kept_of, largest

DENSITY = 0.2
RESNET_50 = ResNet(block="bottleneck", stages=(3, 4, 6, 3))


def rows(*, quick: bool, repeats: int) -> list[Row]:
    """All of them; quick ones are of small tensors."""
    size, repeats = (1000, 1) if quick else (32_000_000, min(repeats, 5))
    values = np.random.default_rng(0).standard_normal(size, np.float32)
    rows = [against_sort(values, repeats), against_partition(values, repeats), ties(values[: size // 4], repeats)]
    return rows + ties_of_networks(ResNet(block="basic", stages=(1, 1), width=4) if quick else RESNET_50, min(repeats, 3))


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


def ties_of_networks(config: Config, repeats: int) -> list[Row]:
    """The merge of three networks against the plain average of them, and against TIES on one flat vector of each."""
    variables, rng = abstract(config).variables, np.random.default_rng(0)
    base, *models = (jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), variables) for _ in range(4))
    stack, what = (
        nm.stack_models(models, base),
        f"TIES of 3 networks of {sum(x.size for x in jax.tree.leaves(base)) / 1e6:.3g} M",
    )
    merge, average = nm.Ties(DENSITY), nm.Average()
    return [
        (what, "their average", *interleaved(lambda: merge(stack), lambda: average(stack), repeats=repeats)),
        (
            what,
            "flat vectors, a full top-k",
            *interleaved(lambda: merge(stack), lambda: flat_ties(models, base), repeats=repeats),
        ),
    ]


@jax.jit
def flat_ties(models: list[PyTree], base: PyTree) -> PyTree:
    """TIES as FusionBench describes it, written plainly: all parameters in one vector, a full top-k of each."""
    flat, restore = ravel_pytree(base)
    vectors = jnp.stack([ravel_pytree(m)[0] - flat for m in models])
    least = jax.lax.top_k(jnp.abs(vectors), kept_of(DENSITY, flat.size))[0][:, -1:]
    vectors = jnp.where(jnp.abs(vectors) >= least, vectors, 0)
    sign = jnp.sign(vectors.sum(0))
    sign = jnp.where(sign == 0, jnp.sign(sign.sum()), sign)
    agree = jnp.where(sign > 0, vectors > 0, vectors < 0)
    return restore(flat + (vectors * agree).sum(0) / jnp.maximum(agree.sum(0), 1))


def _described(values: np.ndarray) -> str:
    return f"the {DENSITY:.0%} largest of {values.size / 1e6:g} M float32"
