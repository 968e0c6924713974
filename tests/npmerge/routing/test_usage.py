"""Mean weights and entropies, against NumPy."""

import numpy as np
import pytest

import npmerge as nm
from tests.npmerge.routing.networks import DEPTH, PATTERN, apply, experts, inputs

MODELS, X = experts(2), inputs(n=4)
RNG = np.random.default_rng(3)


def drawn(router):
    routed = nm.route(apply, MODELS, PATTERN, X, router)
    kernels = {name: RNG.normal(size=x.shape).astype(np.float32) for name, x in routed.variables["router"].items()}
    return routed.apply, {**routed.variables, "router": kernels}


def entropy(w):
    return -(w * np.log(w)).sum(-1)


@pytest.mark.parametrize("masked", [None, "examples", "tokens", "targets"])
def test_means_are_over_what_counts(masked):
    routed, variables = drawn(nm.Router(layers=2))
    mask = np.ones((4, 3), bool)
    if masked:
        mask[3, ...] = False
        mask[2, 1:] = masked == "examples"
    third = {None: (), "examples": (mask[:, 0],), "tokens": (mask,), "targets": ()}[masked]
    targets = np.where(mask, 0, -1) if masked == "targets" else None
    whole = (X, targets, *third)
    batches = [tuple(None if x is None else x[part] for x in whole) for part in (slice(0, 1), slice(1, 4))]
    usage = routed.usage(variables, batches)
    weights = routed.weights(variables, X)
    assert usage.blocks == ("0", "1", "2")
    np.testing.assert_array_equal(usage.depths, [[0, 1], [1, 2], [2, 1]])
    np.testing.assert_array_equal(usage.tokens, [mask.sum()] * DEPTH)
    for k, name in enumerate(usage.blocks):
        w = np.asarray(weights[name], np.float64)[mask]
        assert w.shape == (mask.sum(), 4)
        np.testing.assert_allclose(usage.weights[k].ravel(), w.mean(0), rtol=1e-5)
        np.testing.assert_allclose(usage.entropy[k], entropy(w).mean(), rtol=1e-5)


def test_a_router_of_zeros_has_the_entropy_of_equal_weights():
    routed = nm.route(apply, MODELS, PATTERN, X, nm.Router(layers=3))
    usage = routed.apply.usage(routed.variables, [(X, None)])
    np.testing.assert_allclose(usage.weights, np.full((DEPTH, 3, 2), 1 / 6), rtol=1e-6)
    np.testing.assert_allclose(usage.entropy, np.log(6), rtol=1e-6)


def test_a_single_router_has_the_same_weights_everywhere():
    routed, variables = drawn(nm.Router(shared=True))
    first, *others = routed.weights(variables, X).values()
    assert first.std() > 0.01
    for w in others:
        np.testing.assert_array_equal(w, first)


def test_weights_that_are_the_same_for_all_tokens():
    routed, variables = drawn(nm.Router(per="example"))
    assert routed.weights(variables, X)["1"].shape == (4, 2)
    np.testing.assert_array_equal(routed.usage(variables, [(X, None)]).tokens, [4] * DEPTH)
    fixed = nm.route(apply, MODELS, PATTERN, X, nm.FeatureAveraging((1.0, 0.0)))
    usage = fixed.apply.usage(fixed.variables, [(X, None), (X, None)])
    np.testing.assert_array_equal(usage.weights, [[[1.0, 0.0]]] * DEPTH)
    np.testing.assert_array_equal(usage.entropy, np.zeros(DEPTH))


def test_without_data():
    routed, variables = drawn(nm.Router())
    with pytest.raises(ValueError, match=r"^usage needs data: got no batches$"):
        routed.usage(variables, [])
    with pytest.raises(ValueError, match=r"^measuring needs batches that end"):
        routed.usage(variables, nm.shuffled(X, np.zeros(4, int), 2, seed=0))
