"""Whole processes timed in turns: wall, CPU and memory, imports and all."""

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        wall: seconds from its start to its end.
        user: CPU seconds of its own code, all threads.
        system: CPU seconds of the kernel for it.
        resident: largest resident memory in MB, pages of mapped files among it, until 20 ms before its end.
        anonymous: largest memory in MB that is its own, seen every 20 ms.
    """

    wall: float
    user: float
    system: float
    resident: float
    anonymous: float


def median(costs: Sequence[Cost]) -> Cost:
    """Of each number by itself."""
    return Cost(**{name: statistics.median(getattr(c, name) for c in costs) for name in asdict(costs[0])})


def measured(command: Sequence[str], folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command in a folder, its output into a file.

    Raises:
        ValueError: a command that fails; the end of its output.
    """
    os.sync()
    with log.open("wb") as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env={**os.environ, **(environment or {})})
        watch = _Watch(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        resident, anonymous = watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise ValueError(f"{' '.join(command)} ended with status {process.returncode}: {log.read_text()[-2000:]}")
    return Cost(wall, used.ru_utime, used.ru_stime, resident, anonymous)


class _Watch:
    """Looks at a process in a thread of its own until told to stop: the kernel counts the peak of its parent as its own."""

    def __init__(self, pid: int):
        self._status, self._over = Path(f"/proc/{pid}/status"), threading.Event()
        self._peaks = {"VmHWM": 0, "RssAnon": 0}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while True:
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            fields = dict(line.split(":", 1) for line in lines)
            for name in self._peaks.keys() & fields.keys():  # a process that has ended has neither
                self._peaks[name] = max(self._peaks[name], int(fields[name].split()[0]))
            if self._over.wait(0.02):
                return

    def stop(self) -> tuple[float, float]:
        """The largest resident and anonymous memory, in MB."""
        self._over.set()
        self._thread.join()
        return self._peaks["VmHWM"] / 1024, self._peaks["RssAnon"] / 1024


def in_turns(runs: Mapping[str, Callable[[], Cost]], repeats: int) -> dict[str, list[Cost]]:
    """Every run once, then every run once more, ...: what slows the machine for a while slows all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            costs[name].append(run())
    return costs
