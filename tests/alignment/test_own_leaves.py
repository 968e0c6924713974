"""Networks of one body, and what their heads are."""

import jax.numpy as jnp
import pytest

from alignment.own_leaves import own_leaves
from alignment.tracing.trace import trace


def network(v, x):
    return jnp.maximum(x @ v["up"], 0) @ v["head"]


def variables(hidden=3, outputs=2):
    return {"up": jnp.ones((4, hidden)), "head": jnp.ones((hidden, outputs))}


GRAPH = trace(network, variables(), jnp.ones((1, 4)))


def test_heads_are_the_leaves_that_make_no_units():
    assert own_leaves(GRAPH, [variables(), variables()]) == ()
    assert own_leaves(GRAPH, [variables(), variables(outputs=5)]) == ("head",)
    assert own_leaves(GRAPH, [variables(), variables()], heads=True) == ("head",)


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"model 1 is of another structure than model 0: only one of them has the leaf 'bias'"):
        own_leaves(GRAPH, [variables(), variables() | {"bias": jnp.ones(2)}])
    with pytest.raises(ValueError, match=r"'up', which makes .*, has shapes \(4, 3\), \(4, 6\): only heads may differ"):
        own_leaves(GRAPH, [variables(), variables(hidden=6)])
