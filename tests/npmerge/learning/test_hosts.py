"""Two processes of one job, as Open MPI would start them, make what one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from npmerge.checkpoint import load_network
from npmerge.learning import hosts
from tests.npmerge.learning.digits import learn, merge, recipe
from tests.npmerge.learning.test_starts import close

MAIN = """
import sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
from npmerge.learning import page
page.draw = lambda *_: None
from npmerge.cli import main
sys.argv = ["npmerge", "merge", "recipe.yml", "out", "--distributed"]
main()
"""


def start(rank: int, job: int) -> subprocess.Popen[str]:
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


def test_two_processes_make_what_one_makes(here: Path) -> None:
    block = learn(data=["train.npz", "train.npz"], held_out=0.3, batch_size=8, steps=6, every=3)
    expected = merge(here, "alone", recipe(learn=block))
    (here / "recipe.yml").write_text(recipe(learn=block))
    processes = [start(rank, 700 + os.getpid() % 1000) for rank in range(2)]
    try:
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    assert "written to out" in said[0][0] and "written" not in said[1][0]
    close(*(load_network(x / "model.safetensors")[1] for x in (expected, here / "out")), atol=1e-5)
    losses = [json.loads((x / "history.json").read_text())["held_out_loss"] for x in (expected, here / "out")]
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_what_is_no_job_is_told(here, monkeypatch):
    def none() -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr("jax.distributed.initialize", none)
    with pytest.raises(ValueError, match=r"--distributed: this is no process of a job .*coordinator_address"):
        merge(here, "out", recipe(learn=learn()), "--distributed")
    with pytest.raises(ValueError, match="--distributed is for recipes with learn"):
        merge(here, "out", recipe(), "--distributed")


def test_batches_that_do_not_divide_among_processes_are_refused(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with pytest.raises(ValueError, match="batch_size: 4 examples do not divide among 3 processes"):
        next(iter(hosts.batches_of_process([(np.arange(4), np.arange(4))])))
    inputs, labels = next(iter(hosts.batches_of_process([(np.arange(6), np.arange(6) + 1)])))
    assert inputs.tolist() == [1, 4] and labels.tolist() == [2, 5]
