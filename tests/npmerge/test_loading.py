"""Batches read ahead, out of mappings, and of several tasks."""

import gc
import itertools
import threading
import weakref

import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge.batches import measured
from tests.npmerge.toys import apply, batch, variables

PAIRS = [batch(k, 4) for k in range(5)]


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetched"]


def gone(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def test_the_same_batches_in_the_same_order():
    assert list(nm.prefetched(range(50))) == list(range(50))
    assert list(nm.prefetched(iter(()), size=3)) == []
    assert not readers()
    ahead = nm.prefetched([1])
    assert (next(ahead), next(ahead, "end"), next(ahead, "end")) == (1, "end", "end")


def test_it_stays_so_many_ahead():
    taken, reached = [], threading.Semaphore(0)

    def numbers():
        for k in itertools.count():
            taken.append(k)
            reached.release()
            yield k

    with nm.prefetched(numbers(), size=3) as ahead:
        for _ in range(3):
            assert reached.acquire(timeout=10)
        assert taken == [0, 1, 2]
        assert not reached.acquire(timeout=0.05)  # the next waits for a place
        assert next(ahead) == 0
        assert reached.acquire(timeout=10)
        assert taken == [0, 1, 2, 3]
    assert not readers()


def test_an_error_comes_where_its_batch_would():
    def broken():
        yield from (1, 2)
        raise OSError("the disk is gone")

    ahead = nm.prefetched(broken(), size=5)
    assert (next(ahead), next(ahead)) == (1, 2)
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert list(ahead) == []
    assert not readers()


class Endless:
    """An iterable that says when its iterator is closed."""

    def __init__(self):
        self.closed = threading.Event()

    def __iter__(self):
        try:
            yield from itertools.count()
        finally:
            self.closed.set()


def test_the_thread_ends_when_it_is_closed():
    source = Endless()
    ahead = nm.prefetched(source)
    assert next(ahead) == 0
    ahead.close()
    assert not readers()
    assert source.closed.is_set()
    assert list(ahead) == []
    ahead.close()  # again is nothing


def test_the_thread_ends_when_nobody_holds_the_iterator():
    ahead = nm.prefetched(itertools.count())
    assert next(ahead) == 0
    (thread,) = readers()
    alive = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert alive() is None
    assert gone(thread)


def test_fit_reads_ahead_and_measuring_does_not_wait_for_ever():
    loss = nm.fine_tuning(apply, nm.CrossEntropy())
    plain, ahead = (
        nm.fit(variables(0), loss, None, wrap(iter(PAIRS)), optax.sgd(0.1), steps=5).history.loss
        for wrap in (iter, nm.prefetched)
    )
    np.testing.assert_array_equal(plain, ahead)
    with nm.prefetched(nm.shuffled(*PAIRS[0], 4, seed=0)) as endless:
        for wrong, name in ((endless, "prefetched"), (nm.by_task([nm.shuffled(*PAIRS[0], 4, seed=0), PAIRS]), "by_task")):
            with pytest.raises(ValueError, match=rf"batches that end: got {name}\(\.\.\.\)"):
                list(measured(wrong))
    assert len(list(measured(nm.prefetched(PAIRS)))) == 5


def test_bad_prefetching():
    for wrong in (3, {"a": 1}, "abc", None):
        with pytest.raises(ValueError, match="prefetched takes an iterable of batches, got"):
            nm.prefetched(wrong)
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="size must be an integer of 1 or more, got"):
            nm.prefetched(PAIRS, size)


# ------------------------------------------------------------------------------------------------------------- mappings


class Loader:
    """What a `grain` loader is: an iterable, gone through anew each time, of trees of numpy arrays."""

    def __iter__(self):
        return iter([{"image": np.asarray(x), "label": np.asarray(y), "real": np.ones(4, bool)} for x, y in PAIRS])


def test_mappings_become_tuples():
    loader = nm.columns(Loader(), "image", "label")
    for _ in range(2):
        for (x, y), (a, b) in zip(loader, PAIRS, strict=True):
            np.testing.assert_array_equal(x, a)
            np.testing.assert_array_equal(y, b)
    x, y, mask = next(iter(nm.columns(Loader(), ("image", "real"), None, "real")))
    assert (sorted(x), y, mask.dtype) == (["image", "real"], None, bool)
    assert isinstance(nm.columns(list(Loader()), "image", "label"), list)
    loss = nm.fine_tuning(apply, nm.CrossEntropy())
    read, given = (
        nm.fit(variables(0), loss, None, data, optax.sgd(0.1), steps=5).theta for data in (nm.prefetched(loader), PAIRS)
    )
    for a, b in zip(read["out"].values(), given["out"].values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_grain_loader():
    grain = pytest.importorskip("grain.python")
    data = grain.MapDataset.source([{"x": np.full(4, k, np.float32), "y": np.int32(k % 3)} for k in range(8)]).batch(4)
    batches = list(nm.prefetched(nm.columns(data.to_iter_dataset(), "x", "y")))
    assert [x.shape for x, _ in batches] == [(4, 4), (4, 4)]
    np.testing.assert_array_equal(batches[1][1], [1, 2, 0, 1])


def test_bad_columns():
    with pytest.raises(ValueError, match="unknown column 'lable': the nearest is 'label', expected one of image, label, real"):
        list(nm.columns(Loader(), "image", "lable"))
    with pytest.raises(ValueError, match="columns takes batches that are mappings from names to arrays, got tuple"):
        nm.columns(PAIRS)
    for wrong in ({"image": 1}, 3, "abc"):
        with pytest.raises(ValueError, match="columns takes an iterable of mappings, got"):
            nm.columns(wrong)


# ------------------------------------------------------------------------------------------------------------ many tasks


def test_tasks_side_by_side():
    assert nm.by_task([[1, 2], ("a", "b")]) == [(1, "a"), (2, "b")]
    mixed = nm.by_task([iter(range(3)), ["a", "b"]])
    assert list(mixed) == [(0, "a"), (1, "b"), (2, "a")]
    joined = nm.by_task([nm.shuffled(*pair, 4, seed=0) for pair in PAIRS[:2]])
    first = next(joined)
    assert [len(x) for x, _ in first] == [4, 4]
    assert list(nm.prefetched(nm.by_task([range(2), iter("ab")]))) == [(0, "a"), (1, "b")]


def test_bad_tasks():
    with pytest.raises(ValueError, match="the tasks have 2, 3 batches: give lists of one length, or iterators"):
        nm.by_task([[1, 2], [1, 2, 3]])
    with pytest.raises(ValueError, match=r"by_task takes batches of every task, got \[2, 0\] of them"):
        nm.by_task([[1, 2], []])
    with pytest.raises(ValueError, match=r"by_task takes batches of every task, got \[\] of them"):
        nm.by_task([])
    for wrong in ([PAIRS, PAIRS[0][0]], [PAIRS, None], [PAIRS, {"a": 1}]):
        with pytest.raises(ValueError, match="by_task takes for each task an iterable of batches, got"):
            nm.by_task(wrong)
    with pytest.raises(ValueError, match="expected a list of iterables of batches, one for each task, got"):
        nm.by_task(iter([PAIRS]))
