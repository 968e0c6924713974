"""How far a fit has got, on a terminal: loss, held-out loss, steps per second, memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from npmerge.reports.numbers import plural, size
from npmerge.reports.progress import peak_memory

LINES = 4
"""Lines that are written on the way of a fit where there is no terminal."""


class FitProgress:
    """What `fit` tells; a line of rich where there is a terminal, else some lines.

    Args:
        bar: the display, if there is one.
        steps: of the whole fit.
        console: where lines are written, if they are.
    """

    def __init__(self, bar: Progress | None, steps: int, console: Console | None = None):
        self.bar, self.begun, self.first = bar, time.perf_counter(), 0
        self.steps, self.console, self.next = steps, console, steps / LINES
        self.said = {"loss": "", "held-out": "", "speed": ""}
        self.task: TaskID | None = None if bar is None else bar.add_task("compiling" if steps else "measuring", total=steps)
        learning = f"learning: {plural(steps, 'step')}, compiled first"
        self._write(learning if steps else "no steps: nothing is learned")

    def says(self, text: str) -> None:
        """A line by itself."""
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, soft_wrap=True)
        self._write(text)

    def __call__(self, step: int, loss: float) -> None:
        """After a step that `fit` looks at, with its training loss."""
        now = time.perf_counter()
        if not self.first:  # compilation does not count
            self.first, self.begun = step, now
        elif now > self.begun:
            self.said["speed"] = f"{(step - self.first) / (now - self.begun):.3g} steps/s"
        self.said["loss"] = f"loss {loss:.4g}"
        self._show(step)

    def judged(self, step: int, loss: float) -> None:
        """After theta was judged, with its held-out loss; what is shown next has it."""
        self.said["held-out"] = f"held-out {loss:.4g}"

    def _show(self, step: int) -> None:
        text = "  ".join([*filter(None, self.said.values()), memory()])
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=step, description=text)
        if step >= self.next and self.first:
            self.next = step + self.steps / LINES
            self._write(f"step {step} of {self.steps}  {text}")

    def _write(self, text: str) -> None:
        if self.console is not None:
            self.console.print(text, highlight=False, soft_wrap=True)


def memory() -> str:
    """The most that the process, and the first device if it says, have held."""
    stats = jax.local_devices()[0].memory_stats() or {}
    on_device = f", device {size(stats['peak_bytes_in_use'])}" if "peak_bytes_in_use" in stats else ""
    return f"{size(peak_memory())}{on_device}"


@contextmanager
def fit_progress(steps: int, *, quiet: bool) -> Iterator[FitProgress]:
    """A display on the terminal of the standard error, lines where that is none; nothing if it is to be quiet."""
    if quiet or not sys.stderr.isatty():
        yield FitProgress(None, steps, None if quiet else Console(stderr=True))
        return
    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield FitProgress(bar, steps)
