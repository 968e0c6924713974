"""What networks are judged by."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.compositional import case
from experiments.compositional.command import prepared
from experiments.compositional.grid import Cell
from experiments.compositional.networks import MASKED, TEMPERATURE, Asked, Both, CrossEntropies, Pretraining, Scores, auroc
from experiments.compositional.presets import PRESETS
from experiments.compositional.texts import hidden
from experiments.together import unchanged

A, B, C = Cell(0, 0), Cell(1, 1), Cell(2, 0)


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(40, 4)).round(1), rng.integers(0, 2, 40)
    logits[:, 2:] = MASKED
    margins = logits[:, 1] - logits[:, 0]
    pairs = [np.sign(a - b) for a in margins[targets == 1].round(6) for b in margins[targets == 0].round(6)]
    assert auroc(logits.round(1), targets) == pytest.approx(np.mean((np.array(pairs) + 1) / 2), abs=0.01)


def test_auroc_does_not_hang_on_the_threshold():
    targets = np.array([0, 0, 1, 1])
    logits = np.stack([np.zeros(4), [4.0, 5.0, 6.0, 7.0]], 1)
    assert (logits.argmax(1) == 1).all() and auroc(logits, targets) == 1 and auroc(-logits, targets) == 0
    assert auroc(np.zeros((4, 2)), targets) == 0.5 and auroc(logits, np.ones(4, int)) is None


def test_auroc_of_three_classes_is_their_mean():
    targets = np.array([0, 1, 2])
    logits = np.array([[9.0, 0, 0], [0, 9, 0], [9, 0, 0]])
    assert auroc(logits, targets) == pytest.approx((0.75 + 1 + 0.5) / 3)  # the last class looks alike everywhere


def test_means_and_their_standard_error():
    found = Scores({A: 0.5, B: 1.0, C: 0.0}, {A: 1.0, B: 3.0, C: 9.0}, {A: 25, B: 7, C: 1}, {A: 0.5, C: 0.7})
    assert found.mean([A, B]) == (0.75, 2.0) and found.mean_auroc([A, B]) == 0.5 and found.mean_auroc([B]) is None
    assert found.standard_error([A]) == pytest.approx(0.1) and found.standard_error([A, B]) == pytest.approx(0.05)


def _pretraining(x, partner, category, targets):
    """Of a network that returns what it reads: two classes, two, and three features."""
    inputs = {"x": jnp.array(x), "partner": jnp.array(partner), "category": jnp.array(category)}
    return inputs, np.asarray(Pretraining(Asked(lambda variables, x: x, (2, 2, 3)))({}, inputs, jnp.array(targets)))


def test_the_base_learns_classes_and_what_belongs_together():
    x, partner = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    category, targets = [2, 0, 2, 1, 2], [4, 1, 4, 2, 4]
    inputs, losses = _pretraining(x, partner, category, targets)
    classes = CrossEntropies(Asked(lambda variables, x: x, (2, 2, 3)))({}, inputs, jnp.array(targets))
    assert losses[[1, 3]] == pytest.approx(np.asarray(classes)[[1, 3]])
    first, second = (y[:, 4:] / np.linalg.norm(y[:, 4:], axis=1, keepdims=True) for y in (x, partner))
    logits = (first @ second.T)[np.ix_([0, 2, 4], [0, 2, 4])] / TEMPERATURE  # with the partners of pairs alone
    wanted = optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits), jnp.arange(3))
    assert losses[[0, 2, 4]] == pytest.approx(np.asarray(wanted), abs=1e-4)


def test_partners_of_classes_are_not_looked_at():
    x, partner = np.random.default_rng(1).normal(size=(2, 4, 7)).astype(np.float32)
    other = np.where(np.array([[True], [False], [True], [False]]), partner + 1, partner)
    category, targets = [0, 2, 1, 2], [0, 4, 3, 4]
    assert (_pretraining(x, partner, category, targets)[1] == _pretraining(x, other, category, targets)[1]).all()


def test_both_sides_of_a_pair_are_changed_each_for_itself():
    def change(key, inputs, targets):
        return {"x": inputs["x"] + jax.random.normal(key, inputs["x"].shape)}, targets

    inputs = {"x": jnp.zeros((2, 3)), "partner": jnp.zeros((2, 3)), "category": jnp.arange(2)}
    changed, targets = Both(change)(jax.random.key(0), inputs, jnp.ones(2))
    assert set(changed) == set(inputs) and (changed["category"] == inputs["category"]).all() and (targets == 1).all()
    assert (changed["x"] != 0).all() and (changed["partner"] != 0).all() and (changed["x"] != changed["partner"]).all()


@pytest.mark.parametrize(("place", "change"), [(0, unchanged), (1, hidden)])
def test_bases_are_trained_on_pairs_too_and_as_experts_are_changed(monkeypatch, tmp_path, place, change):
    made = prepared(PRESETS["test"].tasks[place], tmp_path)(0)
    seen = {}
    monkeypatch.setattr(case, "train_together", lambda start, loss, *given, **options: seen.update(options, loss=loss))
    made.pretrained()
    assert made.change is change and seen["change"] == Both(change) and seen["loss"] == Pretraining(made.apply)
    assert made.loss == CrossEntropies(made.apply)
