"""Re-estimating running statistics: against two passes over the data in float64."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import reset_statistics
from npmerge.models import ResNetCifar, build
from npmerge.normalisation import reset_some
from tests.npmerge.toys import apply, array, batch, normal, variables


class Net(nn.Module):
    """Two Linen BatchNorm layers of different momentum."""

    momenta: tuple[float, float] = (0.9, 0.5)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width, momentum in zip((6, 5), self.momenta, strict=True):
            x = nn.Dense(width, use_bias=False)(x)
            x = nn.BatchNorm(use_running_average=not train, momentum=momentum)(x)
            x = nn.tanh(x)
        return nn.Dense(3, use_bias=False)(x)


def network(*momenta: float) -> tuple[Any, Any]:
    net = Net(momenta)

    def train_apply(variables, inputs):
        with jax.numpy_rank_promotion("allow"):
            outputs, new = net.apply(variables, inputs, train=True, mutable=["batch_stats"])
        return outputs, {**variables, **new}

    with jax.numpy_rank_promotion("allow"):
        return train_apply, net.init(jax.random.key(0), jnp.ones((1, 4)))


def oracle(variables: Any, batches: np.ndarray) -> dict:
    """Averages over equal batches of each batch's own mean and variance, layer by layer, in float64."""
    x, stats = batches.astype(np.float64), {}
    for k in range(2):
        x = x @ np.asarray(variables["params"][f"Dense_{k}"]["kernel"], np.float64)
        mean, var = x.mean(1), x.var(1)
        stats[f"BatchNorm_{k}"] = {"mean": mean.mean(0), "var": var.mean(0)}
        x = np.tanh((x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5))
    return stats


def as_batches(x: np.ndarray) -> list:
    return [(jnp.asarray(b, jnp.float32), None) for b in x]


DATA = 1 + 2 * normal(0, 3, 16, 4)


@pytest.mark.parametrize("momenta", [(0.9, 0.5), (0.99, 0.0)], ids=str)
def test_linen_layers_of_any_momentum(momenta):
    train_apply, start = network(*momenta)
    reset = reset_statistics(train_apply, start, as_batches(DATA))
    chex.assert_trees_all_equal(reset["params"], start["params"])
    chex.assert_trees_all_equal_shapes_and_dtypes(reset, start)
    chex.assert_trees_all_close(reset["batch_stats"], oracle(start, DATA), rtol=2e-5, atol=1e-5)
    first = DATA.reshape(-1, 4) @ np.asarray(start["params"]["Dense_0"]["kernel"], np.float64)
    chex.assert_trees_all_close(reset["batch_stats"]["BatchNorm_0"]["mean"], first.mean(0), rtol=2e-5, atol=1e-5)


def test_large_activations_do_not_hide_the_momentum():
    train_apply, start = network(0.9, 0.5)
    reset = reset_statistics(train_apply, start, as_batches(1000 * DATA))
    chex.assert_trees_all_close(reset["batch_stats"], oracle(start, 1000 * DATA), rtol=1e-4)


def test_what_was_there_before_and_the_order_do_not_matter():
    train_apply, start = network(0.9, 0.5)
    expected = reset_statistics(train_apply, start, as_batches(DATA))
    other = start | {"batch_stats": jax.tree.map(lambda x: 7 * x - 3, start["batch_stats"])}
    chex.assert_trees_all_equal(reset_statistics(train_apply, other, iter(as_batches(DATA))), expected)
    chex.assert_trees_all_close(reset_statistics(train_apply, start, as_batches(DATA[::-1])), expected, rtol=1e-5, atol=1e-6)
    again = reset_statistics(train_apply, expected, as_batches(DATA))
    chex.assert_trees_all_equal(again, expected)


def test_train_apply_may_be_jitted():
    train_apply, start = network(0.9, 0.5)
    expected = reset_statistics(train_apply, start, as_batches(DATA))
    chex.assert_trees_all_close(reset_statistics(jax.jit(train_apply), start, as_batches(DATA)), expected, rtol=1e-5)


def test_a_residual_network():
    """The first layer against a convolution in float64 numpy, every layer against its known momentum 0.99."""
    config = ResNetCifar(1, 4, "A", classes=3, side=8, channels=2)
    net = build(config)
    x = normal(1, 3, 4, 8, 8, 2)
    reset = reset_statistics(net.train_apply, net.variables, as_batches(x))
    chex.assert_trees_all_equal(reset["params"], net.variables["params"])
    step = jax.jit(net.train_apply)
    zero = net.variables | {"batch_stats": jax.tree.map(jnp.zeros_like, net.variables["batch_stats"])}
    seen = [step(zero, inputs)[1]["batch_stats"] for inputs, _ in as_batches(x)]
    expected = jax.tree.map(lambda *s: np.mean([np.asarray(v, np.float64) for v in s], axis=0) / 0.01, *seen)
    chex.assert_trees_all_close(reset["batch_stats"], expected, rtol=1e-4, atol=1e-5)

    kernel = np.asarray(net.variables["params"]["conv"]["kernel"], np.float64)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    y = sum(padded[:, :, i : i + 8, j : j + 8] @ kernel[i, j] for i in range(3) for j in range(3))
    first = {"mean": y.mean((0, 1, 2, 3)), "var": y.var((1, 2, 3)).mean(0)}
    chex.assert_trees_all_close(reset["batch_stats"]["norm"], first, rtol=1e-4, atol=1e-5)


def test_a_network_without_statistics_comes_back_as_it_is():
    model = variables(0)

    def train_apply(v, x):
        return apply(v, x), v

    assert reset_statistics(train_apply, model, [batch(0)]) is model


def test_integer_counters_are_no_statistics():
    """PyTorch's num_batches_tracked: it moves, and is left as it was."""

    def train_apply(v, x):
        mean = 0.9 * v["mean"] + 0.1 * x.mean(0)
        return x - jnp.broadcast_to(mean, x.shape), {"mean": mean, "count": v["count"] + 1}

    x = jnp.asarray(normal(0, 8, 2), jnp.float32)
    reset = reset_statistics(train_apply, {"mean": jnp.zeros(2), "count": jnp.array(5)}, [(x, None)])
    chex.assert_trees_all_close(reset, {"mean": x.mean(0), "count": jnp.array(5)}, rtol=1e-5)


def test_errors():
    train_apply, start = network(0.9, 1.0)
    with pytest.raises(ValueError, match="does not move the statistics at 'batch_stats/BatchNorm_1/mean': is its momentum 1"):
        reset_statistics(train_apply, start, as_batches(DATA))
    with pytest.raises(ValueError, match="reset_statistics needs data: got no batches"):
        reset_statistics(train_apply, start, [])
    with pytest.raises(
        ValueError, match=r"as it was given them: 'params/\S+' is missing; with Flax Linen: .*\{\*\*v, \*\*new\}"
    ):
        reset_statistics(lambda v, x: (x, {"batch_stats": v["batch_stats"]}), start, as_batches(DATA))
    with pytest.raises(ValueError, match="'more' was not given; with Flax Linen"):
        reset_statistics(lambda v, x: (x, {**v, "more": x}), start, as_batches(DATA))
    with pytest.raises(ValueError, match=r"train_apply must return \(outputs, .*: got the outputs alone, as apply"):
        reset_statistics(lambda v, x: x, start, as_batches(DATA))


def test_statistics_that_training_mode_leaves_are_named():
    train_apply, start = network(0.9, 0.5)
    first = "batch_stats/BatchNorm_0/mean"
    with pytest.raises(ValueError, match=f"hands the statistics at '{first}' through unchanged: is it in training mode"):
        reset_statistics(lambda v, x: (x, v), start, as_batches(DATA))

    def frozen(v, x):
        outputs, new = train_apply(v, x)
        return outputs, new | {"batch_stats": new["batch_stats"] | {"BatchNorm_0": v["batch_stats"]["BatchNorm_0"]}}

    with pytest.raises(ValueError, match=f"'{first}' through unchanged"):
        reset_statistics(frozen, start, as_batches(DATA))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((0, 4), np.float32), r"a batch must hold examples: got an array of shape \(0, 4\)"),
        (np.full((16, 4), np.nan, np.float32), "the inputs of a batch have 64 non-finite values of 64"),
        (np.full((16, 4), 3e38, np.float32), "what training mode makes of the statistics has .* non-finite values"),
    ],
    ids=["empty", "nan", "overflow"],
)
def test_a_later_batch_that_spoils_them_is_refused(batch, message):
    train_apply, start = network(0.9, 0.5)
    with pytest.raises(ValueError, match=message):
        reset_statistics(train_apply, start, [*as_batches(DATA), (batch, None)])


def corrected(v, x):
    """A norm as Haiku's: evaluation reads `average`, which training makes of `hidden`, as of another norm behind it."""
    hidden = [0.9 * v[name]["hidden"] + 0.1 * scale * x.mean(0) for name, scale in (("near", 1.0), ("far", 3.0))]
    return x, {name: {"hidden": h, "average": h / 0.99} for name, h in zip(("near", "far"), hidden, strict=True)}


def test_with_some_statistics_go_those_that_they_are_made_of():
    """Evaluation never reads the hidden ones: left as they are they would be a part of what is estimated."""
    stale = {name: {"hidden": jnp.full(3, 7.0), "average": jnp.full(3, 7.0)} for name in ("near", "far")}
    batches = [(array(k, 8, 3), None) for k in range(2)]
    every = reset_statistics(corrected, stale, batches)
    some = reset_some(corrected, stale, batches, {"near/average"})
    chex.assert_trees_all_close(some["near"], every["near"], rtol=1e-5)
    chex.assert_trees_all_equal(some["far"], stale["far"])
    assert jnp.abs(every["far"]["average"] - 7).min() > 1
