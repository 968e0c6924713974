"""How far a command has got, on a terminal: bytes, rate and time left."""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar

EVERY = 10.0
"""Seconds between lines on how far something has got, where there is no terminal."""


class Progress(Protocol):
    """Where work on tensors tells that it gets on. Called from any thread."""

    def advance(self, nbytes: int) -> None:
        """So many more bytes of the inputs are done with."""


class Advance(Protocol):
    """Where a command of several steps tells what it does."""

    def __call__(self, text: str, part: str = "") -> None:
        """What is being done, and how far it has got."""


def stage(advance: Advance, text: str, parts: int) -> Callable[[int], None]:
    """Say that a step begins; what is returned is told how many of its parts are done."""
    advance(text)
    return lambda done: advance(text, f"{done} of {parts}")


def unsaid(text: str, part: str = "") -> None:
    """An `Advance` that shows nothing."""


@contextmanager
def phases(*, quiet: bool = False) -> Iterator[Advance]:
    """What is being done, on stderr: a line that moves on a terminal, else a line for each step, and some for long ones."""
    if quiet:
        yield unsaid
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _in_lines(console)
        return
    with Bar(TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True) as progress:
        bar = progress.add_task("starting")
        yield lambda text, part="": progress.update(bar, description=f"{text} {part}".rstrip())


def _in_lines(console: Console) -> Advance:
    told = time.monotonic()

    def advance(text: str, part: str = "") -> None:
        nonlocal told
        if not part or time.monotonic() - told > EVERY:
            told = time.monotonic()
            console.print(f"{text} {part}".rstrip())

    return advance


def peak_memory() -> int:
    """The most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Silent:
    """Progress that nobody sees."""

    def advance(self, nbytes: int) -> None:
        """Nothing."""


class Shown:
    """Progress on a bar of rich."""

    def __init__(self, bar: Bar, total: int, label: str):
        self._bar, self._lock, self._task = bar, Lock(), bar.add_task(label, total=total)

    def advance(self, nbytes: int) -> None:
        """Move on by so many bytes."""
        with self._lock:
            self._bar.advance(self._task, nbytes)


class Lines:
    """Progress where there is no terminal: a line every ten seconds."""

    def __init__(self, total: int, label: str):
        self._console, self._lock, self._label = Console(stderr=True), Lock(), label
        self._total, self._done, self._told = total, 0, time.monotonic()

    def advance(self, nbytes: int) -> None:
        """Move on by so many bytes."""
        with self._lock:
            self._done += nbytes
            if time.monotonic() - self._told > EVERY:
                self._told = time.monotonic()
                self._console.print(f"{self._label}: {self._done / self._total:.0%}", highlight=False, markup=False)


@contextmanager
def shown(total: int, label: str, *, quiet: bool) -> Iterator[Progress]:
    """A bar on the terminal of the standard error, some lines where that is none; nothing if it is to be quiet.

    Args:
        total: bytes that there are.
        label: what is being done.
        quiet: whether nothing is shown.
    """
    if quiet or not sys.stderr.isatty():
        yield Silent() if quiet else Lines(total, label)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Shown(bar, total, label)
