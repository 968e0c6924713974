"""The Optax loop, on losses whose every step is known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alignment.graph import flatten
from npmerge import CrossEntropy, FitResult, fine_tuning, fit, weighted_sum
from npmerge.fitting import divergence
from tests.npmerge.toys import apply, array, batch, normal, variables

SGD = optax.sgd(0.1)


def towards(theta, stack, batch):
    """(w - target)^2 / 2: one step of SGD(0.1) covers a tenth of the way."""
    return 0.5 * jnp.sum(jnp.square(theta["w"] - batch[0]))


def target(value: float, n: int = 1) -> tuple:
    return (jnp.full((n,), value), jnp.zeros(n))


def run(*, start=0.0, data=None, steps=5, loss=towards, optimizer=SGD, **options) -> FitResult:
    data = [target(1.0)] if data is None else data
    return fit({"w": jnp.full((1,), start, jnp.float32)}, loss, None, data, optimizer, steps=steps, **options)


def close(result: FitResult, w: float):
    chex.assert_trees_all_close(result.theta["w"], jnp.full((1,), w), rtol=1e-5, atol=1e-6)


def test_each_step_is_the_optimisers():
    result = run(steps=7)
    close(result, 1 - 0.9**7)
    assert result.status == "finished"
    np.testing.assert_allclose(result.history.loss, [0.5 * 0.9 ** (2 * k) for k in range(7)], rtol=1e-5)
    assert len(result.history.held_out_loss) == 0


def test_zero_steps_return_theta_as_it_is():
    theta = {"w": array(0, 3), "index": jnp.arange(3)}
    result = fit(theta, towards, None, iter(()), SGD, steps=0)
    chex.assert_trees_all_equal(result.theta, theta)
    assert result.status == "finished"
    assert len(result.history.loss) == 0


def test_a_convex_optimum_is_found():
    x, w = normal(0, 40, 3), normal(1, 3)
    y = x @ w + 0.1 * normal(2, 40)
    oracle = np.linalg.lstsq(x, y, rcond=None)[0]

    def loss(theta, stack, batch):
        return jnp.mean(jnp.square(jnp.tensordot(batch[0], theta["w"], 1) - batch[1]))

    data = [(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))]
    result = fit({"w": jnp.zeros(3)}, loss, None, data, optax.adam(0.05), steps=600)
    chex.assert_trees_all_close(result.theta["w"], oracle.astype(np.float32), atol=1e-4)


def test_lists_are_cycled_in_order_and_iterators_are_read_once():
    data = [target(1.0), target(3.0)]
    w = 0.0
    for k in range(5):
        w += 0.1 * ([1.0, 3.0][k % 2] - w)
    close(run(data=data), w)
    close(run(data=tuple(data)), w)
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield data[taken[-1] % 2]

    close(run(data=endless()), w)
    assert len(taken) == 5


def test_pixels_that_were_not_scaled_are_warned_of():
    pixels = jnp.zeros((2, 3, 3), jnp.uint8), jnp.zeros(2)
    with pytest.warns(UserWarning, match="inputs are uint8, numbers from 0 to 255"):
        fit(jnp.ones(2), lambda theta, stack, batch: theta.sum(), None, [pixels], optax.sgd(0.1), steps=1)


def test_data_that_end_early_are_an_error():
    with pytest.raises(ValueError, match="the data ended after 3 batches, 5 steps were asked for; a list of batches is cyc"):
        run(data=iter([target(1.0)] * 3))
    with pytest.raises(ValueError, match=r"the data ended after 0 batches, 5 steps were asked for$"):
        run(data=[])
    close(run(data=iter([target(1.0)] * 5)), 1 - 0.9**5)


def test_the_best_theta_on_held_out_data_is_kept_when_later_steps_are_worse():
    """w_k = 1 - 0.9^k passes the held-out target 0.5 between steps 6 and 7, and is nearest at 7."""
    result = run(steps=30, held_out=[target(0.5)], every=1)
    close(result, 1 - 0.9**7)
    assert result.status == "finished"
    np.testing.assert_array_equal(result.history.held_out_step, np.arange(31))
    np.testing.assert_allclose(
        result.history.held_out_loss, [0.5 * (0.5 - 0.9**k) ** 2 for k in range(31)], rtol=1e-4, atol=1e-7
    )


def test_a_start_that_is_never_beaten_is_returned():
    result = run(start=2.0, steps=8, held_out=[target(2.0)], every=2, optimizer=optax.sgd(1.5))
    close(result, 2.0)
    np.testing.assert_array_equal(result.history.held_out_step, [0, 2, 4, 6, 8])


def test_judged_every_so_often_and_at_the_end():
    result = run(steps=7, held_out=[target(5.0)], every=3)
    np.testing.assert_array_equal(result.history.held_out_step, [0, 3, 6, 7])
    close(result, 1 - 0.9**7)


def test_a_result_is_told_in_a_line():
    best = run(steps=30, held_out=[target(0.5)], every=1, patience=3)
    assert str(best) == repr(best) == "FitResult(stopped early after 10 steps, held-out loss 0.125 -> 0.000236 at step 7)"
    assert best.best_step == 7
    uphill = run(optimizer=optax.sgd(-0.1), held_out=[target(1.0)])
    assert (uphill.best_step, uphill.status) == (0, "finished")
    assert repr(uphill) == "FitResult(finished after 5 steps, held-out loss 0.5: nothing better than the start was found)"
    assert run(steps=1).best_step is None
    assert repr(run(steps=1)) == "FitResult(finished after 1 step, loss 0.5 -> 0.5)"
    assert repr(run(steps=0)) == "FitResult(finished after 0 steps)"


def test_patience_stops_early_with_the_best_theta():
    result = run(steps=30, held_out=[target(0.5)], every=1, patience=3)
    assert result.status == "stopped early"
    assert len(result.history.loss) == 10  # the best at 7, then three without a new best
    assert result.history.held_out_step[-1] == 10
    close(result, 1 - 0.9**7)


def test_held_out_batches_count_by_their_size():
    together = run(held_out=[(jnp.concatenate([jnp.full(3, 2.0), jnp.full(1, 6.0)]), jnp.zeros(4))], loss=mean_towards)
    apart = run(held_out=[target(2.0, 3), target(6.0, 1)], loss=mean_towards)
    np.testing.assert_allclose(apart.history.held_out_loss, together.history.held_out_loss, rtol=1e-5)


def mean_towards(theta, stack, batch):
    return 0.5 * jnp.mean(jnp.square(jnp.broadcast_to(theta["w"], batch[0].shape) - batch[0]))


def flagged(theta, stack, batch):
    """`towards` 1, times a flag that the batch brings."""
    return 0.5 * jnp.sum(jnp.square(theta["w"] - 1)) * batch[0][0]


def flags(*values: float) -> list:
    return [(jnp.full((1,), v), jnp.zeros(1)) for v in values]


@pytest.mark.parametrize("every", [1, 2, 25])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_with_the_last_good_theta(every, bad):
    with pytest.warns(UserWarning, match="^the fit diverged at step 4, where its loss.*: an earlier theta is kept") as told:
        result = run(data=flags(1, 1, 1, bad, 1, 1, 1), steps=7, loss=flagged, every=every)
    assert [x.filename for x in told] == [__file__]
    assert result.status == "diverged"
    close(result, 1 - 0.9**2)  # the last one whose loss was found
    assert len(result.history.loss) == 4
    assert np.isfinite(result.history.loss[:3]).all()
    assert not np.isfinite(result.history.loss[3])


def test_a_loss_that_is_not_finite_from_the_first_step_on_keeps_the_start():
    with pytest.warns(UserWarning, match="^the fit diverged at step 1, where its loss is not finite: the start is kept"):
        close(run(data=flags(np.nan), steps=1, loss=flagged), 0)


def test_a_bad_last_step_is_noticed():
    with pytest.warns(UserWarning, match="^the fit diverged at"):
        result = run(data=flags(1, 1, np.nan), steps=3, loss=flagged)
    assert result.status == "diverged"
    close(result, 1 - 0.9)


@pytest.mark.parametrize("rate", [1e4, 1e30])
def test_theta_of_a_fit_that_diverged_has_a_finite_loss(rate):
    """Theta may grow for some steps before its loss overflows."""
    with pytest.warns(UserWarning, match="^the fit diverged at"):
        result = run(start=0.5, steps=30, optimizer=optax.sgd(rate))
    assert result.status == "diverged"
    assert np.isfinite(towards(result.theta, None, target(1.0)))
    last = result.history.loss[np.isfinite(result.history.loss)][-1]
    np.testing.assert_allclose(towards(result.theta, None, target(1.0)), last, rtol=1e-6)


def test_a_gradient_that_is_not_finite_counts_though_the_loss_is():
    def loss(theta, stack, batch):
        """The square root has an infinite slope at zero: zero times infinity is NaN, in the gradient alone."""
        return 0.5 * jnp.sum(jnp.square(theta["w"] - 1)) + 0 * jnp.sum(jnp.sqrt(batch[0] * theta["w"]))

    before = r"at or before step 4 \(looked at every 25 steps\), where a gradient or an update is not finite.*learning rate$"
    for every, where in ((25, before), (1, "at step 3, where its gradient or an update is not finite.*learning rate$")):
        with pytest.warns(UserWarning, match=f"^the fit diverged {where}"):
            result = run(start=0.5, data=flags(1, 1, 0, 1), steps=4, loss=loss, every=every)
    assert result.status == "diverged"
    close(result, 1 - 0.5 * 0.9**2)
    assert np.isfinite(result.history.loss).all()


@pytest.mark.parametrize("kept", [divergence.KEPT, 0])
def test_inputs_that_are_not_finite_are_blamed(kept, monkeypatch):
    """Where the loss is finite itself, and the gradient alone is not; of large batches only the latest is kept."""
    monkeypatch.setattr(divergence, "KEPT", kept)

    def loss(theta, stack, batch):
        return towards(theta, stack, target(1.0)) + 0 * jnp.sqrt(jnp.where(batch[0] > 0, 1, 0) * theta["w"]).sum()

    data = [(np.float32([value]), None) for value in (1, np.nan, 1, np.inf)]
    with pytest.warns(UserWarning, match="the fit diverged") as told:
        run(start=0.5, data=data, steps=4, loss=loss)
    step = 2 if kept else 4
    assert str(told[0].message).endswith(f"; the inputs of the batch of step {step} have 1 non-finite values of 1")


def test_divergence_keeps_the_best_on_held_out_data():
    with pytest.warns(UserWarning, match="^the fit diverged at"):
        result = run(data=flags(*[1] * 12, np.nan), steps=13, loss=flagged_or_half, every=1, held_out=flags(7))
    assert result.status == "diverged"
    close(result, 1 - 0.9**7)


def flagged_or_half(theta, stack, batch):
    """`flagged`, but the held-out batch (7) asks for one half."""
    goal = jnp.where(batch[0] == 7, 0.5, 1.0)
    return 0.5 * jnp.sum(jnp.square(theta["w"] - goal)) * batch[0][0]


@pytest.mark.parametrize("steps", [1, 3])
def test_an_update_that_overflows_is_divergence(steps):
    with pytest.warns(UserWarning, match="^the fit diverged at"):
        result = run(start=2.0, steps=steps, optimizer=optax.sgd(3e38), data=[target(-9.0)])
    chex.assert_tree_all_finite(result.theta)
    assert result.status == "diverged"


def test_a_start_whose_held_out_loss_is_nan_can_be_beaten():
    def loss(theta, stack, batch):
        held_out = jnp.where(theta["w"] < 0.05, jnp.nan, jnp.square(theta["w"] - 1))
        return jnp.sum(jnp.where(batch[0] == 7, held_out, 0.5 * jnp.square(theta["w"] - 1)))

    result = run(data=flags(1), steps=3, loss=loss, held_out=flags(7), every=1)
    close(result, 1 - 0.9**3)


def minus_infinity(theta, stack, batch):
    """`towards`, but of an overflow."""
    return jnp.where(theta["w"][0] > 0.3, -jnp.inf, towards(theta, stack, batch))


def test_a_loss_of_minus_infinity_is_not_the_best():
    close(run(loss=minus_infinity, steps=4, every=1, held_out=[target(1.0)]), 1 - 0.9**3)


def test_integer_leaves_are_left_alone():
    index = np.array([2, 0, 1])

    def loss(theta, stack, batch):
        assert jnp.issubdtype(theta["align"][0]["index"].dtype, jnp.integer)
        return jnp.sum(jnp.square(theta["w"][theta["align"][0]["index"]] - batch[0]))

    theta = {"w": jnp.zeros(3), "align": [{"index": index, "flag": jnp.array(True)}]}
    result = fit(theta, loss, None, [(jnp.arange(1.0, 4.0),)], optax.adam(0.1), steps=3)
    np.testing.assert_array_equal(result.theta["align"][0]["index"], index)
    assert result.theta["align"][0]["index"].dtype == index.dtype
    assert bool(jnp.all(result.theta["w"] != 0))
    with pytest.raises(ValueError, match="nothing to learn: theta has no floating-point leaves"):
        fit({"index": index}, loss, None, [target(1.0)], SGD, steps=1)


def test_the_callers_theta_is_neither_changed_nor_given_away():
    theta = {"w": jnp.zeros(1), "fixed": jnp.arange(2)}
    first = fit(theta, towards, None, [target(1.0)], SGD, steps=4)
    second = fit(theta, towards, None, [target(1.0)], SGD, steps=4)
    third = fit(first.theta, towards, None, [target(1.0)], SGD, steps=0)
    for tree in (theta, first.theta, second.theta, third.theta):
        assert not any(x.is_deleted() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
    chex.assert_trees_all_equal(theta["w"], jnp.zeros(1))
    chex.assert_trees_all_equal(first.theta, second.theta)
    host = {"w": np.zeros(1, np.float32)}
    chex.assert_trees_all_equal(fit(host, towards, None, [target(1.0)], SGD, steps=4).theta["w"], first.theta["w"])
    chex.assert_trees_all_equal(host["w"], np.zeros(1, np.float32))


def test_calling_again_compiles_nothing():
    traces = []

    def loss(theta, stack, batch):
        traces.append(1)
        return towards(theta, stack, batch)

    options = {"held_out": [target(0.5)], "every": 2}
    run(loss=loss, steps=4, **options)
    once = len(traces)
    assert once == 2  # the step and the judgement
    run(loss=loss, start=3.0, steps=6, **options)
    assert len(traces) == once
    run(loss=loss, steps=4, optimizer=optax.sgd(0.1), **options)
    assert len(traces) == once + 1  # an optimiser of its own: the step anew, the judgement not


def test_progress_is_reported():
    seen = []
    run(steps=5, every=2, progress=lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == [1, 2, 4, 5]  # the first, which is compiled, and those that are looked at
    np.testing.assert_allclose([loss for _, loss in seen], [0.5 * 0.9 ** (2 * (k - 1)) for k in (1, 2, 4, 5)], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be an integer of 0 or more, got -1"),
        ({"every": 0}, "every must be an integer of 1 or more, got 0"),
        ({"patience": 2}, "patience needs held-out data"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


LOSS = fine_tuning(apply, CrossEntropy())


@pytest.mark.parametrize("value", [3, -1])
@pytest.mark.parametrize("where", ["first", "later", "held out"])
def test_labels_out_of_range_are_refused_before_they_are_learned(value, where):
    good, (x, labels) = batch(0), batch(1)
    bad = (x, labels.at[4].set(value))
    data = {"first": [bad], "later": [good, bad], "held out": [good]}[where]
    with pytest.raises(ValueError, match=rf"labels out of range: got {min(value, 0)} to {max(value, 2)}, expected 0 to 2"):
        fit(variables(0), LOSS, None, data, SGD, steps=2, held_out=[bad] if where == "held out" else ())


def test_labels_must_be_integers():
    x, labels = batch(0)
    with pytest.raises(ValueError, match="labels must be integers, got floating-point numbers"):
        fit(variables(0), LOSS, None, [(x, labels.astype(jnp.float32))], SGD, steps=1)


def test_sharded_batches_give_the_same_theta():
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batches = [batch(k, 16) for k in range(2)]
    sharded = [tuple(jax.device_put(x, sharding) for x in b) for b in batches]
    assert len(sharded[0][0].sharding.device_set) == 8
    expected = fit(variables(0), LOSS, None, batches, SGD, steps=4, held_out=[batch(9, 16)], every=2)
    got = fit(variables(0), LOSS, None, sharded, SGD, steps=4, held_out=[batch(9, 16)], every=2)
    chex.assert_trees_all_close(got.theta, expected.theta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.history.loss, expected.history.loss, rtol=1e-5)
    assert bool(jnp.any(expected.theta["out"]["bias"] != variables(0)["out"]["bias"]))


@pytest.mark.parametrize("path", ["batch_stats/norm/mean", "norm/var/value"], ids=["Linen", "NNX"])
@pytest.mark.parametrize("summed", [False, True])
def test_weight_decay_does_not_shrink_running_statistics(path, summed):
    *folders, last = path.split("/")
    theta: dict = {last: jnp.ones(3)}
    for name in reversed(folders):
        theta = {name: theta}
    loss = fine_tuning(lambda v, x: x @ v["w"], CrossEntropy())
    loss = weighted_sum((loss,)) if summed else loss
    result = fit({**theta, "w": jnp.ones((3, 3))}, loss, None, [(INPUTS, LABELS)], optax.adamw(0.1), steps=2)
    found = flatten(result.theta)
    np.testing.assert_array_equal(found[path], np.ones(3))
    assert bool(jnp.all(found["w"] != 1))


def noisy(theta, stack, batch, *, key=None):
    """The target moves by a normal draw in each step; without a key it does not."""
    shift = jnp.float32(0) if key is None else jax.random.normal(key, (), jnp.float32)
    return towards(theta, stack, (batch[0] + shift, batch[1]))


def test_a_loss_that_draws_at_random_gets_another_key_in_each_step():
    result = run(loss=noisy, steps=3, key=jax.random.key(5))
    w = 0.0
    for step in (1, 2, 3):
        shift = float(jax.random.normal(jax.random.fold_in(jax.random.key(5), step), (), jnp.float32))
        w += 0.1 * (1 + shift - w)
    close(result, w)
    chex.assert_trees_all_equal(result.theta, run(loss=noisy, steps=3, key=jax.random.key(5)).theta)
    close(run(loss=noisy, steps=3), 1 - 0.9**3)


def test_held_out_losses_are_taken_without_a_key():
    result = run(loss=noisy, steps=2, every=1, key=jax.random.key(5), held_out=[target(1.0)])
    assert result.history.held_out_loss[0] == pytest.approx(0.5)


INPUTS, LABELS = normal(0, 6, 3).astype(np.float32), np.arange(6, dtype=np.int32) % 2
WRONG = {
    "width": ((INPUTS[:, :2], LABELS), r"^the network, on inputs of float32 \(n, 2\), raised TypeError: dot"),
    "text": ((INPUTS.astype(str), LABELS), r"^the network, on inputs of <U\d+ \(n, 3\), raised TypeError"),
    "tasks": (((INPUTS, LABELS), (INPUTS, LABELS)), r"on inputs of \(float32 \(n, 3\), int32 \(n\)\), raised TypeError"),
}


@pytest.mark.parametrize(("batch", "message"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("before", [0, 1])
def test_batches_that_the_network_cannot_take_are_refused(batch, message, before):
    """As the first and as a later one, with their shapes and dtypes."""
    loss = fine_tuning(lambda v, x: x @ v["w"], CrossEntropy())
    with pytest.raises(ValueError, match=message):
        fit({"w": np.ones((3, 2), np.float32)}, loss, None, [(INPUTS, LABELS)] * before + [batch], SGD, steps=2)
    with pytest.raises(ValueError, match=r"^the network, on inputs of float32 \(n, 3\), raised KeyError: 'w'$"):
        fit({"v": np.ones((3, 2), np.float32)}, loss, None, [(INPUTS, LABELS)], SGD, steps=2)
