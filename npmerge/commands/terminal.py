"""What `npmerge align` shows on the terminal while it works and when it is done."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from npmerge.reports.progress import Advance

EVERY = 10.0
"""Seconds between lines on how far a step has got, where there is no terminal."""


def tell(lines: Sequence[str], out: Path, written: Sequence[str], began: float) -> None:
    """Print what was done, how long it took since `began` and the files that were written."""
    console, took = Console(), time.perf_counter() - began
    for line in [*lines, f"{took:.0f} s. Written to {out}: {', '.join(written)}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)  # a file may be called "a[b]"


@contextmanager
def gathered_warnings() -> Iterator[Callable[[], list[str]]]:
    """Warnings of the library, kept for the report instead of printed with a line of its code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield lambda: list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))


@contextmanager
def progress() -> Iterator[Advance]:
    """What is being done, on stderr: a line that moves on a terminal, else a line for each step, and some for long ones."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar, told = progress.add_task("starting"), time.monotonic()

        def advance(text: str, part: str = "") -> None:
            nonlocal told
            line = f"{text} {part}".rstrip()
            progress.update(bar, description=line)
            if not console.is_terminal and (not part or time.monotonic() - told > EVERY):
                told = time.monotonic()
                console.print(line)

        yield advance
