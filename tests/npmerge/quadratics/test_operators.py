"""What operators do to a tensor, against matrices written out."""

import jax.numpy as jnp
import numpy as np

from alignment import trace
from npmerge.quadratics.operators import Diagonal, Gram, Identity, Kronecker
from tests.npmerge.toys import array, dense, normal

X = array(0, 2, 3, 4)
SITE = trace(dense, {"kernel": X[0], "bias": array(1, 4)}, jnp.zeros((2, 3))).sites[0]


def test_operators_are_their_matrices():
    a, b = jnp.asarray(normal(2, 2, 3, 3)), jnp.asarray(normal(3, 2, 4, 4))
    np.testing.assert_allclose(Gram((a,), (SITE,))(X), np.einsum("mij,mjk->mik", a, X), rtol=1e-5, atol=1e-5)
    whole = np.stack([(np.kron(p, q.T) @ x.ravel()).reshape(3, 4) for p, q, x in zip(a, b, np.asarray(X), strict=True)])
    np.testing.assert_allclose(Kronecker((a,), (b,), (SITE,))(X), whole, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(Diagonal(X)(X), X * X)
    np.testing.assert_array_equal(Identity()(X), X)
