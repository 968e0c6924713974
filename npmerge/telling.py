"""What host code says of itself while it runs: the operations that it does, which no jaxpr shows, and notes for the user."""

import math
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from npmerge.operations import operations

_told: ContextVar[list[float] | None] = ContextVar("_told", default=None)
_notes: ContextVar[list[str] | None] = ContextVar("_notes", default=None)
T = TypeVar("T")
INSIDE = {"alignment", "npmerge", "jax", "functools", "contextlib"}
"""Packages whose lines say nothing to the user."""


def tell(operations: float) -> None:
    """Say that host code does so many operations; heard by `listening` around it."""
    if (told := _told.get()) is not None:
        told.append(operations)


def tell_unknown() -> None:
    """Say that host code does something of which it does not know the operations."""
    tell(math.nan)


def tell_of(function: Any, *args: Any) -> None:
    """Say that host code calls a jitted function with these arguments; traced only if somebody listens."""
    if _told.get() is not None:
        tell(operations(function.trace(*args).jaxpr))


def note(text: str) -> None:
    """Say what a merge did where its formula does not tell; heard by `noting` around it."""
    if (notes := _notes.get()) is not None:
        notes.append(text)


def of_the_caller() -> int:
    """The `stacklevel` of a warning that names the line outside of these packages and JAX that led here, however deep."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in INSIDE:
        frame, level = frame.f_back, level + 1
    return level


def listening() -> AbstractContextManager[list[float]]:
    """The operations that host code tells inside."""
    return _heard(_told)


def noting() -> AbstractContextManager[list[str]]:
    """What is said by `note` inside."""
    return _heard(_notes)


@contextmanager
def _heard(channel: ContextVar[list[T] | None]) -> Iterator[list[T]]:
    heard: list[T] = []
    token = channel.set(heard)
    try:
        yield heard
    finally:
        channel.reset(token)
