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
from alignment.assignment import assign
from alignment.methods.group_matching import _Pair
from alignment.orthogonal import nearest_orthogonal
from alignment.verification import random_element
from tests.alignment import networks

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
    return {name: jnp.asarray(rng.standard_normal(shape).astype(np.float32), np.float32) for name, shape in SHAPES.items()}


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


def heads(v: Any, x: jax.Array) -> jax.Array:
    """Three heads of two units, and perhaps a number for each head."""
    h = jnp.tanh(jnp.einsum("bi,ihd->bhd", x, v["a"]))
    if "gate" in v:
        h = h * jnp.broadcast_to(v["gate"][None, :, None], h.shape)
    return jnp.einsum("bhd,hdo->bo", h, v["b"])


@pytest.mark.parametrize("gated", [False, True])
def test_heads_with_units_inside_equal_brute_force(gated):
    """All orders of the heads and of the units of each: what is inside a head, and what the head is worth by itself."""
    shapes = {"a": (4, 3, 2), "b": (3, 2, 3)} | ({"gate": (3,)} if gated else {})
    inside = list(itertools.product(itertools.permutations(range(2)), repeat=3))
    net = trace(heads, {n: np.zeros(s, np.float32) for n, s in shapes.items()}, jnp.zeros((2, 4)))
    for seed in range(8):
        rng = np.random.default_rng(seed)
        ours, theirs = ({n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()} for _ in range(2))
        for gates in [ours, theirs] if gated else []:
            gates["gate"] *= 3  # enough to overrule what is inside
        every = []
        for order, units in itertools.product(itertools.permutations(range(3)), inside):
            a = np.stack([theirs["a"][:, h, list(units[h])] for h in order], 1)
            b = np.stack([theirs["b"][h, list(units[h])] for h in order])
            gate = np.vdot(ours["gate"], theirs["gate"][list(order)]) if gated else 0
            every.append(np.vdot(ours["a"], a) + np.vdot(ours["b"], b) + gate)
        found = align(GroupMatching(), net, [ours, theirs])[1]
        assert sum(np.vdot(ours[n], found[n]) for n in shapes) == pytest.approx(max(every), rel=1e-4), seed


def recurrent(v: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ v["u"])
    return jnp.tanh(h @ v["w"] + x @ v["u"]) @ v["o"]


def test_the_objective_never_falls_where_a_tensor_carries_a_node_twice():
    """There the best answer to the scores may be worse than what it replaces. Learned permutations start at the result too."""
    shapes = {"u": (4, 5), "w": (5, 5), "o": (5, 3)}
    start = networks.fill({name: networks.Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)
    twice = trace(recurrent, start, networks.data(2, 4))
    (node,) = twice.nodes
    lifted = 0
    for seed in range(10):
        models = [networks.fill(start, 2 * seed + k) for k in range(2)]
        pair = _Pair(twice, *models)
        values = [pair.objective(pair.solved(sweeps)) for sweeps in range(4)]
        assert all(b >= a - 1e-5 * abs(a) for a, b in itertools.pairwise(values)), (seed, values)
        found, learned = (GroupMatching(learn_permutations=learn).init(twice, models)[1][node] for learn in (False, True))
        np.testing.assert_array_equal(GroupMatching().maps([{node: learned}], twice)[0][node].push.argmax(-1), found)
        lifted += not np.array_equal(assign(pair.scores(pair.solved(100))[node]), found)
    assert lifted


def test_maps_stay_in_their_groups_wherever_theta_is_moved():
    """As learning moves it: orthogonal parameters are projected, the inverse is that of the matrix itself."""
    method, rng = GroupMatching(learn_permutations=True), np.random.default_rng(0)
    theta = method.init(graph(), [model(0), model(1)])
    theta = jax.tree.map(lambda x: x + 0.05 * jnp.asarray(rng.standard_normal(x.shape).astype(np.float32), np.float32), theta)
    assert discrepancy(apply, graph(), method.maps(theta, graph())[1], model(1), TOKENS) < 1e-4


def test_a_theta_that_is_not_finite_is_named():
    method = GroupMatching(learn_permutations=True)
    theta = method.init(graph(), [model(0), model(1)])
    name, scores = next((n, x) for n, x in theta[1].items() if graph().nodes[n].group == "permutation")
    theta[1][name] = scores.at[0, 0].set(jnp.nan)
    with pytest.raises(ValueError, match=f"theta has 1 non-finite values of .* in '1/{name}'"):
        method.maps(theta, graph())
    with pytest.raises(ValueError, match="max_sweeps must be an integer of 0 or more, got -3"):
        GroupMatching(max_sweeps=-3)


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
