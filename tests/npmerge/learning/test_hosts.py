"""Two processes of one job, as Open MPI would start them, make what one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from npmerge.learning import hosts
from tests.npmerge.learning.digits import learn, merge, recipe

NETWORK = "def linear():\n    return lambda tensors, inputs: inputs @ tensors['w']\n"
MAIN = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
from npmerge.reports import folder, style
folder.drawn = lambda _: style.Drawn(b"", "<svg/>")
from npmerge.cli import main
sys.argv = ["npmerge", "merge", "recipe.yml", "out", "--distributed"]
main()
"""


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """Two linear networks, and examples that do not divide evenly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    rng = np.random.default_rng(0)
    (tmp_path / "linear_of_mine.py").write_text(NETWORK)
    for name in "ab":
        save_file({"w": rng.normal(size=(6, 3)).astype(np.float32)}, tmp_path / f"{name}.safetensors")
    for name, count in (("train", 40), ("test", 21)):
        np.savez(tmp_path / f"{name}.npz", inputs=rng.normal(size=(count, 6)), labels=rng.integers(0, 3, count))
    return tmp_path


def text(**given: object) -> str:
    """Two documents: the second learns from the result of the first."""
    own = {"name": "distillation", "arguments": {"teacher": "own"}}
    block = learn(architecture="linear_of_mine:linear", held_out="test.npz", batch_size=8, steps=4, every=2, **given)
    first = recipe(learn={**block, "data": ["train.npz"] * 2, "objective": own, "held_out": 0, "steps": 1})
    last = recipe(learn=block).replace("b.safetensors", "half")
    return yaml.safe_dump({"name": "half", **yaml.safe_load(first)}) + "---\n" + last


def start(rank: int, job: int) -> subprocess.Popen[str]:
    """One of two processes with two devices each."""
    theirs = {
        "OMPI_MCA_orte_hnp_uri": f"{job << 12}.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": os.pathsep.join(x for x in sys.path if x),
    }
    command = [sys.executable, "-c", MAIN]
    return subprocess.Popen(command, env={**os.environ, **theirs}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_make_what_one_makes(files: Path) -> None:
    expected = merge(files, "alone", text())
    processes = [start(rank, 700 + os.getpid() % 1000) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "written to out" in said[0][0] and "written" not in said[1][0]
    found = files / "out"
    np.testing.assert_allclose(*(load_file(x / "model.safetensors")["w"] for x in (expected, found)), atol=1e-5)
    for report in (Path("history.json"), Path("reports/half/history.json")):
        histories = [json.loads((x / report).read_text()) for x in (expected, found)]
        for key in ("loss", "held_out_loss"):
            np.testing.assert_allclose(*(x[key] for x in histories), rtol=1e-4)


def test_what_is_no_job_is_told(files, monkeypatch):
    def none() -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", none)
    with pytest.raises(ValueError, match=r"--distributed: this is no process of a job .*coordinator_address"):
        merge(files, "out", text(), "--distributed")
    with pytest.raises(ValueError, match="--distributed is for recipes with learn"):
        merge(files, "out", recipe(), "--distributed")


def test_batches_that_do_not_divide_among_processes_are_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with pytest.raises(ValueError, match="batch_size: 4 examples do not divide among 3 processes"):
        next(iter(hosts.batches_of_process([(np.arange(4), np.arange(4))])))
    inputs, labels = next(iter(hosts.batches_of_process([(np.arange(6), np.arange(6) + 1)])))
    assert inputs.tolist() == [1, 4] and labels.tolist() == [2, 5]
