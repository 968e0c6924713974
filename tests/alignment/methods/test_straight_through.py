"""Straight-through matching: exact permutations in the forward pass, scores learned behind it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment import ActivationMatching, Procrustes, StraightThrough, WeightMatching
from alignment.assignment import assign
from npmerge.paths import path_between
from tests.alignment import networks
from tests.npmerge import toys

A, OTHER = toys.variables(0), toys.variables(1)
ORDER = np.array([1, 2, 0, 3, 4, 5])
B = toys.permuted(A, ORDER)
INPUTS = toys.array(1, 64, toys.SIZES[0])
BATCH = INPUTS, jnp.argmax(toys.apply(A, INPUTS), axis=1)
FROM_IDENTITY = StraightThrough(start=None)


@pytest.fixture(scope="module")
def graph():
    return nm.trace(toys.apply, A, jnp.zeros((2, toys.SIZES[0])))


def push(alignment, theta, graph):
    return np.asarray(alignment.maps(theta, graph)[1]["first"].push)


def midpoint(alignment, graph, objective=None):
    return nm.along_line(alignment, graph, toys.apply, objective or nm.CrossEntropy(), interval=(0.5, 0.5))


def scores_by_hand(latent, other):
    """Of each unit of `other` (columns) at each place: sum over all tensors of W V^T."""
    parts = ([m["first"]["kernel"].T, m["first"]["bias"][:, None], m["out"]["kernel"]] for m in (latent, other))
    return sum(np.asarray(w) @ np.asarray(v).T for w, v in zip(*parts, strict=True))


@pytest.mark.parametrize("start", [WeightMatching(), None])
def test_scores_are_those_of_weight_matching_in_units_of_their_deviation(graph, start):
    theta = StraightThrough(start=start).init(graph, [A, OTHER])
    assert theta[0] == {}
    scores, expected = theta[1]["first"], scores_by_hand(A, OTHER)
    chosen = np.eye(6)[assign(expected)] if start else np.eye(6)
    others = chosen == 0
    np.testing.assert_allclose(scores[others], (expected / expected.std())[others], atol=1e-5)
    assert np.abs(scores - expected / expected.std()).max() < 1e-5 or start is None  # no margin where none is needed
    np.testing.assert_array_equal(push(StraightThrough(), theta, graph), chosen)


def test_it_starts_at_its_start():
    """Heads with what is inside them, several models matched to their mean: scores of one node alone may prefer others."""
    net = networks.network("fused_attention")
    models = [net.variables, net.another(3), net.another(4)]
    theta, expected = (a.init(net.graph, models) for a in (StraightThrough(), WeightMatching()))
    found = [{n: np.asarray(m.push).argmax(-1) for n, m in maps.items()} for maps in StraightThrough().maps(theta, net.graph)]
    chex.assert_trees_all_equal(found[1:], expected[1:])


@pytest.mark.parametrize("device", [False, True])
def test_the_forward_is_exactly_a_permutation_under_jit(graph, device):
    alignment = StraightThrough(start=None, device=device)
    theta = [{}, {"first": toys.array(2, 6, 6)}]
    for maps in (alignment.maps(theta, graph), jax.jit(alignment.maps, static_argnums=1)(theta, graph)):
        found = maps[1]["first"]
        np.testing.assert_array_equal(found.push, np.eye(6)[assign(np.asarray(theta[1]["first"]))])
        np.testing.assert_array_equal(found.pull, found.push.T)
    assert ("pure_callback" in str(jax.make_jaxpr(alignment.maps, static_argnums=1)(theta, graph))) is not device


def test_the_gradient_of_the_scores_is_that_of_the_permutation(graph):
    """As of a matrix that stands in both push and pull."""
    theta, weights = [{}, {"first": toys.array(2, 6, 6)}], toys.array(3, 2, 6, 6)

    def value(theta):
        m = FROM_IDENTITY.maps(theta, graph)[1]["first"]
        return (weights[0] * m.push).sum() + (weights[1] * m.pull).sum()

    np.testing.assert_allclose(jax.grad(value)(theta)[1]["first"], weights[0] + weights[1].T, rtol=1e-6)


def test_with_one_hidden_layer_it_is_the_published_algorithm(graph):
    """Latent weights, matched anew in each step, with momentum: the same permutations, and scores, in every step."""
    rate, steps, alignment = 1.0, 12, StraightThrough()
    deviation = scores_by_hand(A, OTHER).std()
    theta, optimizer = alignment.init(graph, [A, OTHER]), optax.sgd(rate / deviation, 0.9)
    latent, published = A, optax.sgd(rate, 0.9)
    state, latent_state = optimizer.init(theta), published.init(latent)
    loss, stack = jax.jit(jax.grad(midpoint(alignment, graph))), nm.stack_models([A, OTHER])

    @jax.jit
    def latent_gradient(latent, index):
        def value(latent):
            moved = jax.tree.map(lambda p, w: p + (w - jax.lax.stop_gradient(w)), toys.permuted(OTHER, index), latent)
            return nm.CrossEntropy()(toys.apply, jax.tree.map(lambda a, b: (a + b) / 2, A, moved), None, BATCH)

        return jax.grad(value)(latent)

    seen = set()
    for _ in range(steps):
        scores = scores_by_hand(latent, OTHER)
        index = assign(scores)
        seen.add(tuple(index.tolist()))
        np.testing.assert_array_equal(push(alignment, theta, graph), np.eye(6)[index])
        np.testing.assert_allclose(deviation * np.asarray(theta[1]["first"]), scores, atol=1e-3)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(loss(theta, stack, BATCH), state)
            latent_updates, latent_state = published.update(latent_gradient(latent, index), latent_state)
        theta, latent = optax.apply_updates(theta, updates), optax.apply_updates(latent, latent_updates)
    assert len(seen) > 2


def test_fit_recovers_a_planted_permutation_and_keeps_the_best_by_held_out_loss(graph):
    """From the identity, three units away; further away it often ends in a local optimum.

    The loss of hard permutations jumps, so the last step need not be the best.
    """
    loss, sgd, held_out = midpoint(FROM_IDENTITY, graph, nm.Distillation()), optax.sgd(0.3), [(toys.array(7, 32, 4), None)]
    for other in (B, OTHER):
        stack, theta = nm.stack_models([A, other]), FROM_IDENTITY.init(graph, [A, other])
        np.testing.assert_array_equal(push(FROM_IDENTITY, theta, graph), np.eye(6))
        result = nm.fit(theta, loss, stack, [BATCH], sgd, steps=60, held_out=held_out, every=1)
        found = result.history.held_out_loss
        np.testing.assert_allclose(loss(result.theta, stack, held_out[0]), found.min(), atol=1e-6)
        assert found.min() < found[0]
        if other is B:
            np.testing.assert_array_equal(push(FROM_IDENTITY, result.theta, graph), np.eye(6)[np.argsort(ORDER)])
            moved = nm.transport(graph, FROM_IDENTITY.maps(result.theta, graph)[1], B)
            assert path_between(toys.apply, A, moved, [BATCH], points=5).barrier < 1e-5 < found[0]
    assert found.min() < found[-1]


def test_a_start_with_statistics_and_the_same_outcome_every_time(graph):
    alignment = StraightThrough(start=ActivationMatching())
    assert alignment.needs == (nm.NodeMoments,) and StraightThrough().needs == ()
    stats = nm.collect(toys.apply, graph, [A, B], [BATCH], alignment.needs)
    first, second = (alignment.init(graph, [A, B], stats=stats, key=jax.random.key(1)) for _ in range(2))
    chex.assert_trees_all_equal(first, second)
    np.testing.assert_array_equal(push(alignment, first, graph), np.eye(6)[np.argsort(ORDER)])


def test_bad_input_is_named(graph):
    with pytest.raises(ValueError, match="start must be an alignment or None, got 3"):
        StraightThrough(start=3)
    theta = FROM_IDENTITY.init(graph, [A, B])
    theta[1]["first"][2, 3] = np.nan
    with pytest.raises(ValueError, match="scores has 1 non-finite values of 36 in '1/first'"):
        FROM_IDENTITY.maps(theta, graph)
    alignment = StraightThrough(start=Procrustes(approximate=True))
    stats = nm.collect(toys.apply, graph, [A, OTHER], [BATCH], alignment.needs)
    with pytest.raises(ValueError, match="by permutations, but Procrustes maps 'first' otherwise"):
        alignment.init(graph, [A, OTHER], stats=stats)
