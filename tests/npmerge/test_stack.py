import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

import npmerge
from alignment import WeightMatching, align, trace
from npmerge import Stack, stack_models
from tests.npmerge.toys import variables


def test_models_stand_side_by_side_and_come_back():
    models = [variables(k) for k in range(3)]
    base = variables(9)
    stack = stack_models(models, base)
    assert stack.size == 3
    assert stack.params["first"]["kernel"].shape == (3, 4, 6)
    assert stack.base is base
    for got, expected in zip(stack.models(), models, strict=True):
        chex.assert_trees_all_equal(got, expected)
    assert stack_models(models).base is None


def test_it_prints_in_a_line():
    stack = stack_models([variables(k) for k in range(3)], variables(9))
    assert repr(stack) == "Stack(3 models of 4 tensors and 51 parameters each, a base)"
    assert repr(Stack({})) == "Stack(0 models of 0 tensors and 0 parameters each, no base)"
    assert "no base" in str(jax.eval_shape(lambda: Stack(stack.params)))


def test_numpy_models_are_accepted():
    stack = stack_models([{"w": np.ones(2, np.float32)}, {"w": np.zeros(2, np.float32)}])
    chex.assert_trees_all_equal(stack, Stack({"w": jnp.array([[1.0, 1.0], [0.0, 0.0]])}))


def changed(path: str, value) -> dict:
    """Model 1 with one leaf replaced, or removed if the value is None."""
    model = variables(1)
    layer, leaf = path.split("/")
    if value is None:
        del model[layer][leaf]
    else:
        model[layer][leaf] = value
    return model


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("out/bias", jnp.ones(4), r"model 1 differs from model 0 at 'out/bias': got float32\[4\], expected float32\[3\]"),
        (
            "first/kernel",
            jnp.ones((4, 6), jnp.bfloat16),
            r"model 1 .*at 'first/kernel': got bfloat16\[4, 6\], expected float32\[4, 6\]",
        ),
        ("out/bias", None, r"model 1 .*at 'out/bias': got no such leaf, expected float32\[3\]"),
        ("out/extra", jnp.ones(2), r"model 1 .*at 'out/extra': got float32\[2\], expected no such leaf"),
        ("out/bias", jnp.array([1.0, jnp.nan, jnp.inf]), "model 1 has 2 non-finite values of 3 in 'out/bias'"),
    ],
    ids=["shape", "dtype", "missing", "extra", "nan"],
)
def test_models_that_do_not_fit_are_named(path, value, message):
    with pytest.raises(ValueError, match=message):
        stack_models([variables(0), changed(path, value)])


@pytest.mark.parametrize("name", ["layers/{}/w", "params/Dense_{}/w"])
def test_models_of_another_depth_are_told_so(name):
    """Some of their layers have other shapes, too, which would hide it."""
    twenty, more = ({name.format(k): jnp.ones(2 + (k >= n // 2)) for k in range(n)} for n in (4, 6))
    place = name.partition("{")[0]
    with pytest.raises(ValueError, match=rf"^model 1 differs from model 0 in depth: got 6 of '{place}\*', expected 4$"):
        stack_models([twenty, more])
    graph = trace(lambda v, x: sum(x @ w[:, None] for w in v.values() if len(w) == 2), twenty, jnp.ones((1, 2)))
    with pytest.raises(
        ValueError, match=rf"^model 1: variables do not fit the graph in depth: got 6 of '{place}\*', expected 4$"
    ):
        align(WeightMatching(), graph, [twenty, more])


def test_a_base_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="the base differs from model 0 at 'out/bias'"):
        stack_models([variables(0), variables(1)], base=changed("out/bias", jnp.ones(5)))
    with pytest.raises(ValueError, match="the base has 1 non-finite values of 3 in 'out/bias'"):
        stack_models([variables(0)], base=changed("out/bias", jnp.array([0.0, -jnp.inf, 0.0])))


def test_a_stack_that_was_made_by_hand_is_checked():
    three = Stack({"w": jnp.ones((2, 3)), "v": jnp.ones((2, 1))}, {"w": jnp.ones(4), "v": jnp.ones(1)})
    with pytest.raises(ValueError, match=r"the stack has \(2, 3\) at 'w': expected 2 models of a base with \(4,\)"):
        npmerge.Average()(three)
    uneven = Stack({"w": jnp.ones((2, 3)), "v": jnp.ones((3, 1))})
    with pytest.raises(ValueError, match=r"the stack has \(2, 3\) at 'w': expected 3 models as all leaves have"):
        npmerge.Average()(uneven)


def test_other_errors():
    with pytest.raises(ValueError, match="nothing to merge: got an empty list"):
        stack_models([])
    with pytest.raises(ValueError, match="model 0 has no leaves"):
        stack_models([{}, {}])
    counted = [{"w": jnp.ones(2), "steps": jnp.array(3)}] * 2
    with pytest.raises(ValueError, match="model 0 has a leaf of dtype int32 at 'steps': only floating-point"):
        stack_models(counted)
    with pytest.raises(ValueError, match=r"model 1 differs from model 0 in its containers: got tuple at 'w', expected list$"):
        stack_models([{"w": [jnp.ones(2)]}, {"w": (jnp.ones(2),)}])
    with pytest.raises(ValueError, match=r"in its containers: got FrozenDict, expected dict$"):
        stack_models([{"w": jnp.ones(2)}, FrozenDict({"w": jnp.ones(2)})])
