"""Adapters of low rank merge as full weights do, and no full weights are made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from npmerge.constraints import Free, Simplex
from npmerge.fitting.fit import fit
from npmerge.granularity import PerChannel, PerModel, PerParameter, PerTensor
from npmerge.learned import Learned
from npmerge.linear import combine
from npmerge.lora import stack_adapters
from npmerge.low_rank import LowRank, materialised, with_low_rank
from npmerge.methods.average import Average
from npmerge.methods.task_arithmetic import TaskArithmetic
from npmerge.methods.ties import Ties

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


BASE = {"a": {"kernel": jnp.asarray(normal(7, 5)), "bias": jnp.asarray(normal(5))}, "b": {"kernel": jnp.asarray(normal(8, 5))}}
ADAPTERS = [
    {"a/kernel": (normal(7, 2), normal(2, 5)), "b/kernel": (normal(8, 1), normal(1, 5))},
    {"a/kernel": (normal(7, 3), normal(3, 5))},
]
X = jnp.asarray(normal(2, 3, 7))


def network(params, x):
    hidden = jax.nn.relu(jnp.einsum("...i,ij->...j", x, params["a"]["kernel"]) + params["a"]["bias"][None, None])
    return hidden @ params["b"]["kernel"].T


def loss(merge, apply):
    return lambda theta, stack, batch=(X,): jnp.mean(apply(merge.apply(theta, stack), batch[0]) ** 2)


def merges():
    return [
        Learned(TaskArithmetic(0.3), PerTensor(), Free()),
        Learned(TaskArithmetic(0.3), PerChannel(), Free()),
        Learned(Average(), PerModel(), Simplex()),
    ]


@pytest.mark.parametrize("merge", [Average(), TaskArithmetic(0.4), *merges()])
def test_equals_the_merge_of_full_weights(merge):
    stack = stack_adapters(ADAPTERS, BASE)
    merged = merge(stack)
    assert isinstance(merged["a"]["kernel"], LowRank) and merged["a"]["kernel"].left.shape == (7, 6)
    expected = merge(stack.whole())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), materialised(merged), expected)
    np.testing.assert_allclose(with_low_rank(network)(merged, X), network(expected, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("merge", merges())
def test_gradients_equal_those_of_full_weights(merge):
    stack = stack_adapters(ADAPTERS, BASE)
    theta = merge.init(stack)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), theta, merge.init(stack.whole()))
    got = jax.jit(jax.grad(loss(merge, with_low_rank(network))))(theta, stack)
    expected = jax.jit(jax.grad(loss(merge, network)))(theta, stack.whole())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, expected)


def shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from ((equation.primitive.name, x.aval.shape) for x in equation.outvars)
        for value in equation.params.values():
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from shapes(inner)


def test_no_full_weights_are_made():
    merge, stack = merges()[0], stack_adapters(ADAPTERS, BASE)
    full = {(7, 5), (5, 7), (8, 5), (5, 8), (2, 7, 5), (2, 8, 5)}
    theta = merge.init(stack)
    found = list(shapes(jax.make_jaxpr(jax.value_and_grad(loss(merge, with_low_rank(network))))(theta, stack).jaxpr))
    assert {name for name, shape in found if shape in full} <= {"transpose"}  # of the base itself
    whole = list(shapes(jax.make_jaxpr(jax.value_and_grad(loss(merge, network)))(theta, stack.whole()).jaxpr))
    assert {"mul", "add"} <= {name for name, shape in whole if shape in full}


def test_coefficients_are_learned():
    merge, stack = merges()[0], stack_adapters(ADAPTERS, BASE)
    start, function = merge.init(stack), loss(merge, with_low_rank(network))
    result = fit(start, function, stack, [(X, X)], optax.adam(0.05), steps=20)
    assert result.history.loss[-1] < 0.9 * result.history.loss[0]


def test_other_uses_of_a_weight_make_the_whole_of_it():
    merged = TaskArithmetic(0.4)(stack_adapters(ADAPTERS, BASE))

    def function(params, x):
        return jnp.sum(params["a"]["kernel"] ** 2) + jnp.sum(params["a"]["kernel"] @ params["b"]["kernel"].T) + x.sum()

    np.testing.assert_allclose(with_low_rank(function)(merged, X), function(materialised(merged), X), rtol=1e-5)


@pytest.mark.parametrize("function", [lambda w, x: jax.jit(jnp.matmul)(x, w), lambda w, x: jnp.tensordot(w, x, (0, 2))])
def test_a_product_in_a_jitted_function_or_with_the_weight_first_makes_no_whole_weight(function):
    merged = TaskArithmetic(0.4)(stack_adapters(ADAPTERS, BASE))["a"]["kernel"]
    np.testing.assert_allclose(with_low_rank(function)(merged, X), function(merged.whole(), X), rtol=1e-4, atol=1e-5)
    made = shapes(jax.make_jaxpr(with_low_rank(function))(merged, X).jaxpr)
    assert not {name for name, shape in made if shape in {(7, 5), (5, 7)}} - {"transpose"}  # of the base itself


def test_bfloat16_is_rounded_once():
    base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), BASE)
    stack = stack_adapters(ADAPTERS, base)
    merged, c = TaskArithmetic(0.4)(stack), 0.4
    update = sum(a["a/kernel"][0].astype(np.float64) @ a["a/kernel"][1] for a in ADAPTERS)
    expected = np.asarray(base["a"]["kernel"], np.float64) + c * update
    got = np.asarray(materialised(merged)["a"]["kernel"], np.float64)
    np.testing.assert_allclose(got, expected, rtol=2**-8, atol=1e-6)
    assert with_low_rank(network)(merged, X.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("adapters", "says"),
    [
        ([], "nothing to merge"),
        ([{}], "nothing to merge"),
        ([{"a/kernl": ADAPTERS[0]["a/kernel"]}], "the nearest is 'a/kernel'"),
        ([{"a/kernel": (normal(7, 2), normal(3, 5))}], r"their product is no matrix \(7, 5\)"),
        ([{"a/bias": (normal(5, 1), normal(1, 1))}], r"no matrix \(5,\)"),
        ([{"a/kernel": (np.full((7, 1), np.nan, np.float32), normal(1, 5))}], "non-finite"),
    ],
)
def test_bad_adapters(adapters, says):
    with pytest.raises(ValueError, match=says):
        stack_adapters(adapters, BASE)


def test_what_needs_full_weights_says_so():
    stack = stack_adapters(ADAPTERS, BASE)
    with pytest.raises(ValueError, match=r"Ties needs the weights themselves: merge stack.whole\(\)"):
        Ties()(stack)
    with pytest.raises(ValueError, match="may differ along one axis only"):
        Learned(TaskArithmetic(0.3), PerParameter(), Free())(stack)
    full = stack.whole()
    assert jax.tree.leaves(combine(TaskArithmetic(0.3).init(full), full))[0].shape == (5,)


def test_a_product_is_itself_and_no_other():
    """Compared by its entries it could be no key, and `==` would be an array."""
    one, other = (LowRank(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.float32(1)) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2
