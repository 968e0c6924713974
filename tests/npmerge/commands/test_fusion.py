"""`npmerge align --method zipit` and `transport`: the average of common units, in a folder with its report."""

import json

import chex
import numpy as np
import pytest
from typer.testing import CliRunner

from alignment import trace
from npmerge import reset_statistics
from npmerge.checkpoint import load_network, load_record, save_network
from npmerge.cli import app
from npmerge.models import Mlp, Vgg, WithWidths, abstract, build, example
from tests.alignment.networks import shuffle
from tests.contract.test_models import generic

CONFIG, WIDE = Mlp(inputs=6, hidden=(8, 5), classes=3), Mlp(inputs=6, hidden=(12, 7), classes=3)
NET = abstract(CONFIG)
FIRST = generic(NET.variables)
X = np.random.default_rng(0).standard_normal((96, 6)).astype(np.float32)
A, B, C = "a.safetensors", "b.safetensors", "wide.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, the same in another order, and a wider one."""
    path = tmp_path_factory.mktemp("networks")
    graph = trace(NET.apply, FIRST, example(CONFIG))
    for name, config, variables in (
        (A, CONFIG, FIRST),
        (B, CONFIG, shuffle(graph, FIRST, 1)[0]),
        (C, WIDE, generic(abstract(WIDE).variables, 2)),
    ):
        save_network(path / name, config, variables)
    np.savez(path / "data.npz", inputs=X, labels=np.asarray(NET.apply(FIRST, X)).argmax(1))
    return path


def align(folder, files, *options, out):
    arguments = ["align", *(str(folder / name) for name in files), "--out", str(folder / out), *options]
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    summary = json.loads((folder / out / "summary.json").read_text())
    assert {path.name for path in (folder / out).iterdir()} == set(summary["written"])
    return result.stdout, summary, (folder / out / "report.md").read_text(), *load_network(folder / out / "merged.safetensors")


@pytest.mark.parametrize(("method", "data"), [("zipit", True), ("transport", True), ("transport", False)])
def test_a_network_and_its_shuffled_copy_merge_to_it(folder, method, data):
    out, given = f"{method}-{data}", ("--data", str(folder / "data.npz")) if data else ()
    stdout, summary, report, config, merged = align(folder, (A, B), "--method", method, *given, out=out)
    assert config == CONFIG
    np.testing.assert_allclose(NET.apply(merged, X), NET.apply(FIRST, X), rtol=1e-4, atol=1e-4)
    assert summary["verify"] < 1e-5
    assert summary["operations"] == summary["parameters"] == summary["width"] == 1
    assert load_record(folder / out / "merged.safetensors")[method]["sources"] == summary["sources"]
    assert "| params/layers/0 | 8 | 8 | 8 |" in report
    if data:
        assert {name: row["accuracy"] for name, row in summary["networks"].items()} == {A: 1, B: 1, "merged": 1}
        assert "merged: accuracy 1.000" in stdout
    else:
        assert summary["networks"] == {}
        assert "compared by their incoming weights" in stdout


def test_zipit_at_half_the_width(folder):
    options = ("--method", "zipit", "--width", "0.5", "--data", str(folder / "data.npz"))
    _, summary, _, config, merged = align(folder, (A, B), *options, out="half")
    assert config == WithWidths(CONFIG, (("params/layers/0", 4), ("params/layers/1", 2)))
    assert np.isfinite(build(config).apply(merged, X)).all()
    dense, original = 6 * 4 + 4 * 2 + 2 * 3, 6 * 8 + 8 * 5 + 5 * 3
    assert summary["operations"] == pytest.approx(dense / original)
    assert summary["parameters"] == pytest.approx((dense + 4 + 2 + 3) / (original + 8 + 5 + 3))


def test_networks_of_different_widths(folder):
    """At those of the first, and at one and a half times those: the merged network is loaded and merged again."""
    given = ("--method", "transport", "--data", str(folder / "data.npz"))
    *_, config, _ = align(folder, (C, A), *given, out="wide")
    assert config == WIDE
    _, summary, report, config, merged = align(folder, (A, C), *given, "--width", "1.5", out="other")
    assert [(row["old"], row["new"]) for row in summary["nodes"]] == [([8, 12], 12), ([5, 7], 7)]
    assert "| params/layers/1 | 5 | 7 | 7 |" in report
    assert set(summary["networks"]) == {A, C, "merged"}
    again = align(folder, ("other/merged.safetensors", C), *given, out="again")
    assert [row["old"] for row in again[1]["nodes"]] == [[12, 12], [7, 7]]
    assert build(again[3]).apply(again[4], X).shape == build(config).apply(merged, X).shape
    with pytest.raises(ValueError, match=r"all networks must have the architecture of .*a.safetensors"):
        align(folder, (A, C), "--method", "zipit", "--data", str(folder / "data.npz"), out="bad")


def test_statistics_of_batch_norm_are_re_estimated(tmp_path):
    config = Vgg(stages=((3,),), dense=(4,), classes=2, side=2, channels=1, norm="batch")
    for name in (A, B):
        save_network(tmp_path / name, config, generic(abstract(config).variables))
    x = np.random.default_rng(1).standard_normal((64, 2, 2, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=x)
    options = ("--method", "zipit", "--width", "1.5", "--data", str(tmp_path / "data.npz"))
    stdout, summary, _, made, merged = align(tmp_path, (A, B), *options, out="out")
    assert "Statistics of BatchNorm were re-estimated on data.npz" in stdout
    assert "No labels in the data" in stdout
    assert summary["networks"] == {}
    again = reset_statistics(build(made).train_apply, merged, [(x, None)])
    chex.assert_trees_all_close(merged, again, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ((A, B), ("--method", "zipit"), "zipit needs activations: give examples of the task with --data FILE.npz"),
        ((A, B), ("--method", "zipit", "--width", "3"), "--width must be above 0 and at most the number of networks, 2, got 3"),
        ((A, B), ("--method", "transport", "--width", "0"), "--width must be above 0, got 0"),
        ((A, B), ("--method", "transport", "--width", "nan"), "--width must be above 0, got nan"),
        ((A, B), ("--method", "transport", "--approximate"), "transport makes one network: it has no --points and no --appr"),
        ((A, B), ("--width", "2"), "--width is for --method zipit and transport, got --method weight-matching"),
        ((A, B), ("--method", "transport", "--budget", "2"), "--budget is for --method pleas, got --method transport"),
        (
            (A, "deep.safetensors"),
            ("--method", "transport"),
            r"deep.safetensors is of another architecture than .*\(hidden is .*, not .*layers/3",
        ),
        ((A, "long.safetensors"), ("--method", "transport"), r"long.safetensors takes float32 inputs of shape \(9,\)"),
    ],
)
def test_bad_requests_are_told_in_one_line(folder, files, options, message):
    for name, config in {"deep": Mlp(6, (8, 5, 4), 3), "long": Mlp(9, (8, 5), 3)}.items():
        if not (folder / f"{name}.safetensors").exists():
            save_network(folder / f"{name}.safetensors", config, build(config).variables)
    with pytest.raises(ValueError, match=message):
        align(folder, files, *options, out="bad")
    assert not (folder / "bad").exists()
