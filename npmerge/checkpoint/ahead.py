"""Reading while what was read is written."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
END = object()


def ahead(items: Iterable[A]) -> Iterator[A]:
    """The items, each of which is made by another thread while the one before is in use: two of them are in memory."""
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as reader:
        waiting = reader.submit(next, source, END)
        while (item := waiting.result()) is not END:
            waiting = reader.submit(next, source, END)
            yield item  # type: ignore[misc]
