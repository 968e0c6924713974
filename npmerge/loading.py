"""Batches on their way to the loop: read ahead in a thread, by name out of mappings, and of several tasks side by side."""

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from alignment.checks import check_count, check_list, kind_of, unknown

Batch = Any


def prefetched(batches: Iterable[Batch], size: int = 2) -> "Prefetched":
    """The same batches in the same order, read in a thread that stays up to `size` of them ahead.

    An exception of the iterable is raised where its batch would have come. The thread ends with the data, when the result is
    closed (also by `with`) or when nobody holds it any more; a batch that it is reading then is read to its end.

    Args:
        batches: any iterable, such as a `grain` loader or a generator; the thread alone reads it from now on.
        size: batches that are read and wait, or are being read, at most.

    Raises:
        ValueError: anything that is not iterable, a size below 1.

    Example:
        >>> source = ((np.full(2, k), np.full(2, k)) for k in range(3))  # as slow as a disk, say
        >>> with nm.prefetched(source, 2) as batches:
        ...     print([inputs.tolist() for inputs, targets in batches])
        [[0, 0], [1, 1], [2, 2]]
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Mapping | str):
        raise ValueError(f"prefetched takes an iterable of batches, got {kind_of(batches)}")
    check_count("size", size)
    return Prefetched(batches, size)


class _Shelf(NamedTuple):
    """What a reading thread and its reader share."""

    ready: queue.SimpleQueue
    slots: threading.Semaphore
    stopped: threading.Event

    def close(self) -> None:
        self.stopped.set()
        self.slots.release()  # the thread may wait for one


class _End(NamedTuple):
    """The last on a shelf: there are no more batches, because of an error if there is one."""

    error: BaseException | None


class Prefetched(Iterator[Batch]):
    """What `prefetched` returns."""

    def __init__(self, batches: Iterable[Batch], size: int):
        self.endless = getattr(batches, "endless", "") and "prefetched"
        self._shelf = _Shelf(queue.SimpleQueue(), threading.Semaphore(size), threading.Event())
        self._thread = threading.Thread(target=_read, args=(batches, self._shelf), name="prefetched", daemon=True)
        self._finalizer = weakref.finalize(self, self._shelf.close)
        self._thread.start()

    def __next__(self) -> Batch:
        if self._shelf.stopped.is_set():
            raise StopIteration
        item = self._shelf.ready.get()
        if not isinstance(item, _End):
            self._shelf.slots.release()
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread, and wait until it has."""
        self._finalizer()
        self._thread.join()

    def __enter__(self) -> "Prefetched":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read(batches: Iterable[Batch], shelf: _Shelf) -> None:
    """It knows the shelf, not the iterator that is read from: that can be collected while the thread runs."""
    error: BaseException | None = None
    try:
        source = iter(batches)
        while shelf.slots.acquire() and not shelf.stopped.is_set():
            try:
                shelf.ready.put(next(source))
            except StopIteration:
                break
    except BaseException as caught:  # whatever it is, it is for the reader to handle
        error = caught
    shelf.ready.put(_End(error))


def columns(
    batches: Iterable[Any], inputs: str | Sequence[str] = "inputs", targets: str | None = "targets", mask: str | None = None
) -> Iterable[tuple]:
    """Batches that are mappings, as those of `grain` or Hugging Face `datasets`, as `(inputs, targets)` or with a mask.

    Args:
        batches: mappings from names to arrays. A list gives a list, other iterables one to be gone through as often as they.
        inputs: the name of what the network reads; of several names it reads a mapping.
        targets: that of the labels, None for none.
        mask: that of what is no padding.

    Raises:
        ValueError: while they are gone through: batches that are no mappings, a name that they do not have.

    Example:
        >>> data = [{"image": np.zeros((2, 4)), "label": np.array([0, 1])}]
        >>> [(inputs.shape, targets.tolist()) for inputs, targets in nm.columns(data, "image", "label")]
        [((2, 4), [0, 1])]
        >>> nm.columns(data, "image", "labels")
        Traceback (most recent call last):
        ValueError: unknown column 'labels': the nearest is 'label', expected one of image, label
    """
    if isinstance(batches, Mapping | str) or not hasattr(batches, "__iter__"):
        raise ValueError(f"columns takes an iterable of mappings, got {kind_of(batches)}")
    names = (inputs if isinstance(inputs, str) else tuple(inputs), targets, mask)
    if isinstance(batches, list | tuple):
        return [_pair(batch, *names) for batch in batches]
    return _Mapped(batches, lambda batch: _pair(batch, *names))


class _Mapped(Iterable[Any]):
    """A function of every batch."""

    def __init__(self, batches: Iterable[Any], function: Callable[[Any], Any]):
        self.batches, self.function = batches, function

    def __iter__(self) -> Iterator[Any]:
        return map(self.function, self.batches)


def _pair(batch: Any, inputs: str | tuple[str, ...], targets: str | None, mask: str | None) -> tuple:
    if not isinstance(batch, Mapping):
        raise ValueError(f"columns takes batches that are mappings from names to arrays, got {kind_of(batch)}")

    def column(name: str) -> Any:
        if name not in batch:
            raise ValueError(unknown("column", name, map(str, batch)))
        return batch[name]

    found = column(inputs) if isinstance(inputs, str) else {name: column(name) for name in inputs}
    labels = None if targets is None else column(targets)
    return (found, labels) if mask is None else (found, labels, column(mask))


def by_task(batches: Sequence[Iterable[Batch]]) -> Iterable[tuple]:
    """Joint batches: the first batches of all tasks as one tuple, then the second, as `Joint` takes them.

    Lists of one length, one for each task, give a list: it ends, so it can be measured with, and `fit` cycles it. Otherwise an
    iterator that ends when the first of the iterables ends; lists among them are cycled.

    Args:
        batches: for each task an iterable of its batches, such as `shuffled(...)`.

    Raises:
        ValueError: no tasks, anything but iterables, lists of different lengths or without batches.

    Example:
        >>> digits, letters = [("d0", 0), ("d1", 1)], [("l0", 0), ("l1", 1)]  # (inputs, targets) of two tasks
        >>> nm.by_task([digits, letters])
        [(('d0', 0), ('l0', 0)), (('d1', 1), ('l1', 1))]
    """
    check_list(batches, "iterables of batches, one for each task")
    for each in batches:
        if not hasattr(each, "__iter__") or hasattr(each, "shape") or isinstance(each, Mapping | str):
            raise ValueError(f"by_task takes for each task an iterable of batches, got {kind_of(each)}")
    lists = [each for each in batches if isinstance(each, list | tuple)]
    if not batches or not all(lists):
        raise ValueError(f"by_task takes batches of every task, got {[len(each) for each in lists]} of them")
    if len(lists) < len(batches):
        return ByTask(batches)
    if len({len(each) for each in lists}) > 1:
        counts = ", ".join(str(len(each)) for each in lists)
        raise ValueError(f"the tasks have {counts} batches: give lists of one length, or iterators such as shuffled(...)")
    return list(zip(*lists, strict=True))


class ByTask(Iterator[tuple]):
    """What `by_task` returns of iterators."""

    def __init__(self, batches: Sequence[Iterable[Batch]]):
        listed = [isinstance(each, list | tuple) for each in batches]
        ends = not all(is_list or getattr(each, "endless", "") for each, is_list in zip(batches, listed, strict=True))
        self.endless = "" if ends else "by_task"
        self._parts = [itertools.cycle(each) if k else iter(each) for each, k in zip(batches, listed, strict=True)]

    def __next__(self) -> tuple:
        return tuple([next(part) for part in self._parts])  # a generator would make an error of StopIteration
