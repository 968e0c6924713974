import itertools

import numpy as np
import pytest

from npmerge import in_order, shuffled

X = np.arange(10)
Y = 10 * X


def test_in_order_gives_everything_once():
    batches = in_order(X, Y, 4)
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), X)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), Y)
    assert len(in_order(X, Y, 100)) == 1


@pytest.mark.parametrize("size", [4, 10, 25])
def test_shuffled_sees_every_example_equally_often(size):
    batches = list(itertools.islice(shuffled(X, Y, size, seed=1), 20))
    assert all(len(x) == size for x, _ in batches)
    for x, y in batches:
        np.testing.assert_array_equal(y, 10 * x)
    drawn = np.concatenate([x for x, _ in batches])
    for k in range(0, len(drawn) - 9, 10):  # one random order after another
        assert set(drawn[k : k + 10]) == set(range(10))
    assert len({tuple(drawn[k : k + 10]) for k in range(0, len(drawn) - 9, 10)}) > 1


def test_the_seed_decides():
    first, again, other = ([x.tolist() for x, _ in itertools.islice(shuffled(X, Y, 4, seed=s), 5)] for s in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("make", [in_order, lambda x, y, n: next(shuffled(x, y, n, seed=0))], ids=["in_order", "shuffled"])
def test_errors(make):
    with pytest.raises(ValueError, match="one equal, positive length: got 10 and 9"):
        make(X, Y[:9], 4)
    with pytest.raises(ValueError, match="got 0 and 0"):
        make(X[:0], Y[:0], 4)
    with pytest.raises(ValueError, match="the batch size must be an integer of 1 or more, got 0"):
        make(X, Y, 0)


@pytest.mark.parametrize("make", [in_order, lambda x, y, n: [next(shuffled(x, y, n, seed=0))]], ids=["in_order", "shuffled"])
def test_targets_may_be_a_tree(make):
    for x, targets in make({"x": X}, {"labels": Y, "weights": (X / 2).tolist()}, 4):
        np.testing.assert_array_equal(targets["labels"], 10 * x["x"])
        np.testing.assert_array_equal(targets["weights"], x["x"] / 2)
    assert make(X, None, 4)[0][1] is None
    with pytest.raises(ValueError, match="one equal, positive length: got 10 and 10 and 3"):
        make(X, (Y, Y[:3]), 4)
    with pytest.raises(ValueError, match="one equal, positive length: got 10 and 0"):
        make(X, 1.0, 4)


def test_an_iterator_of_batches_says_what_it_is():
    assert repr(shuffled(X, Y, 4, seed=2)) == "shuffled(10 examples, 4 in a batch, seed=2)"
