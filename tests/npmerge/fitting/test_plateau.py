"""The rule that stops early: what it says of losses, and that a fit heeds it."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.fitting.plateau import Slowed

RULE = nm.Plateau(patience=2, least=0.1, cuts=1, factor=0.5)


def told(rule, losses):
    return [tuple(rule(losses[: k + 1])) for k in range(len(losses))]


def test_the_rate_is_cut_and_then_it_stops():
    losses = [1.0, 0.95, 0.92, 0.5, 0.45, 0.55]  # what falls by less than 0.1 is no new best
    assert told(RULE, losses) == [(1, False), (1, False), (0.5, False), (0.5, False), (0.5, False), (0.5, True)]


def test_many_small_gains_make_a_best_one():
    assert not nm.Plateau(patience=3, least=0.1)([1.0, 0.95, 0.92, 0.89, 0.85]).stop  # 0.89 is 0.11 below the first


@pytest.mark.parametrize("losses", [[1.0, np.nan, np.inf], [np.nan, np.nan, np.nan], [1.0, -np.inf, 1.0]])
def test_what_is_not_finite_is_no_best(losses):
    assert nm.Plateau(patience=2)(losses).stop


def test_nothing_is_said_of_nothing():
    assert RULE([]) == nm.Advice(1.0, stop=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"patience": 0}, "patience"), ({"patience": 1, "factor": 0.0}, "factor"), ({"patience": 1, "least": -1.0}, "least")],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        nm.Plateau(**fields)


def loss(theta, stack, batch):
    return jnp.square(theta - batch[1]).mean()


def fitted(patience, *, steps=12, target=0.0, optimizer=None, **options):
    batches, held_out = [(None, jnp.ones(2))], [(None, jnp.full(2, target))]
    optimizer = optimizer or optax.sgd(0.1)
    return nm.fit(
        jnp.zeros(2), loss, None, batches, optimizer, steps=steps, held_out=held_out, every=1, patience=patience, **options
    )


def test_a_fit_with_a_plateau_of_no_cuts_is_one_with_patience():
    ours, theirs = fitted(nm.Plateau(3), target=0.3), fitted(3, target=0.3)
    assert ours.status == theirs.status == "stopped early"
    for a, b in zip(ours.history, theirs.history, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_fit_takes_smaller_steps_behind_a_plateau():
    """Away from the held-out target every judgement is worse than the start: cut after two, over after two more."""
    found = fitted(nm.Plateau(2, cuts=1, factor=0.5))
    assert found.status == "stopped early" and len(found.history.loss) == 4 and found.best_step == 0
    left = np.sqrt(found.history.loss)  # 1 - theta: one step takes away a tenth, and half as much behind the cut
    np.testing.assert_allclose(left[1:] / left[:-1], [0.9, 0.9, 0.95], rtol=1e-5)


def test_the_rule_serves_any_loop():
    """The same losses and steps as of `fit`, by hand."""
    rule, theta, losses, factor = nm.Plateau(2, cuts=1, factor=0.5), 0.0, [0.0], 1.0
    while not rule(losses).stop:
        theta += 0.1 * factor * (1 - theta)
        losses.append(theta**2)
        factor = rule(losses).factor
    np.testing.assert_allclose(losses, fitted(rule).history.held_out_loss, rtol=1e-5)


def test_a_fit_goes_on_with_the_rate_that_it_had(tmp_path):
    rule = nm.Plateau(2, cuts=2, factor=0.5)
    whole = fitted(rule, checkpoints=nm.Checkpoints(tmp_path / "whole", 3))
    fitted(rule, steps=3, checkpoints=nm.Checkpoints(tmp_path / "parts", 3))
    again = fitted(rule, checkpoints=nm.Checkpoints(tmp_path / "parts", 3))
    for a, b in zip(whole.history, again.history, strict=True):
        np.testing.assert_array_equal(a, b)


def test_optimizers_of_one_kind_share_a_step():
    sgd = optax.sgd(0.1)
    assert RULE.slowed(sgd) == RULE.slowed(sgd) and nm.Plateau(2).slowed(sgd) is sgd
    assert isinstance(RULE.slowed(sgd).init(jnp.zeros(2)), Slowed)
