"""What no merge method takes in silence, over METHODS: every message names the method, and the tensor where there is one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import (
    ArceeFusion,
    Average,
    Breadcrumbs,
    ChainOfMerges,
    Dare,
    Examples,
    InputGram,
    LinearMerge,
    ModelStock,
    NearSwap,
    NuSlerp,
    Passthrough,
    Pcb,
    RegMean,
    RegMeanPlusPlus,
    Sce,
    Slerp,
    Stack,
    TaskArithmetic,
    WeightedAverage,
    stack_models,
)
from tests.contract.test_methods import KEY, case_of, grams, methods, run, stack_of, stats_for

PATH = "params/dense/kernel"
MULTIPLIED = (TaskArithmetic, Dare, Breadcrumbs)
"""Methods whose weights multiply task vectors and are not divided by their sum."""


def with_leaf(tree, change):
    """A tree like those of the contract with another kernel."""
    dense = tree["params"]["dense"]
    return tree | {"params": tree["params"] | {"dense": dense | {"kernel": change(dense["kernel"])}}}


def merged(method, stack):
    merge = case_of(method).merge
    return merge(stack, stats=stats_for(merge, stack), key=KEY)


def good(method) -> Stack:
    case = case_of(method)
    return stack_of(case, case.models[0])


@methods
@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_models_that_are_not_finite(method, value):
    stack = good(method)
    bad = stack._replace(params=with_leaf(stack.params, lambda x: x.at[-1, 0, 0].set(value)))
    with pytest.raises(ValueError, match=f"the stack that {method.__name__} merges has 1 non-finite values of .* in '{PATH}'"):
        merged(method, bad)
    if stack.base is not None:
        bad = stack._replace(base=with_leaf(stack.base, lambda x: x.at[0, 0].set(value)))
        with pytest.raises(ValueError, match=f"the base that {method.__name__} starts from has 1 non-finite .* in '{PATH}'"):
            merged(method, bad)


@methods
def test_stacks_whose_leaves_do_not_fit(method):
    stack = good(method)
    bad = stack._replace(params=with_leaf(stack.params, lambda x: jnp.concatenate([x, x])))
    with pytest.raises(
        ValueError, match=rf"the stack has \({2 * stack.size}, 3, 4\) at '{PATH}': expected {stack.size} models"
    ):
        merged(method, bad)


@methods
def test_theta_of_other_models(method):
    """An index that is not there would be clipped, and a matrix product say what JAX says."""
    case = case_of(method)
    if method.models[1] or (method.apply is LinearMerge.apply and method not in (Average, TaskArithmetic)):
        pytest.skip("merges one number of models, or shares its `apply` with those")
    merge = case.merge if getattr(case.merge, "weights", None) is None else case.copies(3)
    three, two = stack_of(case, 3), stack_of(case, 2)
    theta = merge.init(three, stats=stats_for(merge, three), key=KEY)
    with pytest.raises(ValueError, match=r"theta at '.*' is of 3 models: the stack has 2"):
        jax.eval_shape(merge.apply, theta, two)


@methods
def test_numbers_of_weights_and_densities(method):
    """One per model, where a method takes them."""
    case, stack = case_of(method), good(method)
    fields = {field.name for field in dataclasses.fields(method)} & {"weights", "density"}
    many = (0.5,) * (stack.size + 1)
    for name in fields:
        try:
            merge = dataclasses.replace(case.merge, **{name: many})
        except ValueError as error:
            assert name == "density" and "density must be a number above 0" in str(error)  # one for all models
            continue
        words = {
            "weights": f"{method.__name__} needs one weight per model",
            "density": "density must be one number, or one per",
        }
        with pytest.raises(ValueError, match=rf"{words[name]}.*got {len(many)} .* for {stack.size} models"):
            merge.init(stack, stats=stats_for(merge, stack), key=KEY)


@methods
def test_weights_without_a_sum(method):
    """Where they are divided by it: they are in all methods whose weights are shares."""
    case, stack = case_of(method), good(method)
    if "weights" not in {field.name for field in dataclasses.fields(method)} or method in MULTIPLIED:
        pytest.skip("no weights, or none that are divided by their sum")
    with pytest.raises(ValueError, match="weights whose sum is not zero"):
        merge = dataclasses.replace(case.merge, weights=(0.0,) * stack.size)
        merge.init(stack, stats=stats_for(merge, stack), key=KEY)


@pytest.mark.parametrize("method", [ModelStock, Slerp, NuSlerp, NearSwap, ArceeFusion], ids=lambda m: m.__name__)
def test_fewer_than_two_models(method):
    with pytest.raises(ValueError, match=rf"{method.__name__} .*two models.*, got 1"):
        merged(method, stack_of(case_of(method), 1))


@methods
def test_a_scale_is_one_number(method):
    """One lambda per task is `weights`."""
    case = case_of(method)
    if "scale" in {f.name for f in dataclasses.fields(method)}:
        for value in ((0.3, 0.3), [0.3], None, float("nan"), float("inf"), True):
            with pytest.raises(ValueError, match=r"scale must be a (finite )?number"):
                dataclasses.replace(case.merge, scale=value)


@methods
def test_statistics_of_other_models(method):
    """Of one more, of one less, and of models with another tensor."""
    case, merge = case_of(method), case_of(method).merge
    if not merge.needs:
        pytest.skip("needs no statistics")
    three = stack_of(case, 3)
    for other in (stack_of(case, 4), stack_of(case, 2)):
        with pytest.raises(ValueError, match=rf"other models|for {other.size} of 3 models"):
            merge.init(three, stats=stats_for(merge, other), key=KEY)
    wider = Stack(with_leaf(three.params, lambda x: jnp.concatenate([x, x], 1)))
    with pytest.raises(
        ValueError, match=f"(other models.*|do not fit the graph at )'{PATH}'|'{PATH}' (is|are) of other models"
    ):
        merge.init(wider, stats=stats_for(merge, three), key=KEY)


@pytest.mark.parametrize("method", [RegMean, RegMeanPlusPlus, ChainOfMerges], ids=lambda m: m.__name__)
def test_a_singular_system_is_said(method):
    """Of inputs that are all alike: what they leave open is the mean, with the tensor and the method named."""
    stack, merge = stack_of(case_of(method), 3), method() if method is ChainOfMerges else method(scale=1.0)
    x = jnp.ones((8, 3))
    known = dataclasses.replace(run(stack, 0), tasks=(((x, jnp.ones(8, bool)),),) * 3)
    stats = {
        Examples: known,
        InputGram: {name: dataclasses.replace(g, gram=jnp.ones_like(g.gram)) for name, g in grams(stack, 0).items()},
    }
    words = rf"{method.__name__}: the data leave directions open at 1 of 1 sites \('{PATH}'\); there weights are averaged"
    with pytest.warns(UserWarning, match=words):
        merged = merge(stack, stats=stats)
    kernel = np.float64(stack.params["params"]["dense"]["kernel"]).mean(0)
    across = np.linalg.svd(np.ones((1, 3)))[2][1:]
    np.testing.assert_allclose(across @ merged["params"]["dense"]["kernel"], across @ kernel, atol=1e-5)


@methods
def test_flags_that_are_no_bool(method):
    """A word such as "no" would count as true."""
    case = case_of(method)
    for field in dataclasses.fields(method):
        if field.type is bool:
            for value in ("no", 1, None):
                with pytest.raises(ValueError, match=f"{method.__name__} takes True or False as {field.name}, got {value!r}"):
                    dataclasses.replace(case.merge, **{field.name: value})


@methods
def test_arrays_of_numbers_are_taken_as_tuples(method):
    case = case_of(method)
    for name in {f.name for f in dataclasses.fields(method)} & {"weights", "density"}:
        if name == "density" and method in (Sce, Pcb):
            continue
        expected = dataclasses.replace(case.merge, **{name: (0.5, 0.25)})
        for array in (jnp.array([0.5, 0.25]), np.array([0.5, 0.25]), [0.5, 0.25], [jnp.float32(0.5), np.float32(0.25)]):
            assert dataclasses.replace(case.merge, **{name: array}) == expected
        for wrong in (jnp.ones((2, 2)), [0.5, [0.25]], "ab"):
            with pytest.raises(ValueError, match=r"one finite weight per model|density must be a number"):
                dataclasses.replace(case.merge, **{name: wrong})


@methods
def test_fractions_out_of_range(method):
    case = case_of(method)
    for field in {f.name for f in dataclasses.fields(method)} & {"density", "epsilon", "gamma", "common"}:
        for value in (-0.1, 1.1, float("nan"), "0.5"):
            with pytest.raises(ValueError, match=r"must be a number (above 0 and at most 1|from 0 to 1), got"):
                dataclasses.replace(case.merge, **{field: value})
    if "density" in {f.name for f in dataclasses.fields(method)}:
        with pytest.raises(ValueError, match="density must be a number above 0 and at most 1, got 0"):
            dataclasses.replace(case.merge, density=0)


def test_a_result_that_the_stored_type_does_not_hold():
    kernel = jnp.full((2, 2), 6e4, jnp.float16)
    base = {"w": jnp.zeros((2, 2), jnp.float16)}
    for merge, n in ((Passthrough(2.0), 1), (WeightedAverage((1, 1), normalise=False), 2), (TaskArithmetic(1.0), 2)):
        stack = stack_models([{"w": kernel}] * n, base)
        with pytest.raises(ValueError, match=f"the result of {type(merge).__name__} has 4 non-finite values of 4 in 'w'"):
            merge(stack)
    assert np.all(np.asarray(Average()(stack_models([{"w": kernel}] * 2))["w"]) == np.float16(6e4))


def test_huge_values_are_finite():
    """Their squares are not."""
    stack = stack_models([{"w": jnp.full((2,), 1e30)}] * 2)
    np.testing.assert_allclose(Average()(stack)["w"], 1e30)


def test_traced_values_are_passed_over():
    stack = stack_models([{"w": jnp.ones(2)}] * 2)
    np.testing.assert_array_equal(jax.jit(Average())(stack)["w"], 1)
    assert np.isnan(jax.jit(Average())(Stack({"w": jnp.full((2, 2), jnp.nan)}))["w"]).all()
