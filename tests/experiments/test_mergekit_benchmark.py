"""The benchmark against mergekit: its checkpoints, measures of processes and page, and a quick run without the peer."""

import json
import sys

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from experiments.benchmarks import mergekit, read_and_write
from experiments.benchmarks.llama_checkpoints import Shape, write_checkpoints
from experiments.benchmarks.mergekit_page import page
from experiments.benchmarks.whole_processes import Cost, in_turns, measured, median
from tests.fixtures.recipe_models import read_safetensors

TINY = Shape(64, 128, 1, 100)


def test_checkpoints_are_fine_tunes_of_their_base(tmp_path):
    write_checkpoints(tmp_path / "one", TINY, models=2)
    write_checkpoints(tmp_path / "two", TINY, models=1, shards=1)
    base, m1, m2 = (read_safetensors(tmp_path / "one" / name)[0] for name in ("base", "m1", "m2"))
    other = read_safetensors(tmp_path / "two" / "m1")[0]
    assert {name: x.shape for name, x in base.items()} == TINY.tensors() == {name: x.shape for name, x in m2.items()}
    for name, x in base.items():
        np.testing.assert_array_equal(other[name], m1[name])
        assert 0 < np.abs(m1[name] - x).max() < 0.02 and np.any(m1[name] != m2[name])
    assert len(list((tmp_path / "one" / "base").glob("*.safetensors"))) == 3
    with pytest.raises(ValueError, match="base exists"):
        write_checkpoints(tmp_path / "one", TINY)


def test_a_process_is_measured(tmp_path):
    code = "x = bytearray(200_000_000); import time; t = time.process_time()\nwhile time.process_time() < t + 0.2: pass"
    cost = measured([sys.executable, "-c", code], tmp_path, tmp_path / "log")
    assert 195 < cost.resident < 230 and 190 < cost.anonymous < 220  # whatever this process takes
    assert cost.wall >= 0.2 and cost.user + cost.system >= 0.2
    with pytest.raises(ValueError, match="status 3: told"):
        measured([sys.executable, "-c", "print('told'); raise SystemExit(3)"], tmp_path, tmp_path / "log")


def test_runs_take_turns():
    order: list[str] = []
    cost = Cost(1, 2, 3, 4, 5)
    runs = {name: lambda name=name: (order.append(name), cost)[1] for name in "ab"}
    assert in_turns(runs, 2) == {"a": [cost, cost], "b": [cost, cost]}
    assert order == ["a", "b", "a", "b"]
    assert median([Cost(1, 9, 1, 1, 1), Cost(2, 8, 1, 1, 1), Cost(6, 7, 1, 1, 1)]) == Cost(2, 8, 1, 1, 1)


def test_the_floor_reads_all_and_writes_the_size_of_one(tmp_path):
    write_checkpoints(tmp_path, TINY)
    folders = [tmp_path / name for name in ("m1", "m2", "m3")]
    read_and_write.main(folders, tmp_path / "out")
    assert (tmp_path / "out").stat().st_size == sum(f.stat().st_size for f in folders[0].glob("*.safetensors"))


def test_the_page_has_the_ratios_and_what_they_may_be():
    costs = {
        "npmerge: ties": [Cost(2, 1, 1, 300, 200)],
        "mergekit: ties": [Cost(40, 30, 1, 1200, 900)],
        "npmerge: linear": [Cost(5, 1, 1, 300, 200)],
        "mergekit: linear": [Cost(10, 5, 1, 1200, 900)],
        "npmerge: linear, 64MB": [Cost(5, 1, 1, 450, 200)],
        "npmerge: imports": [Cost(1, 1, 0, 200, 100)],
        "npmerge: help": [Cost(1, 0.25, 0.25, 50, 20)],
        "floor: read and write": [Cost(2, 1, 1, 30, 5)],
    }
    text = page(costs, {"turns": 1, "seconds": 60, "flags": " -n 1", "machine": "a machine", "npmerge": "0"})
    assert "| ties | 2.00 | 40.00 | 0.050 | 0.067 | 2.0 | 31.0 | 300 | 1200 | 0.25 |" in text
    assert "linear takes 2.50 times as long as to read and write (at most 2.5)" in text
    assert "linear, 64MB: 250 MB above imports (at most 300)" in text
    assert "`npmerge --help` takes 0.50 s of CPU" in text


def test_a_quick_run_without_the_peer(tmp_path):
    app = typer.Typer()
    app.command()(mergekit.main)
    flags = ["--quick", "--methods", "linear", "--checkpoints", str(tmp_path / "c"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, flags, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "out" / "rows.json").read_text())
    names = ["npmerge: linear", "npmerge: linear, 64MB", "npmerge: imports", "npmerge: help", "floor: read and write"]
    assert [row["run"] for row in content["rows"]] == names
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text() + json.dumps(content)
    assert sorted(x.name for x in (tmp_path / "c").iterdir()) == ["base", "m1", "m2", "m3"]
