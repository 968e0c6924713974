"""What networks are judged by."""

import numpy as np
import pytest

from experiments.compositional.grid import Cell
from experiments.compositional.networks import MASKED, Scores, auroc

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
