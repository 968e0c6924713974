"""The experiment on its `test` preset: it runs, goes on where it was interrupted, and its page says what the rows say."""

import csv
import inspect
import json
import textwrap
from pathlib import Path

import pytest

from experiments import transformer_alignment
from experiments.run import Preset, Rows
from experiments.text import all_windows, random_windows, read_text


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """Some text that is always there: the source of a module of the standard library."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(inspect.getsource(textwrap), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def out(text, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    transformer_alignment.main(preset=Preset.test, out=folder, seed=0, seeds=1, data=text)
    return folder


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_method_has_a_row(out):
    assert [row["method"] for row in rows(out)] == list(transformer_alignment.METHODS)
    assert (out / "paths.png").stat().st_size > 10_000
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["settings"]["width"] == 16


def test_alignments_keep_the_function(out):
    changes = {row["method"]: float(row["change"]) for row in rows(out) if row["change"]}
    assert len(changes) == len(transformer_alignment.METHODS) - 1
    assert {name: change for name, change in changes.items() if change > 1e-4} == {}


def test_the_page_shows_the_rows(out):
    page = (out / "README.md").read_text(encoding="utf-8")
    for row in rows(out):
        line = next(line for line in page.splitlines() if line.startswith(f"| {row['method']} |"))
        if row["barrier"]:
            assert f"{float(row['barrier']):.3f}" in line
        assert f"{float(row['loss']):.3f}" in line


def test_an_interrupted_run_goes_on(out, text):
    before = (out / "rows.csv").read_text(encoding="utf-8")
    lines = before.splitlines(keepends=True)
    (out / "rows.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    transformer_alignment.main(preset=Preset.test, out=out, seed=0, seeds=1, data=text)
    again = (out / "rows.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    assert again[-1].rsplit(",", 1)[0] == lines[-1].rsplit(",", 1)[0]  # all but the seconds


# ------------------------------------------------------------------------------------------------------- text and rows


def test_targets_are_the_next_characters(text):
    found = read_text(text)
    source = text.read_text(encoding="utf-8")
    joined = "".join(found.alphabet[k] for part in found[1:] for k in part)
    assert joined == source
    inputs, targets = next(random_windows(found.train, 9, 4, seed=0))
    assert inputs.shape == targets.shape == (4, 9)
    assert (inputs[:, 1:] == targets[:, :-1]).all()
    (inputs, targets), *_ = all_windows(found.test, 5, 3)
    assert (inputs.reshape(-1) == found.test[:15]).all()
    assert (targets.reshape(-1) == found.test[1:16]).all()


def test_missing_and_short_texts_are_named(tmp_path, text):
    with pytest.raises(ValueError, match=r"no text at .*missing\.txt: give a file with --data"):
        read_text(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match="a text of 10 characters has no batch of 4 windows of 5"):
        all_windows(read_text(text).train[:10], 5, 4)


def test_rows_come_back_as_they_were(tmp_path):
    written = Rows(tmp_path / "rows.csv", ("seed", "method"))
    row = {"seed": 0, "method": "a, with a comma", "value": 0.1, "rate": "", "path": "[0.1, 0.2]"}
    written.add(row)
    again = Rows(tmp_path / "rows.csv", ("seed", "method"))
    assert again.all == [row | {"path": [0.1, 0.2]}]
    assert again.has(seed=0, method="a, with a comma")
    assert not again.has(seed=1, method="a, with a comma")
