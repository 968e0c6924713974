"""Rows of the benchmarks: layers solved by least squares, at the shapes of ResNet-50."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array

import npmerge as nm
from alignment import permutation
from alignment.graph import Graph, PyTree
from experiments.benchmarks.timing import Row, interleaved

HIGHEST = jax.lax.Precision.HIGHEST
SHAPES = {  # window, channels read and made, side of the image, examples
    "1x1, 256 to 64 channels, 56 x 56": (1, 256, 64, 56, 16),
    "3x3, 256 to 256 channels, 14 x 14": (3, 256, 256, 14, 64),
    "1x1, 2048 to 512 channels, 7 x 7": (1, 2048, 512, 7, 128),
}


def rows(*, quick: bool, repeats: int) -> list[Row]:
    """One for each shape; quick ones are of few channels."""
    return [closed_form(name, _smaller(shape, quick), repeats) for name, shape in SHAPES.items()]


def _smaller(shape: tuple[int, ...], quick: bool) -> tuple[int, ...]:
    window, read, made, side, _ = shape
    return (window, read // 32, made // 32, side // 7 + 2, 2) if quick else shape


def closed_form(name: str, shape: tuple[int, ...], repeats: int) -> Row:
    """Two networks with one such convolution, permuted, against the products of its mean features and one solve.

    Ours permutes and runs both networks, cuts the patches and solves for the change; the other is handed patches and
    targets. The channels are made by a table and a scale, which are no site.
    """
    window, read, made, side, examples = shape
    rng = np.random.default_rng(0)
    shapes = {"table": (side, side, read), "scale": (read,), "w": (window, window, read, made)}
    models = [{n: jnp.asarray(rng.standard_normal(s, np.float32)) for n, s in shapes.items()} for _ in range(2)]
    x = rng.standard_normal((examples, side, side), np.float32)
    graph = nm.trace(_network, models[0], x)
    maps = [{n: permutation(jnp.asarray(rng.permutation(node.size))) for n, node in graph.nodes.items()} for _ in models]
    method, batches = nm.LeastSquares(), [(x, None)]
    plain = _plain(graph, models, x)
    times = interleaved(lambda: method(_network, graph, models, maps, batches).variables, plain, repeats=repeats)
    return f"least squares, {name} ({examples} images)", "two products and a solve", *times


def _network(variables: PyTree, x: Array) -> Array:
    x = jax.nn.relu(x[..., None] * variables["scale"] + variables["table"])
    y = jax.lax.conv_general_dilated(x, variables["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y).sum(-1)


def _plain(graph: Graph, models: list[PyTree], x: np.ndarray) -> Callable[[], np.ndarray]:
    pairs = [nm.capture(_network, graph, model, x, nodes=(), sites=("w",)).sites["w"] for model in models]
    z, y = (pairs[0].inputs + pairs[1].inputs) / 2, (pairs[0].outputs + pairs[1].outputs) / 2

    @jax.jit
    def products(z: Array, y: Array) -> tuple[Array, Array]:
        return jnp.matmul(z.T, z, precision=HIGHEST), jnp.matmul(z.T, y, precision=HIGHEST)

    def solve() -> np.ndarray:
        gram, cross = (np.asarray(a, np.float64) for a in products(z, y))
        gram[np.diag_indices_from(gram)] += 1e-4 * np.trace(gram) / len(gram)
        return scipy.linalg.cho_solve(scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True), cross)

    return solve
