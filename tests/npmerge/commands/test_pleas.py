"""`npmerge align --method pleas`: one network of the size asked for, in a folder with its report."""

import contextlib
import json
import shutil
from typing import NamedTuple

import chex
import numpy as np
import pytest
from typer.testing import CliRunner

import npmerge as nm
from npmerge.checkpoint import load_network, load_record, save_network
from npmerge.cli import app
from npmerge.commands import align_run
from npmerge.commands.align_inputs import read_data
from npmerge.commands.align_requests import request_of
from npmerge.models import Mlp, Vgg, WithWidths, build
from npmerge.reports.folder import REPORT

CONFIG = Mlp(inputs=6, hidden=(8, 5), classes=3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 6)).astype(np.float32)


class Ran(NamedTuple):
    stdout: str
    summary: dict
    report: str
    files: set


def pleas(folder, *options, out="out"):
    files = [str(folder / f"{name}.safetensors") for name in "ab"]
    result = CliRunner().invoke(app, ["align", *files, "--method", "pleas", "--out", str(folder / out), *options])
    if result.exception:
        raise result.exception
    made = folder / out
    summary = json.loads((made / "summary.json").read_text())
    return Ran(result.stdout, summary, (made / "report.md").read_text(), {path.name for path in made.iterdir()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate("ab"):
        save_network(path / f"{name}.safetensors", CONFIG, build(CONFIG, seed=seed).variables)
    apply, (config, variables) = build(CONFIG).apply, load_network(path / "a.safetensors")
    assert config == CONFIG
    np.savez(path / "data.npz", inputs=X, labels=np.asarray(apply(variables, X)).argmax(1))
    return path


@pytest.fixture(scope="module")
def ran(folder):
    return pleas(folder, "--budget", "2", "--points", "2", "--data", str(folder / "data.npz"))


def test_at_the_full_budget_it_is_the_ensemble(folder, ran):
    config, variables = load_network(folder / "out" / "merged.safetensors")
    assert config == WithWidths(CONFIG, (("params/layers/0", 16), ("params/layers/1", 10)))
    parents = [load_network(folder / f"{name}.safetensors")[1] for name in "ab"]
    mean = nm.LogitEnsemble(build(CONFIG).apply)(parents, X)
    np.testing.assert_allclose(build(config).apply(variables, X), mean, rtol=1e-3, atol=1e-3)
    assert ran.summary["cost"] == pytest.approx(2)
    last, ensemble = ran.summary["sizes"]["points"][-1], ran.summary["sizes"]["levels"]["ensemble of logits"]
    assert last["budget"] == 2
    assert last["accuracy"] == ensemble["accuracy"]


def test_the_folder_holds_the_network_its_report_and_the_figure(folder, ran):
    files = {"merged.safetensors", "merged-1.safetensors", *REPORT, "size.png"}
    assert ran.files == set(ran.summary["written"]) == files
    small = load_network(folder / "out" / "merged-1.safetensors")
    assert (
        nm.evaluate(build(small[0]).apply, small[1], [(X, np.load(folder / "data.npz")["labels"])]).loss
        == ran.summary["sizes"]["points"][0]["loss"]
    )
    assert load_record(folder / "out" / "merged-1.safetensors")["pleas"]["budget"] == 1
    record = load_record(folder / "out" / "merged.safetensors")["pleas"]
    assert [source["file"] for source in record["sources"]] == ["a.safetensors", "b.safetensors"]
    assert record["budget"] == 2
    rows = {row["node"]: [row[key] for key in ("old", "merged", "separate", "new")] for row in ran.summary["nodes"]}
    assert rows == {"params/layers/0": [8, 0, 8, 16], "params/layers/1": [5, 0, 5, 10]}
    assert "| params/layers/0 | 8 | 0 | 8 | 16 |" in ran.report
    assert "](size.png)" in ran.report
    assert "sequential least squares on 96 examples of data.npz" in ran.stdout


def test_one_size_alone_is_merged_unless_more_are_asked_for(folder, ran, monkeypatch):
    """From all examples, which is said before it begins; the networks of an earlier run's sizes go."""
    np.savez(folder / "many.npz", inputs=np.concatenate([X, X])[:130])
    told = []

    @contextlib.contextmanager
    def heard():
        yield lambda text, part="": told.append(f"{text} {part}".rstrip())

    monkeypatch.setattr(align_run, "phases", heard)
    shutil.copytree(folder / "out", folder / "again")
    again = pleas(folder, "--budget", "1.5", "--data", str(folder / "many.npz"), "--force", out="again")
    assert again.files == {"merged.safetensors", *REPORT}
    assert again.summary["solved_on"] == 130
    begun = told.index("merging at 1.5 times the size of one on 130 examples")
    assert told[begun - 3 : begun] == ["activations on 130 examples 1 of 2", "activations on 130 examples 2 of 2", "matching"]
    assert told[begun + 1 : begun + 4] == [f"{told[begun]} layer {k} of 3" for k in (1, 2, 3)]
    assert not any("merging" in text for text in told[begun + 4 :])


def test_without_data_units_are_matched_by_weights_and_that_is_said(folder):
    ran = pleas(folder, "--budget", "1", out="alone")
    assert load_network(folder / "alone" / "merged.safetensors")[0] == CONFIG
    assert ran.files == {"merged.safetensors", *REPORT}
    assert "Units matched by their weights" in ran.report
    again = pleas(folder, "--budget", "1", "--force", out="alone")
    assert again.summary["cost"] == ran.summary["cost"] == 1


def test_statistics_of_batch_norm_belong_to_the_merged_network(tmp_path):
    config = Vgg(stages=((3,),), dense=(4,), classes=2, side=2, channels=1, norm="batch")
    for seed, name in enumerate("ab"):
        save_network(tmp_path / f"{name}.safetensors", config, build(config, seed=seed).variables)
    np.savez(tmp_path / "data.npz", inputs=RNG.standard_normal((64, 2, 2, 1)).astype(np.float32))
    ran = pleas(tmp_path, "--budget", "1.5", "--data", str(tmp_path / "data.npz"))
    made, variables = load_network(tmp_path / "out" / "merged.safetensors")
    data = read_data(tmp_path / "data.npz", config)
    chex.assert_trees_all_close(nm.reset_statistics(build(made).train_apply, variables, data.batches()), variables, rtol=1e-5)
    assert "Running statistics were re-estimated from them" in ran.report
    assert "No labels in the data" in ran.stdout
    assert ran.summary["sizes"]["points"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "pleas needs --budget, from 1 to the number of networks"),
        (("--budget", "1.5", "--approximate"), "pleas has no approximate form: leave out --approximate"),
        (("--budget", "1.5", "--points", "0"), "--points must be 2 or more, .*got 0"),
        (("--budget", "1.5", "--points", "1"), "--points must be 2 or more, .*got 1"),
        (("--budget", "1.5", "--seed", "-1"), "--seed must be from 0 to .*got -1"),
        (("--budget", "nan"), "a budget is between 1 and the number of models, 2.*got nan"),
        (("--budget", "0.5"), "a budget is between 1 and the number of models, 2.*got 0.5"),
        (("--budget", "2.5"), "a budget is between 1 and the number of models, 2.*got 2.5"),
    ],
)
def test_bad_requests_are_told_in_one_line(folder, options, message):
    with pytest.raises(ValueError, match=message):
        pleas(folder, *options, out="bad")
    assert not (folder / "bad").exists()


def test_an_input_is_not_taken_for_a_network_of_an_earlier_run(folder):
    files = (folder / "merged-1.safetensors", folder / "b.safetensors")
    with pytest.raises(ValueError, match="would be taken for a merged network of an earlier run: choose another folder"):
        request_of(files, "pleas", budget=1.5, out=folder)


def test_a_budget_is_for_pleas_alone(folder):
    files = [str(folder / f"{name}.safetensors") for name in "ab"]
    result = CliRunner().invoke(app, ["align", *files, "--budget", "1.5", "--out", str(folder / "bad")])
    assert "--budget is for --method pleas, got --method weight-matching" in str(result.exception)
