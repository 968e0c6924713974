"""However a fit is divided among devices, and in time, theta is the same."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from npmerge import (
    Average,
    CrossEntropy,
    Joint,
    Learned,
    NextToken,
    PerParameter,
    Proximity,
    Simplex,
    Sum,
    fine_tuning,
    fit,
    stack_models,
    weight_space,
    weighted_sum,
)
from npmerge.masks import masked_mean, padded, weight_of
from npmerge.sharding import layout_of

WIDTH, CLASSES = 16, 8
ADAM = optax.adam(0.05)
NP = Learned(Average(), PerParameter(), Simplex())
WAYS = {
    "jit x8": {"devices": 8},
    "jit x8, features": {"devices": 8, "shard": "features"},
    "pmap x8": {"devices": 8, "parallel": "pmap"},
    "jit x2": {"devices": 2},
    "two parts": {"accumulate": 2},
    "jit x4, two parts": {"devices": 4, "accumulate": 2},
    "pmap x4, two parts": {"devices": 4, "parallel": "pmap", "accumulate": 2},
}


def network(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    sizes = [(WIDTH, WIDTH), (WIDTH, CLASSES)]
    return {f"w{k}": jnp.asarray((rng.standard_normal(s) / 4).astype(np.float32), np.float32) for k, s in enumerate(sizes)}


def apply(params, x):
    return jnp.tanh(x @ params["w0"]) @ params["w1"]


def examples(seed: int, n: int) -> tuple:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, WIDTH)).astype(np.float32), rng.integers(CLASSES, size=n)


STACK = stack_models([network(0), network(1)])
LOSS = weight_space(NP, apply, CrossEntropy())
EVEN = [examples(k, 16) for k in range(3)]
UNEVEN = [examples(0, 16), examples(1, 16), examples(2, 5)]


def learned(batches, **options):
    options = {"held_out": [examples(9, 11)], "every": 5, **options}
    return fit(NP.init(STACK), LOSS, STACK, batches, ADAM, steps=20, **options)


@pytest.fixture(scope="module")
def expected():
    return {"even": learned(EVEN), "uneven": learned(UNEVEN)}


@pytest.mark.parametrize("batches", ["even", "uneven"])
@pytest.mark.parametrize("way", WAYS)
def test_theta_is_that_of_one_device(expected, way: str, batches: str) -> None:
    found, one = learned(EVEN if batches == "even" else UNEVEN, **WAYS[way]), expected[batches]
    chex.assert_trees_all_close(jax.device_get(found.theta), jax.device_get(one.theta), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.history.loss, one.history.loss, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.history.held_out_loss, one.history.held_out_loss, rtol=1e-5, atol=1e-6)
    assert len(one.history.loss) == 20 and one.history.loss[-1] < one.history.loss[0]


@pytest.mark.parametrize("way", ["jit x8", "jit x8, features", "pmap x8"])
def test_nothing_is_compiled_after_the_first_step(way: str) -> None:
    traced = []

    def counting(params, x):
        traced.append(x.shape)
        return apply(params, x)

    loss = fine_tuning(counting, CrossEntropy())
    fit(network(0), loss, None, UNEVEN, ADAM, steps=1, **WAYS[way])
    first = len(traced)
    fit(network(0), loss, None, UNEVEN[:1], ADAM, steps=1, **WAYS[way])
    assert len(traced) - first <= 1  # the check of the batch's shapes
    before = len(traced)
    fit(network(0), loss, None, UNEVEN, ADAM, steps=9, **WAYS[way])
    assert len(traced) - before <= 1


def test_features_lie_divided_and_come_back_so() -> None:
    found = learned(EVEN, **WAYS["jit x8, features"]).theta
    for x in jax.tree.leaves(found):
        assert len(x.sharding.device_set) == 8 and x.addressable_shards[0].data.size == x.size // 8


def test_a_result_can_be_merged_with_what_lies_on_one_device() -> None:
    for way in ("jit x8", "pmap x8"):
        jax.block_until_ready(NP.apply(learned(EVEN, **WAYS[way]).theta, STACK))


def test_whole_numbers_in_theta_stay() -> None:
    def loss(theta, stack, batch):
        return jnp.sum(jnp.square(theta["w"][theta["order"]] - 1.0)) + 0 * jnp.sum(batch[0])

    theta = {"w": jnp.zeros(4), "order": jnp.arange(4)}
    batch = (np.ones((8, 1), np.float32), np.zeros(8, np.float32))
    for way in ("jit x8", "pmap x8"):
        found = fit(theta, loss, None, [batch], optax.sgd(0.25), steps=1, **WAYS[way]).theta
        chex.assert_trees_all_close(found, {"w": jnp.full(4, 0.5), "order": jnp.arange(4)})


def test_masks_leave_out_what_was_filled_up() -> None:
    values, mask = np.arange(6.0, dtype=np.float32).reshape(3, 2), np.array([True, False, True])
    batch = (values, values, mask)
    assert float(masked_mean(jnp.asarray(values), batch)) == values[mask].mean()
    assert float(masked_mean(jnp.asarray(values), (values, values, np.zeros(3, bool)))) == 0
    assert float(weight_of(batch)) == 2 and float(weight_of(batch[:2])) == 3
    filled = padded(batch[:2], 5)
    assert filled[2].tolist() == [True] * 3 + [False] * 2 and filled[0].shape == (5, 2)
    again = padded(padded((values, np.arange(3), mask), 3), 4)
    assert again[2].tolist() == [True, False, True, False]
    with pytest.raises(ValueError, match="a batch of 3 examples cannot be filled up to 2"):
        padded(batch, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 9}, "devices must be from 1 to the 8 that JAX finds here, got 9"),
        ({"devices": 0}, "devices must be from 1 to the 8"),
        ({"devices": []}, "each once"),
        ({"devices": 2.5}, "each once"),
        ({"devices": [jax.devices()[0]] * 2}, "each once"),
        ({"parallel": "pmpa"}, "nearest is 'pmap'"),
        ({"shard": "models"}, "unknown shard 'models'"),
        ({"shard": "features", "parallel": "pmap"}, "shard features under parallel='jit'"),
        ({"accumulate": 0}, "accumulate"),
    ],
)
def test_wrong_layouts(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learned(EVEN, **options)


def test_batches_that_do_not_divide_are_refused_where_the_loss_takes_no_mask() -> None:
    def loss(theta, stack, batch):
        return jnp.mean(jnp.square(batch[0] @ theta["w"] - batch[1]))

    batch = (np.ones((6, 2), np.float32), np.ones(6, np.float32))
    with pytest.raises(ValueError, match="a batch of 6 examples does not divide into 4 equal parts"):
        fit({"w": jnp.zeros(2)}, loss, None, [batch], ADAM, steps=1, devices=4)


def test_layouts_are_values() -> None:
    assert layout_of(4, "jit", None) == layout_of(jax.devices()[:4], "jit", None) != layout_of(4, "pmap", None)
    assert hash(layout_of(4, "jit", None)) == hash(layout_of(4, "jit", None))
    assert layout_of(None, "pmap", None).parts == 8 == layout_of(None, "jit", "features").parts


TOKENS = np.random.default_rng(3).integers(CLASSES, size=(11, 5))
TOKENS[0, 3:] = TOKENS[5, 1:] = -1  # padding


def language(params, tokens):
    return jnp.tanh(params["w0"][tokens]) @ params["w1"]


TASKS = (examples(1, 8), examples(2, 8))
KINDS = {
    "tokens": (language, NextToken(), TOKENS, TOKENS[:7]),
    "tasks": (apply, Joint(CrossEntropy()), TASKS, (examples(3, 5), examples(4, 8))),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["jit x8", "pmap x8", "jit x4, two parts"])
def test_tokens_and_tasks_are_divided_as_examples_are(way: str, kind: str) -> None:
    network_of, objective, first, second = KINDS[kind]
    loss = weight_space(NP, network_of, objective)
    batches = [first, second] if kind == "tokens" or way == "jit x8" else [first]
    one, found = (fit(NP.init(STACK), loss, STACK, batches, ADAM, steps=4, **options) for options in ({}, WAYS[way]))
    chex.assert_trees_all_close(jax.device_get(found.theta), jax.device_get(one.theta), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.history.loss, one.history.loss, rtol=1e-5)


def test_tasks_that_do_not_divide_are_refused_where_parts_are_computed_alone() -> None:
    loss = weight_space(NP, apply, Joint(CrossEntropy()))
    for batch in ((examples(1, 8), examples(2, 5)), (examples(1, 5), examples(2, 8))):
        with pytest.raises(ValueError, match="several tasks cannot be filled up where parts are computed alone: got one of 5"):
            fit(NP.init(STACK), loss, STACK, [batch], ADAM, steps=1, **WAYS["pmap x8"])


@pytest.mark.parametrize("way", ["one device", "jit x4", "pmap x4"])
def test_each_task_is_averaged_alone_over_held_out_batches_of_other_proportions(way: str) -> None:
    """Against float64: sum_k w_k of the mean over all examples of task k, which no weights of whole batches give."""
    held_out = [(examples(1, 4), examples(2, 16)), (examples(3, 12), examples(4, 16))]
    weights = (0.75, 0.5)
    both = Joint(Sum((CrossEntropy(), Proximity())), weights)
    loss = weighted_sum([weight_space(NP, apply, both), weight_space(NP, apply, Sum((Joint(CrossEntropy()), Proximity())))])
    merged = {name: np.asarray(x, np.float64).mean(axis=0) for name, x in STACK.params.items()}
    tasks = [[np.concatenate(x) for x in zip(*batches, strict=True)] for batches in zip(*held_out, strict=True)]

    def cross_entropy(x, y) -> float:
        logits = np.tanh(x @ merged["w0"]) @ merged["w1"]
        return float((np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(y)), y]).mean())

    found = [cross_entropy(*task) for task in tasks]
    near = float(Proximity()(apply, Average()(STACK), STACK, ()))
    expected = np.dot(weights, found) + sum(weights) * near + np.mean(found) + near
    layout = {"one device": {}, "jit x4": {"devices": 4}, "pmap x4": {"devices": 4, "parallel": "pmap"}}[way]
    result = fit(NP.init(STACK), loss, STACK, held_out, ADAM, steps=0, held_out=held_out, **layout)
    assert float(result.history.held_out_loss[0]) == pytest.approx(expected, rel=1e-6)
