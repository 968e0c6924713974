"""Signals that end a command, turned into exceptions; never inside an import, which libraries of C++ end in a crash."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 0.05
"""Seconds after which a signal that came during an import is sent again."""


@contextmanager
def ended_by_signals(*, at_checks: bool = False) -> Iterator[Callable[[], None]]:
    """Let Ctrl-C, and SIGTERM by which clusters end jobs, end a command as an error does, so that nothing is left.

    Yields what raises for a signal whose exception was lost, as it is where Python runs a destructor or a callback.

    Args:
        at_checks: whether signals only raise there, in any thread: for libraries that leave things behind when they are
            interrupted.
    """
    seen: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        if not at_checks and not put_off(number, frame):
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


def interrupted_between_imports() -> None:
    """Ctrl-C raises KeyboardInterrupt from now on: during an import once that is done, and not where it is ignored (nohup)."""

    def end(number: int, frame: FrameType | None) -> None:
        if not put_off(number, frame):
            raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


def put_off(number: int, frame: FrameType | None) -> bool:
    """Whether an import is under way in a frame; then the signal is sent again a little later."""
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame is None:
        return False
    again = threading.Timer(AGAIN, os.kill, (os.getpid(), number))
    again.daemon = True  # nobody waits for it
    again.start()
    return True
