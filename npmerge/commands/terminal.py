"""What `npmerge align` shows on the terminal while it works and when it is done."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console


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
