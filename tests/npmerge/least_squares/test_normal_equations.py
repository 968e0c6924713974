"""Normal equations of copies side by side against each of them by itself, written out in float64."""

import numpy as np

from alignment.activations.taps import SiteFeatures
from npmerge.least_squares.normal_equations import sums_of
from npmerge.linear_layers import Layer
from tests.npmerge.toys import array

BIAS = array(3, 2, 4)


def test_sums_of_copies_with_a_bias():
    inputs, outputs, layer = array(0, 2, 7, 3), array(1, 2, 7, 4), Layer(array(2, 2, 3, 4), BIAS)
    found = sums_of(SiteFeatures(inputs, outputs), layer)
    for k in range(2):
        x = np.hstack([np.float64(inputs[k]), np.ones((7, 1))])
        missing = np.float64(outputs[k]) - x @ np.vstack([np.float64(layer.matrix[k]), np.float64(BIAS[k])[None]])
        np.testing.assert_allclose(found.gram[k], x.T @ x, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.cross[k], x.T @ missing, rtol=1e-4, atol=1e-4)
    assert found.samples == 7
