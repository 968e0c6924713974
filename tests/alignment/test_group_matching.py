"""Group matching: rotations of a residual stream, of what is inside heads, permutations of heads and of hidden units."""

import functools
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import GroupMatching, NodeMap, align, discrepancy, trace, transport, verify
from alignment.group_matching import _Pair
from alignment.maps import random_element
from alignment.orthogonal import nearest_orthogonal

VOCABULARY, WIDTH, HEADS, SIZE, HIDDEN, LENGTH = 11, 8, 3, 4, 6, 5


def unit_rms(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-5)


def apply(v: Any, tokens: jax.Array) -> jax.Array:
    """A transformer block whose norms have no scale: the residual stream can be rotated."""
    x = v["tokens"][tokens]
    y = unit_rms(x)
    q, k, value = (jnp.einsum("btw,whd->bthd", y, v[name]) for name in ("query", "key", "value"))
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / SIZE**0.5, axis=-1)
    x = x + jnp.einsum("bhts,bshd,hdw->btw", weights, value, v["out"])
    hidden = jnp.einsum("btw,wf->btf", unit_rms(x), v["up"])
    x = x + jnp.einsum("btf,fw->btw", jax.nn.gelu(hidden + jnp.broadcast_to(v["bias"], hidden.shape)), v["down"])
    return jnp.einsum("btw,wv->btv", unit_rms(x), v["head"])


SHAPES = {
    "tokens": (VOCABULARY, WIDTH),
    "query": (WIDTH, HEADS, SIZE),
    "key": (WIDTH, HEADS, SIZE),
    "value": (WIDTH, HEADS, SIZE),
    "out": (HEADS, SIZE, WIDTH),
    "up": (WIDTH, HIDDEN),
    "bias": (HIDDEN,),
    "down": (HIDDEN, WIDTH),
    "head": (WIDTH, VOCABULARY),
}


def model(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


TOKENS = jnp.asarray(np.random.default_rng(9).integers(0, VOCABULARY, (4, LENGTH)))


@functools.cache
def graph() -> alignment.Graph:
    return trace(apply, model(0), TOKENS)


def moved(variables: Any, seed: int) -> Any:
    """The same function in other units: a random permutation or rotation of every node."""
    maps = {}
    for k, (name, node) in enumerate(graph().nodes.items()):
        element = random_element(node, jax.random.key(100 * seed + k)).push
        if node.group == "linear":
            element = np.asarray(nearest_orthogonal(element))
        maps[name] = NodeMap(element, np.asarray(element).swapaxes(-1, -2))
    return transport(graph(), maps, variables)


def test_the_network_has_every_kind_of_node():
    assert verify(apply, graph(), model(0), TOKENS, key=jax.random.key(0)) < 1e-5
    nodes = [(node.size, node.group, node.copies) for node in graph().nodes.values()]
    assert sorted(nodes) == [
        (HEADS, "permutation", ()),
        (SIZE, "linear", (HEADS,)),
        (SIZE, "linear", (HEADS,)),
        (HIDDEN, "permutation", ()),
        (WIDTH, "orthogonal", ()),
    ]


@pytest.mark.parametrize("learn", [False, True])
def test_planted_rotations_and_permutations_come_back(learn):
    theirs = moved(model(0), 1)
    chex.assert_trees_all_close(apply(theirs, TOKENS), apply(model(0), TOKENS), rtol=1e-3, atol=1e-3)
    assert float(jnp.abs(theirs["tokens"] - model(0)["tokens"]).max()) > 0.5
    aligned = align(GroupMatching(learn_permutations=learn), graph(), [model(0), theirs, moved(model(0), 2)])
    for other in aligned[1:]:
        chex.assert_trees_all_close(other, model(0), rtol=1e-3, atol=1e-3)


def test_the_function_is_kept_between_strangers():
    models = [model(0), model(1)]
    theta = GroupMatching().init(graph(), models)
    assert discrepancy(apply, graph(), GroupMatching().maps(theta, graph())[1], models[1], TOKENS) < 1e-5


def test_the_objective_never_falls():
    pair = _Pair(graph(), model(0), model(1))
    values = [pair.objective(pair.solved(sweeps)) for sweeps in range(4)]
    assert all(b >= a - 1e-5 * abs(a) for a, b in itertools.pairwise(values))
    assert values[1] > values[0] + 1
    identity = {
        n.name: np.broadcast_to(np.eye(n.size, dtype=np.float32), (*n.copies, n.size, n.size)) for n in graph().nodes.values()
    }
    exact = sum(
        np.vdot(np.asarray(a), np.asarray(b)) for a, b in zip(*(jax.tree.leaves(model(k)) for k in (0, 1)), strict=True)
    )
    assert pair.objective(identity) == pytest.approx(exact, rel=1e-5)


def test_every_parameter_of_theta_can_be_learned():
    """A gradient reaches each, and a step along it lowers the distance that it is of."""
    alignment_ = GroupMatching(learn_permutations=True)
    models = [model(0), model(1)]
    theta = alignment_.init(graph(), models)
    assert set(theta[1]) == set(graph().nodes)

    def agreement(theta: list) -> jax.Array:
        return alignment.weight_distance(alignment_, graph(), theta, models)

    gradient = jax.jit(jax.grad(agreement))(theta)
    for name, g in gradient[1].items():
        chex.assert_tree_all_finite(g)
        if graph().nodes[name].group != "orthogonal":  # at its optimum already
            assert float(jnp.abs(g).max()) > 1e-6, name


# ------------------------------------------------------------------------------------------------------ nearest orthogonal


def test_orthogonal_matrices_are_their_own_nearest():
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 5, 5)))[0].astype(np.float32)
    chex.assert_trees_all_close(nearest_orthogonal(q), q, atol=1e-6)


def test_the_nearest_orthogonal_matrix_is_nearer_than_others():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((5, 5)).astype(np.float32)
    best = np.asarray(nearest_orthogonal(matrix))
    np.testing.assert_allclose(best @ best.T, np.eye(5), atol=1e-5)
    for _ in range(50):
        other = np.linalg.qr(best + 0.3 * rng.standard_normal((5, 5)))[0]
        assert np.linalg.norm(matrix - best) <= np.linalg.norm(matrix - other) + 1e-5


class Direction(NamedTuple):
    at: np.ndarray
    along: np.ndarray


@pytest.mark.parametrize("at", ["orthogonal", "generic"])
def test_the_derivative_is_that_of_finite_differences(at):
    rng = np.random.default_rng(1)
    m = rng.standard_normal((4, 4))
    m = np.linalg.qr(m)[0] if at == "orthogonal" else m
    along, step = rng.standard_normal((4, 4)), 1e-6

    def exact(x: np.ndarray) -> np.ndarray:
        u, _, vt = np.linalg.svd(x)
        return u @ vt

    difference = (exact(m + step * along) - exact(m - step * along)) / (2 * step)
    _, tangent = jax.jvp(nearest_orthogonal, (jnp.asarray(m, jnp.float32),), (jnp.asarray(along, jnp.float32),))
    np.testing.assert_allclose(tangent, difference, rtol=1e-3, atol=1e-3)
    gradient = jax.grad(lambda x: jnp.vdot(nearest_orthogonal(x), jnp.asarray(m @ m, jnp.float32)))(jnp.asarray(m, jnp.float32))
    slope = (np.vdot(exact(m + step * along), m @ m) - np.vdot(exact(m - step * along), m @ m)) / (2 * step)
    assert float(np.vdot(gradient, along)) == pytest.approx(slope, rel=1e-3, abs=1e-3)
