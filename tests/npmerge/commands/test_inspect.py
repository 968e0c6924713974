"""`npmerge inspect`: headers, values and records of checkpoints, as text and as JSON."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

import npmerge as nm
from npmerge.cli import app, main
from npmerge.commands import values
from npmerge.commands.inspect import inspect_page, inspected
from npmerge.reports.numbers import counted
from npmerge.reports.text import braced, ranges

BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three layers in two files with an index, a configuration and a record."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((6, 4)).astype(BF16)
    first = {"embed.weight": table, **{f"layers.{k}.w": rng.standard_normal((4, 4)).astype(BF16) for k in range(3)}}
    second = {"layers.1.extra": np.float32([1, np.nan, np.inf, -np.inf, 3]), "head.weight": table, "ids": np.arange(5)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {}
    for name, tensors in zip(names, (first, second), strict=True):
        save_file(tensors, tmp_path / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "tiny", "num_layers": 3, "nested": {"x": 1}}))
    (tmp_path / "npmerge.json").write_text(json.dumps({"recipe": "merge_method: linear", "seed": 3}))
    return tmp_path


def test_headers(folder):
    content = inspected(folder)
    assert content["parameters"] == 24 + 3 * 16 + 5 + 24 + 5
    assert content["bytes"] == 2 * (24 + 48 + 24) + 4 * 5 + 8 * 5
    assert content["dtypes"]["BF16"] == {"tensors": 5, "parameters": 96, "bytes": 192}
    assert content["layers"] == {"layers": 3}
    assert content["config"]["model_type"] == "tiny"
    assert content["record"]["seed"] == 3
    assert [file["metadata"] for file in content["files"]] == [{"format": "pt"}] * 2
    assert content["tensors"]["layers.1.extra"] == {"shape": [5], "dtype": "F32", "parameters": 5, "bytes": 20}
    assert "same" not in content


def test_values(folder, monkeypatch):
    monkeypatch.setattr(values, "BLOCK", 7)  # so that tensors are several blocks, the last one smaller
    content = inspected(folder, values=True)
    assert content["same"] == [["embed.weight", "head.weight"]]
    assert content["not_finite"] == ["layers.1.extra"]
    extra = content["tensors"]["layers.1.extra"]["values"]
    assert extra == {"mean": 2, "std": 1, "least": 1, "most": 3, "nans": 1, "infinities": 2}
    table = np.random.default_rng(0).standard_normal((6, 4)).astype(BF16).astype(np.float64)
    wanted = {"mean": table.mean(), "std": table.std(), "least": table.min(), "most": table.max(), "nans": 0, "infinities": 0}
    assert content["tensors"]["embed.weight"]["values"] == pytest.approx(wanted, rel=1e-12)
    json.dumps(content, allow_nan=False)


def test_moments_far_from_zero_keep_their_digits(tmp_path, monkeypatch):
    monkeypatch.setattr(values, "BLOCK", 16)
    x = 1e8 + np.random.default_rng(0).standard_normal(1000)
    save_file({"x": x}, tmp_path / "x.safetensors")
    found = inspected(tmp_path / "x.safetensors", values=True)["tensors"]["x"]["values"]
    assert found["std"] == pytest.approx(x.std(), rel=1e-9)


def test_tensors_without_a_finite_entry_or_any(tmp_path):
    save_file({"x": np.float32([np.nan]), "y": np.zeros((0, 3), np.float32)}, tmp_path / "x.safetensors")
    content = inspected(tmp_path / "x.safetensors", values=True)
    for name, nans in (("x", 1), ("y", 0)):
        found = content["tensors"][name]["values"]
        assert found == {"mean": None, "std": None, "least": None, "most": None, "nans": nans, "infinities": 0}
    assert "not finite: x has 1 NaN and 0 infinite entries" in inspect_page(content)


def test_one_line_for_the_layers(folder):
    lines = inspect_page(inspected(folder, values=True)).splitlines()
    assert lines[0].startswith(f"{folder}: 7 tensors, 106 parameters, 252 B in 2 files")
    (line,) = [line for line in lines if line.startswith("layers.{0-2}.w ")]
    assert line.split()[1:6] == ["3", "4", "x", "4", "BF16"]
    assert "same values: embed.weight, head.weight" in lines
    each = inspect_page(inspected(folder), verbose=True).splitlines()
    assert sum(line.startswith("layers.") for line in each) == 4


def test_a_checkpoint_of_ours_shows_its_record(tmp_path):
    nm.checkpoint.save(tmp_path / "m.safetensors", {"w": np.ones(2, np.float32)}, {"seed": 7})
    content = inspected(tmp_path / "m.safetensors")
    assert content["files"][0]["metadata"]["npmerge"]["record"] == {"seed": 7}
    assert content["record"] is None


def test_json_of_the_command(folder):
    ran = CliRunner().invoke(app, ["inspect", str(folder), "--json"])
    assert ran.exit_code == 0
    assert json.loads(ran.stdout) == inspected(folder)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "model-00002-of-00002.safetensors").unlink(), "names model-00002-of-00002.safetensors"),
        (lambda f: (f / "npmerge.json").write_text("{"), "cannot be read"),
        (lambda f: [p.unlink() for p in f.glob("model*")], "holds no weights"),
    ],
    ids=["missing shard", "broken record", "no weights"],
)
def test_refused(folder, monkeypatch, capsys, damage, told):
    damage(folder)
    monkeypatch.setattr("sys.argv", ["npmerge", "inspect", str(folder)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_names_of_many_tensors():
    assert ranges([3, 1, 2, 7]) == "1-3,7"
    assert braced(["layers.0.w", "layers.1.w", "layers.3.w"]) == "layers.{0-1,3}.w"
    assert braced([f"layers.{k}.experts.{j}.w" for k in (2, 3) for j in range(4)]) == "layers.{2-3}.experts.{0-3}.w"
    assert braced(["layers.5.w"]) == "layers.5.w"
    assert [counted(n) for n in (12, 999, 1000, 468_239_360)] == ["12", "999", "1 k", "468 M"]
