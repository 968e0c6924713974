"""Products of features with themselves, computed by blocks."""

import numpy as np
import pytest

from alignment.activations.products import LEAST, gram
from tests.alignment import networks


@pytest.mark.parametrize("units", [7, 2 * LEAST - 1, 2 * LEAST, 4 * LEAST + 3])
def test_blocks_make_the_whole(units):
    x = networks.data(2, 5, units)
    found = np.asarray(gram(x))
    np.testing.assert_allclose(found, np.asarray(x, np.float64).mT @ np.asarray(x, np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, found.mT)
