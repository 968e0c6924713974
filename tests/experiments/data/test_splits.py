"""Each division among models against its definition, and the few labels."""

import numpy as np
import pytest

from experiments.data.splits import SPLITS, dirichlet, is_fifth, labelled, split

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 50))


def counts(labels: np.ndarray, part: np.ndarray, classes: int = 10) -> np.ndarray:
    return np.bincount(labels[part], minlength=classes)


@pytest.mark.parametrize("models", [2, 3, 8])
@pytest.mark.parametrize("name", [name for name in SPLITS if name != "same"])
def test_every_image_goes_to_one_model(name, models):
    parts = split(name, LABELS, models, seed=3)
    assert len(parts) == models
    assert np.sort(np.concatenate(parts)).tolist() == list(range(len(LABELS)))
    assert all(np.all(np.diff(part) > 0) for part in parts)


def test_the_same_data():
    assert [part.tolist() for part in split("same", LABELS, 3, seed=0)] == [list(range(500))] * 3


def test_eighty_twenty():
    """20 % of classes 0 to 4 and 80 % of 5 to 9 for model 0; the complement for model 1."""
    first, second = split("80-20", LABELS, 2, seed=0)
    assert counts(LABELS, first).tolist() == [10] * 5 + [40] * 5
    assert counts(LABELS, second).tolist() == [40] * 5 + [10] * 5


def test_eighty_twenty_of_more_models():
    parts = split("80-20", LABELS, 5, seed=0)
    for model, part in enumerate(parts):
        own = np.arange(10) // 2 == 4 - model
        assert counts(LABELS, part)[own].tolist() == [40, 40]
        assert set(counts(LABELS, part)[~own]) <= {2, 3}  # a quarter of 10


def test_shares_of_dirichlet():
    """Mean 1 / models and variance (1/m)(1 - 1/m) / (m * concentration + 1), over many classes."""
    labels = np.repeat(np.arange(4000), 20)
    shares = np.stack([counts(labels, part, 4000) for part in dirichlet(labels, 4, seed=0)]) / 20
    assert shares.mean(1) == pytest.approx(0.25, abs=0.02)
    assert shares.var(1) == pytest.approx(0.25 * 0.75 / (4 * 0.5 + 1), rel=0.1)
    even = dirichlet(labels, 4, seed=0, concentration=1e6)
    assert {n for part in even for n in counts(labels, part, 4000)} == {5}


def test_disjoint_classes():
    parts = split("disjoint", LABELS, 3, seed=0)
    classes = [np.unique(LABELS[part]).tolist() for part in parts]
    assert sorted(map(len, classes)) == [3, 3, 4]
    assert sorted(label for part in classes for label in part) == list(range(10))
    assert classes != [np.unique(LABELS[part]).tolist() for part in split("disjoint", LABELS, 3, seed=1)]


@pytest.mark.parametrize("name", ["80-20", "dirichlet", "disjoint"])
def test_a_seed_is_a_division(name):
    one, again, other = (split(name, LABELS, 2, seed=seed)[0].tolist() for seed in (0, 0, 1))
    assert one == again != other


def test_labelled_images_are_stratified_and_nested():
    uneven = np.repeat([0, 1, 2], [600, 300, 100])
    few, more, every = (labelled(uneven, k, seed=1) for k in (50, 200, 1000))
    assert more[:50].tolist() == few.tolist()
    assert counts(uneven, few, 3).tolist() == [30, 15, 5]
    assert counts(uneven, more, 3).tolist() == [120, 60, 20]
    assert sorted(every.tolist()) == list(range(1000))
    assert labelled(uneven, 50, seed=2).tolist() != few.tolist()
    for k in (1, 7, 23, 101):
        assert np.abs(counts(LABELS, labelled(LABELS, k, seed=0)) - k / 10).max() < 1


def test_a_fifth_of_each_stratum():
    strata = np.repeat([0, 1, 5], [10, 25, 4])
    chosen = is_fifth(strata)
    assert [chosen[strata == s].sum() for s in (0, 1, 5)] == [2, 5, 1]
    assert np.array_equal(chosen, is_fifth(strata))


def test_what_is_refused():
    with pytest.raises(ValueError, match="unknown split 'dirichelt': the nearest is 'dirichlet'"):
        split("dirichelt", LABELS, 2, seed=0)
    with pytest.raises(ValueError, match="the models of a split must be an integer of 2 or more, got 1"):
        split("same", LABELS, 1, seed=0)
    for name in ("80-20", "disjoint"):
        with pytest.raises(ValueError, match="got 11 models and 10 classes, expected a class for each"):
            split(name, LABELS, 11, seed=0)
    for count in (0, 501):
        with pytest.raises(ValueError, match=f"labelled images: got {count}, expected 1 to 500"):
            labelled(LABELS, count, seed=0)
