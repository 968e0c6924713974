"""The experiment on its `test` preset: it runs, goes on where it was interrupted, and its page says what the rows say."""

import csv
import dataclasses
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import StraightThrough
from experiments import transformer_alignment
from experiments.run import Preset, Rows
from experiments.text import all_windows, random_windows, read_text
from npmerge.models import build


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


def test_the_page_says_how_long_a_seed_takes_and_how_to_run_it(out, text):
    page = (out / "README.md").read_text(encoding="utf-8")
    assert f"--preset test --out {out} --seed 0 --seeds 1 --data {text}`" in page
    assert "s a seed (the hour of the cpu preset is for one seed)" in page


@pytest.mark.parametrize(
    ("matched", "told"),
    [
        ([1.5, 1.8], "1.65 and 1.50, higher in 1 of 2 seeds: the weights agree better, the functions between them do not."),
        ([1.5, 1.1], "1.30 and 1.50, higher in 0 of 2 seeds: the weights agree better, and so do the functions between them."),
    ],
)
def test_weight_matching_is_compared_with_none_whichever_is_better(matched, told):
    barriers = {"none": [1.6, 1.4], "weight matching, permutations": matched}
    made = [{"seed": s, "method": name, "barrier": b} for name, values in barriers.items() for s, b in enumerate(values)]
    assert transformer_alignment.against_none(made).endswith(told)


def test_an_interrupted_run_goes_on(out, text):
    """Behind the last line that was written whole."""
    before = (out / "rows.csv").read_text(encoding="utf-8")
    lines = before.splitlines(keepends=True)
    (out / "rows.csv").write_text("".join(lines[:-1]) + lines[-1][:20], encoding="utf-8")
    transformer_alignment.main(preset=Preset.test, out=out, seed=0, seeds=1, data=text)
    again = (out / "rows.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:-1] == lines[:-1]
    assert again[-1].rsplit(",", 1)[0] == lines[-1].rsplit(",", 1)[0]  # all but the seconds


def test_a_run_with_other_settings_is_refused(out, text, tmp_path):
    """By the rows, and by the parents where there are no rows. So is another text."""
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(
        ValueError, match=r"settings\.json was made with other settings: layers is 1 there, 2 here: choose anoth"
    ):
        transformer_alignment.main(preset=Preset.cpu, out=out, data=text)
    other = tmp_path / "other.txt"
    other.write_text(text.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(ValueError, match="other settings: text is"):
        transformer_alignment.main(preset=Preset.test, out=out, data=other)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    shutil.copytree(out / "parents", tmp_path / "parents")
    with pytest.raises(ValueError, match=r"0\.safetensors was made with other settings: width is 16 there, 32 here"):
        wider = dataclasses.replace(SETTINGS, width=32)
        transformer_alignment.Experiment(read_text(text), wider, 0, tmp_path, Rows(tmp_path / "rows.csv", ("seed",), {})).run()


# -------------------------------------------------------------------------------------- what is learned, and from which data


SETTINGS = transformer_alignment.PRESETS[Preset.test]


class Fits:
    """In the place of `nm.fit`: what it was called with. Each call changes theta alike, and has its own held-out losses."""

    def __init__(self, *courses: list[float], change: Callable[[Any], Any] = lambda x: x + 1):
        self.courses, self.change, self.calls = list(courses), change, []

    def __call__(self, theta: Any, loss: Any, stack: Any, batches: Any, optimizer: Any, **options: Any) -> nm.FitResult:
        course = np.array(self.courses[len(self.calls)])
        self.calls.append({"loss": loss, **options})
        for _ in self.calls:
            theta = jax.tree.map(self.change, theta)
        return nm.FitResult(theta, nm.History(course, 10 * np.arange(len(course)), course), "finished")


@pytest.fixture(scope="module")
def experiment(text, tmp_path_factory) -> transformer_alignment.Experiment:
    folder = tmp_path_factory.mktemp("stubbed")
    return transformer_alignment.Experiment(read_text(text), SETTINGS, 0, folder, Rows(folder / "rows.csv", ("seed",), {}))


@pytest.fixture(scope="module")
def nets(experiment) -> transformer_alignment.Nets:
    models = [build(experiment.config, seed=k) for k in (0, 1)]
    graph = nm.trace(models[0].apply, models[0].variables, experiment.test[0][0])
    return transformer_alignment.Nets(models[0].apply, graph, tuple(m.variables for m in models))


def test_alignments_are_learned_in_the_middle_of_the_line_and_chosen_on_validation_data(experiment, nets, monkeypatch):
    fits = Fits([3.0, 2.0, 4.0], [3.0, 2.5, 1.0])
    monkeypatch.setattr(nm, "fit", fits)
    row = experiment.learned(nets, StraightThrough(start=None), (0.25, 0.5))
    assert (row["rate"], row["kept"]) == (0.5, 20)
    for call in fits.calls:
        assert call["loss"].interval == (0.4, 0.6)
        assert call["held_out"] is experiment.validation
        assert call["steps"] == SETTINGS.learning_steps
    assert not any(np.array_equal(a, b) for a, _ in experiment.validation for b, _ in experiment.test)


def test_the_theta_of_the_best_rate_is_kept_not_of_the_last(experiment, nets, monkeypatch):
    monkeypatch.setattr(nm, "fit", Fits([3.0, 1.0], [0.5, 2.0], [3.0, 2.0]))
    theta, chosen = experiment.tuned({"x": jnp.zeros(())}, None, None, (0.1, 0.2, 0.3))
    assert float(theta["x"]) == 2
    assert chosen == {"rate": 0.2, "kept": 0}


def test_what_is_measured_is_rounded(experiment, nets, monkeypatch):
    """Learning puts every unit elsewhere, rounding all of them back."""

    def back(alignment: StraightThrough, theta: list) -> list:
        return [
            {node: np.broadcast_to(np.eye(s.shape[-1], dtype=np.float32), s.shape) for node, s in model.items()}
            for model in theta
        ]

    def path() -> list[float]:
        monkeypatch.setattr(nm, "fit", Fits([1.0], change=lambda scores: scores[..., ::-1]))
        return experiment.learned(nets, StraightThrough(start=None), (0.1,))["path"]

    still = experiment.unaligned(nets)["path"]
    assert path() != still
    monkeypatch.setattr(StraightThrough, "rounded", back)
    assert path() == still


# ------------------------------------------------------------------------------------------------------- text and rows


def test_targets_are_the_next_characters(text):
    found = read_text(text)
    source = text.read_text(encoding="utf-8")
    joined = "".join(found.alphabet[k] for part in (found.train, found.validation, found.test) for k in part)
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
    written = Rows(tmp_path / "rows.csv", ("seed", "method"), SETTING)
    row = {"seed": 0, "method": "a, with a comma", "value": 0.1, "rate": "", "path": [0.1, 0.2]}
    written.add(row)
    again = Rows(tmp_path / "rows.csv", ("seed", "method"), SETTING)
    assert again.all == written.all == [row]
    assert again.has(seed=0, method="a, with a comma")
    assert not again.has(seed=1, method="a, with a comma")


SETTING = {"rates": (0.1, 0.2)}


def test_columns_stay_in_their_places(tmp_path):
    Rows(tmp_path / "rows.csv", ("seed",), SETTING).add({"seed": 0, "loss": 1.0})
    again = Rows(tmp_path / "rows.csv", ("seed",), SETTING)
    again.add({"loss": 2.0, "seed": 1})
    assert (tmp_path / "rows.csv").read_text(encoding="utf-8") == "seed,loss\n0,1.0\n1,2.0\n"
    for odd in ({"seed": 2}, {"seed": 2, "loss": 3.0, "accuracy": 0.5}):
        with pytest.raises(ValueError, match=r"a row has other columns than .*: '(loss|accuracy)' is in only one of them"):
            again.add(odd)
    assert len(again.all) == 2


@pytest.mark.parametrize("half", ["1,", "1,2.", "se", ""])
def test_a_half_written_line_is_dropped(tmp_path, half):
    """A number cut short would be another number."""
    path = tmp_path / "rows.csv"
    whole = Rows(path, ("seed",), SETTING)
    if half != "se":
        whole.add({"seed": 0, "loss": 1.0})
    with path.open("a", encoding="utf-8") as file:
        file.write(half)
    again = Rows(path, ("seed",), SETTING)
    assert again.all == whole.all and not again.has(seed=1)
    again.add({"seed": 1, "loss": 2.5})
    assert Rows(path, ("seed",), SETTING).all == [*whole.all, {"seed": 1, "loss": 2.5}]


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    path = tmp_path / "rows.csv"
    Rows(path, ("seed",), SETTING).add({"seed": 0, "loss": 1.0})
    for other, name in (({"rates": (0.1,)}, "rates"), ({}, "rates"), (SETTING | {"width": 3}, "width")):
        with pytest.raises(ValueError, match=rf"settings\.json was made with other settings: {name} is"):
            Rows(path, ("seed",), other)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"there are rows but no .*settings\.json"):
        Rows(path, ("seed",), SETTING)
