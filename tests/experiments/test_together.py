"""Several networks trained by one program: each learns from its own examples and keeps its own best moment."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.together import Regime, side_by_side, train_together

REGIME = Regime(rate=0.15, steps=40, batch=4, moments=4)


def squares(variables, inputs, targets):
    return jnp.square(inputs @ variables["w"] - targets)


def doubled(key, inputs, targets):
    return inputs, 2 * targets


@pytest.fixture(scope="module")
def parts():
    rng = np.random.default_rng(0)
    sizes, slopes = (5, 3), (1.0, -2.0)
    inputs = [rng.normal(size=(n, 1)).astype(np.float32) for n in sizes]
    return [(x, slope * x[:, 0]) for x, slope in zip(inputs, slopes, strict=True)]


def trained(parts, validation=None, regime=REGIME, **options):
    sides = side_by_side(parts), side_by_side(validation or parts)
    return train_together({"w": jnp.zeros(1)}, squares, *sides, regime, seed=0, **options)


def test_examples_are_repeated_until_all_have_as_many(parts):
    side = side_by_side(parts)
    assert side.inputs.shape == (2, 256, 1) and side.counts.tolist() == [5, 3]
    np.testing.assert_array_equal(side.targets[1][:5], parts[1][1][[0, 1, 2, 0, 1]])


def test_each_learns_from_its_own(parts):
    found = trained(parts)
    first, second = (float(network["w"][0]) for network in found.each)
    assert 0.5 < first < 1.5 and -2.5 < second < -1.0
    assert found.losses.shape == (2, 5) and (found.losses[:, -1] < found.losses[:, 0]).all()


def test_losses_count_every_validation_example_once(parts):
    start = [float(np.mean(np.square(y))) for _, y in parts]
    np.testing.assert_allclose(trained(parts).losses[:, 0], start, rtol=1e-5)


def test_a_network_that_only_gets_worse_stays_as_it_was(parts):
    validation = [(x, 0 * y) for x, y in parts]
    found = trained(parts, validation)
    assert not np.asarray(found.networks["w"]).any() and (found.losses[:, 1:] > found.losses[:, :1]).all()
    assert found.moments == [0, 0] and found._replace(losses=jnp.array([[3.0, 1, 2], [2, jnp.nan, 1]])).moments == [1, 2]


def test_batches_can_be_changed(parts):
    plain, twice = (trained(parts, regime=REGIME, **options) for options in ({}, {"change": doubled}))
    assert abs(twice.networks["w"][0, 0]) > abs(plain.networks["w"][0, 0])


def test_side_by_side_or_in_turn_is_the_same(parts):
    at_once = trained(parts, regime=dataclasses.replace(REGIME, at_once=2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), trained(parts).networks, at_once.networks)


def test_a_network_without_examples(parts):
    with pytest.raises(ValueError, match="every network needs examples"):
        side_by_side([parts[0], (np.zeros((0, 1)), np.zeros(0))])
