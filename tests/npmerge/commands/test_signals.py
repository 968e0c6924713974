"""Signals as exceptions: at once, or where a command looks."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from npmerge.commands.signals import ended_by_signals

ENDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]


@pytest.fixture(autouse=True)
def _heeded():
    """Background jobs of a shell ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_they_end_a_command_at_once(number: int, error: type[BaseException]) -> None:
    before = signal.getsignal(number)
    with pytest.raises(error), ended_by_signals():
        os.kill(os.getpid(), number)
        pytest.fail("it went on")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "error"), ENDS)
def test_or_where_it_looks_in_any_thread(number: int, error: type[BaseException]) -> None:
    with ended_by_signals(at_checks=True) as check, ThreadPoolExecutor(1) as pool:
        check()
        os.kill(os.getpid(), number)
        with pytest.raises(error):
            pool.submit(check).result()
        with pytest.raises(error):
            check()
