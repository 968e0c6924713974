"""Signals that end a command, turned into exceptions."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_signals(*, at_checks: bool = False) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C, and SIGTERM by which clusters end jobs, end a command as an error does, so that nothing is left.

    Yields what raises for a signal whose exception was lost, as it is where Python runs a destructor or a callback.

    Args:
        at_checks: whether signals only raise there, in any thread: for libraries that leave things behind when they are
            interrupted.
    """
    seen: list[int] = []

    def end(number: int, frame: object) -> None:
        seen.append(number)
        if not at_checks:
            check()

    def check() -> None:
        if seen:
            raise KeyboardInterrupt if seen[0] == signal.SIGINT else SystemExit(128 + seen[0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    numbers = [x for x in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(x) is not signal.SIG_IGN]  # as under nohup
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
