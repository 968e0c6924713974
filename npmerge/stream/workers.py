"""Threads that work on blocks, at most so many at once, and stop together."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from types import TracebackType
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

SWITCH = 2e-4
"""Seconds that a thread in Python's own code may let others wait."""


def switch_often() -> None:
    """Let threads that read, hash and compute have the interpreter soon after they ask for it.

    By default each waits 5 ms after every read and every digest while another is busy in Python: to hash 2.8 GB in pieces of
    4 MB beside such a thread took 9.3 seconds, and 2.7 with this.
    """
    sys.setswitchinterval(SWITCH)


class Workers:
    """A pool of threads for tasks that never wait for one another.

    Attributes:
        threads: how many tasks run at once.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="block")
        self._stopped = Event()

    def ordered(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """`function` of every item, in their order; no more results wait than there are threads, and as many are under way.

        Raises:
            CancelledError: after `stop`.
        """
        waiting: deque[Future[B]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(self._run, function, item))
                if len(waiting) > self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def stop(self) -> None:
        """Let every task that has not begun fail."""
        self._stopped.set()

    def _run(self, function: Callable[[A], B], item: A) -> B:
        if self._stopped.is_set():
            raise CancelledError
        return function(item)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.stop()
        self._pool.shutdown(cancel_futures=True)
