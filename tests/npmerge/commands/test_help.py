"""What `--help` says: every option is explained, with its default, and stands by name only where commands are called."""

import inspect
import sys

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from npmerge.cli import app, main

COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", COMMANDS)
def test_everything_that_can_be_given_is_explained_in_sentences(name):
    command = COMMANDS[name]
    first, _, rest = command.help.partition("\n\n")
    assert first.endswith(".") and "\n" not in first and len(first) < 100
    assert not rest or rest.rstrip().endswith(".")
    for given in command.params:
        assert given.help.endswith("."), given.name


@pytest.mark.parametrize("name", COMMANDS)
def test_lines_of_a_paragraph_are_joined(name):
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "1000"}).stdout
    said = COMMANDS[name].help.replace("`", "").split("\n\n")
    assert {" ".join(x.split()) for x in said} <= {line.strip() for line in shown.splitlines()}


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_are_told(name):
    shown = " ".join(CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).stdout.split())
    for given in COMMANDS[name].params:
        if given.required or getattr(given, "is_flag", False):
            continue
        assert f"[default: {given.default}]" in shown if given.default is not None else "default" in given.help, given.name


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_given_by_name_where_commands_are_called(name):
    parameters = inspect.signature(COMMANDS[name].callback).parameters.values()
    options = {given.name for given in COMMANDS[name].params if given.param_type_name == "option"}
    assert {x.name for x in parameters if x.kind is x.KEYWORD_ONLY} == options


def test_colours_of_notebooks_do_not_make_a_pipe_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys, "argv", ["npmerge", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert not Console(file=sys.stderr).is_terminal
