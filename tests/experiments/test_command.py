"""How commands of experiments start, and how they end on bad input."""

import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.command import command_of, launch
from experiments.run import Preset


def command(size: int = 1) -> None:
    """Of one option."""
    if size < 1:
        raise ValueError(f"size must be 1 or more, got {size}")
    if size > 9:
        raise RuntimeError("a fault of ours")
    if size == 9:
        raise FileNotFoundError("no such file")
    print(size)  # noqa: T201


def test_options_reach_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--size", "3"])
    with pytest.raises(SystemExit) as end:
        launch(command)
    assert end.value.code == 0
    assert capsys.readouterr().out == "3\n"


def test_bad_input_ends_in_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--size", "0"])
    with pytest.raises(SystemExit) as end:
        launch(command)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: size must be 1 or more, got 0 (python -X dev -m ... shows where)\n")


def test_so_do_faults_of_files(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--size", "9"])
    with pytest.raises(SystemExit) as end:
        launch(command)
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: no such file")


def test_in_development_mode_bad_input_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--size", "0"])
    monkeypatch.setattr(sys, "flags", SimpleNamespace(dev_mode=True))
    with pytest.raises(ValueError, match="size must be 1 or more"):
        launch(command)


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command", "--size", "10"])
    with pytest.raises(RuntimeError, match="a fault of ours"):
        launch(command)


def test_a_command_is_told_so_that_a_shell_takes_it():
    told = command_of("compositional", Preset.cpu, Path("my results"), range(1, 4), data="a b", only=["manual pages"])
    words = [
        "python",
        "-m",
        "experiments.compositional",
        "--preset",
        "cpu",
        "--out",
        "my results",
        "--seed",
        "1",
        "--seeds",
        "3",
    ]
    assert shlex.split(told) == [*words, "--data", "a b", "--task", "manual pages"]
    plain = command_of("scaling", Preset.cpu, Path("out"), range(2))
    assert plain == "python -m experiments.scaling --preset cpu --out out --seed 0 --seeds 2"
