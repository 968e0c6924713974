"""Signals as exceptions: at once, or where a command looks."""

import importlib
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from npmerge.commands.signals import ended_by_signals, interrupted_between_imports

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


SLOW = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
done = True
"""


@pytest.mark.parametrize("command", [True, False])
def test_an_import_is_finished_first(command: bool, tmp_path, monkeypatch) -> None:
    name = f"slow_to_import_{command}"
    (tmp_path / f"{name}.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        if command:
            with ended_by_signals():
                importlib.import_module(name)
                time.sleep(10)
        else:
            interrupted_between_imports()
            importlib.import_module(name)
            time.sleep(10)
    assert sys.modules[name].done
