"""`npmerge demo --quick`, run once: what it promises to write, and what it refuses."""

import json
import os
import sys
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from npmerge.cli import app, main
from npmerge.demo import command
from npmerge.demo.digits import SPLITS, load_digits
from npmerge.version import __version__

CLOSED = {
    "average, unaligned",
    "weight matching + average",
    "activation matching + average",
    "CCA + average",
    "Procrustes + average",
    "best alignment + Fisher",
}
LEARNED = {
    "NP Merge per tensor, aligned",
    "NP Merge per channel, aligned",
    "NP Merge per parameter, aligned",
    "NP Merge per parameter, unaligned",
}
CONTROLS = {"fine-tuned average, aligned", "trained from scratch"}
FRACTIONS = {0.05, 1.0}


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Any:
    """The folder, the summary and the printed text. The command sets XLA_FLAGS for itself: they are put back."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
        result = CliRunner().invoke(app, ["demo", "--quick", "--seed", "3", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out, json.loads((out / "summary.json").read_text()), result.output


def test_three_files_and_no_more(demo):
    assert {path.name for path in demo[0].iterdir()} == {"report.md", "report.html", "summary.json", "curves.png"}
    assert {path.name for path in demo[0].parent.iterdir()} == {"out"}


def test_the_summary_has_the_promised_keys(demo):
    out, summary, _ = demo
    assert set(summary) == {"npmerge", "jax", "command", "seeds", "split", "rows", "runs"}
    assert summary["npmerge"] == __version__
    assert summary["jax"] == jax.__version__
    assert summary["seeds"] == [3]
    assert summary["split"] == "80-20"
    assert summary["command"] == f"npmerge demo --split 80-20 --seed 3 --seeds 1 --out {out} --quick"
    row = {"name", "kind", "fraction", "validation_accuracy", "test_accuracy", "test_loss", "seconds"}
    assert all(set(r) == row | {"seeds"} for r in summary["rows"])
    (run,) = summary["runs"]
    assert set(run) == {"seed", "verify", "chosen", "rates", "kept", "barriers", "rows"}
    assert all(set(r) == row for r in run["rows"])
    assert len(run["rows"]) == len(summary["rows"])


def test_every_promised_row_is_there_once(demo):
    _, summary, _ = demo
    kinds: dict[str, list] = {}
    for row in summary["rows"]:
        kinds.setdefault(row["kind"], []).append((row["name"], row["fraction"]))
    assert set(kinds) == {"parent", "ensemble", "closed_form", "learned", "control"}
    assert sorted(kinds["parent"]) == [("network 1", None), ("network 2", None)]
    assert kinds["ensemble"] == [("logit ensemble", None)]
    assert sorted(kinds["closed_form"]) == sorted((name, None) for name in CLOSED)
    assert sorted(kinds["learned"]) == sorted((name, f) for name in LEARNED for f in FRACTIONS)
    assert sorted(kinds["control"]) == sorted((name, f) for name in CONTROLS for f in FRACTIONS)


def test_numbers_are_possible_and_learning_learned(demo):
    _, summary, _ = demo
    rows = {(r["name"], r["fraction"]): r for r in summary["rows"]}
    for row in rows.values():
        assert 0 <= row["test_accuracy"] <= 1
        assert 0 <= row["validation_accuracy"] <= 1
        assert 0 < row["test_loss"] < 10
        assert row["seconds"] >= 0
        assert row["seeds"] == 1
    assert min(rows[f"network {k}", None]["test_accuracy"] for k in (1, 2)) > 0.3  # chance is 0.1
    assert rows["NP Merge per parameter, aligned", 1.0]["test_loss"] < rows["average, unaligned", None]["test_loss"]
    (run,) = summary["runs"]
    assert run["verify"] < 1e-5
    assert set(run["barriers"]) == {"unaligned", "weight matching", "activation matching", "CCA", "Procrustes"}
    assert all(b >= 0 for b in run["barriers"].values())
    assert run["barriers"]["unaligned"] > min(run["barriers"].values())
    assert run["chosen"]["best alignment"] in run["barriers"]


def test_the_report_tells_the_verdict_and_how_it_was_measured(demo):
    out, summary, _ = demo
    report = (out / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# npmerge demo: two networks, split 80-20")
    for part in ("## What learning is worth", "## Every step", "## How it was measured", "## The symmetry graph", "curves.png"):
        assert part in report
    rows = {(r["name"], r["fraction"]): r for r in summary["rows"]}
    for fraction in FRACTIONS:
        control = rows["fine-tuned average, aligned", fraction]["test_accuracy"]
        line = next(x for x in report.splitlines() if x.startswith(f"- With {fraction:.0%} of the labels"))
        assert f"(control {100 * control:.1f} %" in line
        for kind in ("tensor", "channel", "parameter"):
            gap = 100 * (rows[f"NP Merge per {kind}, aligned", fraction]["test_accuracy"] - control)
            sentence = "the control beats" if round(gap, 9) < 0 else "the control loses to" if round(gap, 9) > 0 else "equal"
            clause = next(c for c in line.split("; ") if f"per {kind} (" in c)
            assert sentence in clause
            assert f"per {kind} ({gap:+.1f})" in clause


def run_main(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """The command as it is installed: exit status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["npmerge", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Run a command that must end at once with status 2 and one line on stderr, and write nothing."""

    def work(*_, **__):
        raise AssertionError("the demo began to work")

    monkeypatch.setattr(command, "run_seed", work)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run_main(monkeypatch, capsys, "demo", *arguments)
        assert code == 2
        assert out == ""
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def test_an_unknown_split(refused):
    assert refused("--split", "half") == "npmerge: unknown split 'half': expected one of same, 80-20, disjoint\n"


def test_a_folder_with_files(refused, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("old")
    err = refused("--out", "out")
    assert err == "npmerge: out exists and has files in it: choose another folder with --out, or use --force\n"


def test_a_file_in_the_way(refused, tmp_path):
    (tmp_path / "out").write_text("old")
    assert refused("--out", "out") == "npmerge: out is a file: expected a folder to write to\n"
    assert refused("--out", "out", "--force") == "npmerge: out is a file: expected a folder to write to\n"


@pytest.mark.parametrize("option", [("--seed", "-1"), ("--seeds", "0"), ("--seed", "x")], ids="=".join)
def test_impossible_numbers(refused, option):
    err = refused(*option)
    assert option[0] in err
    assert "Traceback" not in err


def test_a_negative_seed_is_told_in_one_line(refused):
    assert refused("--seed", "-1").count("\n") == 1


def test_version_and_help(monkeypatch, capsys):
    assert run_main(monkeypatch, capsys, "--version") == (0, f"npmerge {__version__}\n", "")
    code, out, _ = run_main(monkeypatch, capsys, "demo", "--help")
    assert code == 0
    for option in ("--split", "--seed", "--seeds", "--out", "--quick", "--force"):
        assert option in out


@pytest.mark.parametrize("split", SPLITS)
def test_digits_are_divided_without_overlap(split):
    data = load_digits(split, seed=1)
    sizes = [len(part.labels) for part in (data.train, data.validation, data.test)]
    assert sizes == [1079, 359, 359]
    again = load_digits(split, seed=1)
    np.testing.assert_array_equal(data.test.inputs, again.test.inputs)
    other = load_digits(split, seed=2)
    assert (data.test.inputs != other.test.inputs).any()
    assert data.train.inputs.dtype == np.float32
    assert 0 <= data.train.inputs.min() <= data.train.inputs.max() == 1
    if split == "same":
        assert all(part.train is data.train and part.validation is data.validation for part in data.parts)
        return
    for name, total in (("train", 1079), ("validation", 359)):  # a network is judged on the mixture it learns
        first, second = (getattr(part, name) for part in data.parts)
        assert len(first.labels) + len(second.labels) == total
        low = [np.mean(part.labels < 5) for part in (first, second)]
        assert low == [1, 0] if split == "disjoint" else (0.7 < low[0] < 0.9 and 0.1 < low[1] < 0.3)


def test_an_unknown_split_of_the_digits():
    with pytest.raises(ValueError, match="split must be one of same, 80-20, disjoint, got 'half'"):
        load_digits("half", seed=0)
