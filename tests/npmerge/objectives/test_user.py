"""Objectives of one's own, and what padding is in all of them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.masks import kept, masked_mean, mean_where
from npmerge.objectives import check_labels
from tests.npmerge.toys import apply, batch, float64, logits64, variables

P = variables(7)
X, LABELS = batch(0)


def margins(apply, params, stack, batch):
    """A user's function: the mean distance of the two last logits."""
    logits = apply(params, batch[0])
    return (logits[:, 1] - logits[:, 2]).mean()


def focal(logits, labels, gamma=2.0):
    """A user's loss, of each example."""
    chance = jnp.take_along_axis(jnp.exp(logits), labels[:, None], 1)[:, 0]
    return -((1 - chance) ** gamma) * jnp.log(chance)


def test_any_function_is_an_objective():
    objective = nm.UserObjective(margins)
    logits = logits64(P, X)
    assert float(objective(apply, P, None, (X, None))) == pytest.approx((logits[:, 1] - logits[:, 2]).mean(), rel=1e-4)
    assert (objective, objective.masks, nm.UserObjective(margins, masks=True).masks) == (nm.UserObjective(margins), False, True)
    check = objective.checker(apply, P, None, (X, None))
    with pytest.raises(ValueError, match=r"each batch must be a tuple \(inputs, targets\)"):
        check((X, None, jnp.ones(8, bool)))  # it does not say that it heeds masks
    result = nm.fit(P, nm.fine_tuning(apply, objective), None, [(X, LABELS)], optax.sgd(0.1), steps=3)
    assert result.history.loss[2] < result.history.loss[0]


def test_a_mean_over_examples():
    targets = jnp.asarray(np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32), np.float32)
    squares = nm.PerExample(lambda y, t: jnp.square(y - t))
    errors = np.square(logits64(P, X) - float64(targets))
    assert float(squares(apply, P, None, (X, targets))) == pytest.approx(errors.mean(), rel=1e-4)
    mask = np.arange(8) % 3 > 0
    assert float(squares(apply, P, None, (X, targets, jnp.asarray(mask)))) == pytest.approx(errors[mask].mean(), rel=1e-4)


def test_targets_may_hold_weights_of_examples():
    weights = np.arange(8, dtype=np.float32)
    weighted = nm.PerExample(lambda logits, t: t["weights"] * logits[:, 0])
    found = nm.evaluate(apply, P, nm.in_order(X, {"weights": weights, "labels": LABELS}, 3), objective=weighted)
    assert found.loss == pytest.approx((weights * logits64(P, X)[:, 0]).mean(), rel=1e-4)
    with pytest.raises(ValueError, match=r"a mask must be of bool.* got .* float32; weights of examples go into the targets"):
        nm.evaluate(apply, P, [(X, LABELS, weights)], objective=weighted)


def test_bad_functions():
    for wrong, got in ((1, "int"), (nm.CrossEntropy(), "CrossEntropy"), (nm.CrossEntropy, "the class CrossEntropy")):
        with pytest.raises(ValueError, match=rf"UserObjective takes a function of \(apply, params, stack, batch\), got {got}"):
            nm.UserObjective(wrong)
        with pytest.raises(ValueError, match=rf"PerExample takes a function of \(outputs, targets\), got {got}"):
            nm.PerExample(wrong)
    for wrong, takes, got in (
        (nm.UserObjective, r"\(apply, params, stack, batch\)", r"focal\(logits, labels, gamma=2.0\); of .* PerExample.*"),
        (nm.PerExample, r"\(outputs, targets\)", r"margins\(apply, params, stack, batch\)"),
    ):
        with pytest.raises(ValueError, match=rf"^{wrong.__name__} takes a function of {takes}, got {got}$"):
            wrong(focal if wrong is nm.UserObjective else margins)
    for function, got in (
        (lambda f, p, s, b: f(p, b[0]), r"float32\[8, 3\]"),
        (lambda f, p, s, b: f(p, b[0]).argmax(), r"int32\[\]"),
        (lambda f, p, s, b: (f(p, b[0]).sum(), 0.0), "float32"),
    ):
        with pytest.raises(ValueError, match=f"must return a floating-point scalar, got .*{got}"):
            nm.UserObjective(function).checker(apply, P, None, (X, LABELS))
    for objective in (nm.PerExample(lambda y, t: y[:, 0]), nm.CrossEntropy()):
        with pytest.raises(ValueError, match="a batch has 8 inputs and 5 labels"):
            objective.checker(apply, P, None, (X, LABELS))((X, LABELS[:5]))
    with pytest.raises(ValueError, match=r"must return values for each of 8 examples: got \(\)"):
        nm.PerExample(lambda y, t: y.mean()).checker(apply, P, None, (X, LABELS))
    with pytest.raises(ValueError, match=r"pairs each example with every other, by broadcasting: it returns \(8, 8\)"):
        nm.PerExample(lambda y, t: y[:, :1].T - t).checker(apply, P, None, (X, jnp.ones((8, 1))))


def both(v, x):
    """Training mode: the outputs, and the variables with new statistics."""
    return apply(v, x), v


def broken(v, x):
    raise TypeError("my network is broken\nin two lines")


def uneven(y, t):
    return y - jnp.zeros((8, 9))


PAIR = r"; apply returns a tuple \(outputs, variables\): drop the new statistics, lambda v, x: train_apply\(v, x\)\[0\]$"


@pytest.mark.parametrize(
    ("objective", "network", "message"),
    [
        (nm.PerExample(focal), broken, r"^the network, on inputs of float32 \(n, 4\), raised TypeError: my network is broken$"),
        (nm.UserObjective(margins), broken, r"^the network, on inputs of float32 \(n, 4\), raised TypeError: my network is"),
        (nm.CrossEntropy(), broken, r"^the network, on inputs of float32 \(n, 4\), raised TypeError: my network is broken$"),
        (
            nm.PerExample(uneven),
            apply,
            r"^the function of PerExample, on outputs of float32 \(n, 3\) and targets of int32 \(n\), ",
        ),
        (nm.UserObjective(lambda f, p, s, b: p["no"]), apply, r"^the function of UserObjective, .* raised KeyError: 'no'$"),
        (nm.PerExample(focal), both, rf"^the function of PerExample.* raised [^;]*{PAIR}"),
        (nm.UserObjective(margins), both, rf"^the function of UserObjective.* raised [^;]*{PAIR}"),
        (nm.Entropy(), both, PAIR.replace("; apply returns", "apply must return logits .* got")),
    ],
)
def test_who_raised_an_error_is_said(objective, network, message):
    with pytest.raises(ValueError, match=message):
        nm.fit(P, nm.fine_tuning(network, objective), None, [(X, LABELS)], optax.sgd(0.1), steps=1)


def test_shapes_of_many_arrays_do_not_fill_a_page():
    many = {f"layer{k}": P for k in range(99)}
    loss = nm.fine_tuning(lambda v, x: (apply(v, x), many), nm.PerExample(focal))
    with pytest.raises(ValueError, match=rf"^the function of PerExample, .* \.\.\. and targets .*{PAIR}") as caught:
        nm.fit(P, loss, None, [(X, LABELS)], optax.sgd(0.1), steps=1)
    assert len(str(caught.value)) < 600


# ---------------------------------------------------------------------------------------------------------------- masks


def test_the_mean_over_what_counts():
    rng = np.random.default_rng(0)
    values, mask = rng.standard_normal((5, 4)), rng.random((5, 4)) < 0.5
    x = jnp.asarray(values, jnp.float32)
    assert float(masked_mean(x, (None, None))) == pytest.approx(values.mean(), rel=1e-5)
    assert float(masked_mean(x, (None, None, jnp.asarray(mask)))) == pytest.approx(values[mask].mean(), rel=1e-5)
    assert float(masked_mean(x, (None, None, mask[:, 0]))) == pytest.approx(values[mask[:, 0]].mean(), rel=1e-5)
    assert float(masked_mean(x[:, 0], (None, None, mask))) == pytest.approx(values[mask.any(1), 0].mean(), rel=1e-5)
    assert float(mean_where(x, jnp.zeros(5, bool))) == 0
    with pytest.raises(ValueError, match=r"the mask is of shape \(5, 3\), the values that it belongs to are of \(5, 4\)"):
        kept(jnp.ones((5, 3), bool), (5, 4))


def test_labels_of_padding_may_be_any():
    logits, mask = jnp.zeros((3, 4)), np.array([True, False, True])
    check_labels(np.array([0, -100, 3]), logits, mask)
    with pytest.raises(ValueError, match="labels out of range: got 0 to 4"):
        check_labels(np.array([0, -100, 4]), logits, mask)
    with pytest.raises(ValueError, match=r"the mask is of shape \(3, 2\), the predictions that it belongs to are of \(3,\)"):
        check_labels(np.array([0, 1, 2]), logits, np.ones((3, 2), bool))
    check = nm.CrossEntropy().checker(apply, P, None, (X, LABELS))
    check((X, LABELS.at[2].set(-1), jnp.arange(8) != 2))
    with pytest.raises(ValueError, match="labels out of range: got -1 to 2"):
        check((X, LABELS.at[2].set(-1)))


def test_held_out_batches_may_be_padded():
    mask = jnp.arange(8) < 5
    loss = nm.fine_tuning(apply, nm.CrossEntropy())
    held_out = [(X, LABELS.at[5:].set(-1), mask)]
    result = nm.fit(P, loss, None, [(X, LABELS)], optax.sgd(0.1), steps=0, held_out=held_out)
    alone = float(nm.CrossEntropy()(apply, P, None, (X[:5], LABELS[:5])))
    assert result.history.held_out_loss[0] == pytest.approx(alone, rel=1e-5)
