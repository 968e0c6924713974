"""Adapters are exact: what is trained in factors is what is merged, and what is extracted at full rank is what was there."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.lora import adapted, adapter_tuning, extract_adapter, init_adapter, merge_adapter, stack_adapters
from npmerge.low_rank import with_low_rank
from npmerge.models import Mlp, build

NETWORK = build(Mlp(6, (5,), 3), seed=0)
BASE = NETWORK.variables
RNG = np.random.default_rng(0)
X, LABELS = RNG.standard_normal((8, 6)).astype(np.float32), RNG.integers(0, 3, 8)
BATCHES = [(X, LABELS)]
LOSS = adapter_tuning(NETWORK.apply, nm.CrossEntropy())


def trained(seed, steps=5):
    start = init_adapter(BASE, "kernel", 2, key=jax.random.key(seed))
    return nm.fit(start, LOSS, BASE, BATCHES, optax.adam(0.1), steps=steps).theta


def close(a, b, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **{"atol": 1e-5, **tolerance}), a, b)


def test_a_new_adapter_changes_nothing():
    adapter = init_adapter(BASE, "kernel", 2, key=jax.random.key(0))
    assert len(adapter) == 2 and all(float(jnp.abs(left).max()) > 0 for left, _ in adapter.values())
    close(merge_adapter(BASE, adapter), BASE, atol=0, rtol=0)


def test_an_adapted_network_is_the_merged_one():
    adapter = trained(1)
    merged = merge_adapter(BASE, adapter)
    close(with_low_rank(NETWORK.apply)(adapted(BASE, adapter), X), NETWORK.apply(merged, X))
    assert LOSS(adapter, BASE, BATCHES[0]) == pytest.approx(nm.evaluate(NETWORK.apply, merged, BATCHES).loss, abs=1e-5)
    for path, (left, right) in adapter.items():
        names = path.split("/")
        before, after = BASE, merged
        for name in names:
            key = int(name) if name.isdigit() and name not in before else name
            before, after = before[key], after[key]
        np.testing.assert_allclose(after - before, left @ right, atol=1e-6)
        assert float(jnp.abs(after - before).max()) > 1e-3


def test_its_gradient_is_that_of_full_weights():
    adapter = trained(2, steps=1)
    full = nm.fine_tuning(NETWORK.apply, nm.CrossEntropy())
    ours = jax.grad(LOSS)(adapter, BASE, BATCHES[0])
    close(ours, jax.grad(lambda a: full(merge_adapter(BASE, a), None, BATCHES[0]))(adapter))


def test_extraction_at_the_rank_of_an_update_is_exact():
    adapter = trained(3)
    merged = merge_adapter(BASE, adapter)
    found = extract_adapter(merged, BASE, rank=2)
    assert found.adapter.keys() == adapter.keys() and max(found.error.values()) < 1e-5
    close(merge_adapter(BASE, found.adapter), merged)


def test_extraction_leaves_out_what_it_says():
    tuned = jax.tree.map(lambda x: x + jnp.asarray(RNG.standard_normal(x.shape), x.dtype) if x.ndim == 2 else x, BASE)
    found = extract_adapter(tuned, BASE, rank=1)
    differences, near = (extract_adapter(model, BASE, rank=5).adapter for model in (tuned, merge_adapter(BASE, found.adapter)))
    for path, (left, right) in differences.items():
        whole, kept = left @ right, near[path][0] @ near[path][1]
        assert jnp.linalg.norm(whole - kept) / jnp.linalg.norm(whole) == pytest.approx(found.error[path], abs=1e-4)
        assert 0.05 < found.error[path] < 1


def test_adapters_side_by_side_merge_as_their_networks_do():
    adapters = [trained(seed) for seed in (4, 5)]
    stack = stack_adapters(adapters, BASE)
    merged = nm.TaskArithmetic(0.7)(stack)
    expected = nm.TaskArithmetic(0.7)(nm.stack_models([merge_adapter(BASE, a) for a in adapters], BASE))
    close(with_low_rank(NETWORK.apply)(merged, X), NETWORK.apply(expected, X))
    close(nm.Ties()(stack.whole()), nm.Ties()(nm.stack_models([merge_adapter(BASE, a) for a in adapters], BASE)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: init_adapter(BASE, "bias", 2, key=jax.random.key(0)), "no matrix of the base"),
        (lambda: adapted(BASE, {"kernels": (jnp.ones((6, 1)), jnp.ones((1, 5)))}), "the adapter: .*'kernels'"),
        (lambda: extract_adapter(jax.tree.map(lambda x: x + 1, BASE), BASE, 1), "is no matrix"),
        (lambda: adapter_tuning(nm.CrossEntropy(), NETWORK.apply), "adapter_tuning takes"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_left_factors_are_drawn_apart_with_the_variance_of_their_rows():
    base = {"a": jnp.zeros((64, 400)), "b": jnp.zeros((64, 400)), "c": jnp.zeros((1024, 8))}
    adapter = init_adapter(base, "", 32, key=jax.random.key(0))
    for path, rows in (("a", 64), ("c", 1024)):
        assert abs(float(adapter[path][0].std()) * rows**0.5 - 1) < 0.05
    correlation = np.corrcoef(np.ravel(adapter["a"][0]), np.ravel(adapter["b"][0]))[0, 1]
    assert abs(correlation) < 0.1
