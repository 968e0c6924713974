"""Normal equations of copies side by side against each of them by itself, written out in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.activations.taps import SiteFeatures
from npmerge.least_squares.normal_equations import SOLVING, Errors, bytes_of, errors_of, no_sums, sums_of
from npmerge.linear_layers import Layer
from tests.npmerge.toys import array

BIAS = array(3, 2, 4)


def test_sums_of_copies_with_a_bias():
    inputs, outputs, layer = array(0, 2, 7, 3), array(1, 2, 7, 4), Layer(array(2, 2, 3, 4), BIAS)
    found = sums_of(SiteFeatures(inputs, outputs), layer)
    squares = 0.0
    for k in range(2):
        x = np.hstack([np.float64(inputs[k]), np.ones((7, 1))])
        missing = np.float64(outputs[k]) - x @ np.vstack([np.float64(layer.matrix[k]), np.float64(BIAS[k])[None]])
        np.testing.assert_allclose(found.gram[k], x.T @ x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.cross[k], x.T @ missing, rtol=1e-4, atol=1e-4)
        squares += np.square(missing).sum()
    assert found.samples == 7
    for errors in (found.errors, errors_of(SiteFeatures(inputs, outputs), layer)):
        np.testing.assert_allclose(errors.missing, squares, rtol=1e-4)
        np.testing.assert_allclose(errors.targets, np.square(np.float64(outputs)).sum(), rtol=1e-4)


@pytest.mark.parametrize("bias", [BIAS, None])
def test_sums_over_nothing_and_their_bytes_are_those_of_a_batch(bias):
    layer = Layer(array(2, 2, 3, 4), bias)
    sums = sums_of(SiteFeatures(array(0, 2, 7, 3), array(1, 2, 7, 4)), layer)
    chex.assert_trees_all_equal(no_sums({"site": layer}), {"site": jax.tree.map(jnp.zeros_like, sums)})
    assert bytes_of(layer) == (sums.gram.nbytes + sums.cross.nbytes, SOLVING * (sums.gram.nbytes + sums.cross.nbytes) // 2)


@pytest.mark.parametrize(
    ("missing", "targets", "relative"),
    [(1.0, 4.0, 0.5), (0.0625, 0.25, 0.5), (9.0, 4.0, 1.5), (0.0, 0.0, 0.0), (0.5, 0.0, 1.0)],
)
def test_the_relative_error_is_defined_where_there_are_no_targets(missing, targets, relative):
    assert Errors(missing, targets).relative() == relative
