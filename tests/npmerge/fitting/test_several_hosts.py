"""Two processes of four devices each learn what one process does, each from its own half of every batch."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from npmerge.fitting.checkpoints import Checkpoints
from tests.npmerge.test_sharding import EVEN, UNEVEN, examples, learned

HOST = """
import json, os, sys, time
from pathlib import Path
import jax, numpy as np
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]), heartbeat_timeout_seconds=5)
jax.config.update("jax_disable_most_optimizations", True)
from npmerge.fitting.checkpoints import Checkpoints
from tests.npmerge.test_sharding import EVEN, UNEVEN, examples, learned

out, dies, rank = Path(sys.argv[3]), sys.argv[4] == "dies", jax.process_index()
assert jax.device_count() == 8 and jax.local_device_count() == 4

def half(batch):
    return tuple(x[rank::2] for x in batch)

def step(number, loss):
    if dies and number == 10 and rank == 1:
        os._exit(9)

ways = {"jit": {}} if dies else {"jit": {}, "features": {"shard": "features"}, "pmap": {"parallel": "pmap"}}
for name, way in ways.items():
    found = learned(
        [half(x) for x in (EVEN if name == "pmap" else UNEVEN)], held_out=[half(examples(9, 12))],
        devices=jax.devices(), progress=step, checkpoints=Checkpoints(out / name, steps=4), **way,
    )
    theta = found.theta
    if name == "features":
        from jax.experimental import multihost_utils
        theta = multihost_utils.process_allgather(theta, tiled=True)
    if rank == 0:
        arrays = {f"t{k}": np.asarray(x) for k, x in enumerate(jax.tree.leaves(theta))}
        np.savez(out / f"{name}.npz", loss=found.history.loss, **arrays)
"""


def start(out: Path, *arguments: str) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=4")}
    environment = {**os.environ, **flags, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", HOST, port, str(k), str(out), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for k in range(2)
    ]


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    hosts = start(tmp_path, "lives")
    try:
        for host in hosts:
            _, errors = host.communicate(timeout=200)
            assert host.returncode == 0, errors.decode()[-3000:]
    finally:
        for host in hosts:
            host.kill()
    expected = learned(UNEVEN, held_out=[examples(9, 12)])
    for name, one in (("jit", expected), ("features", expected), ("pmap", learned(EVEN, held_out=[examples(9, 12)]))):
        with np.load(tmp_path / f"{name}.npz") as found:
            np.testing.assert_allclose(found["loss"], one.history.loss, rtol=1e-5, atol=1e-6)
            for k, x in enumerate(jax.tree.leaves(one.theta)):
                np.testing.assert_allclose(found[f"t{k}"], x, rtol=1e-5, atol=1e-5)


def test_one_process_that_dies_ends_the_other_and_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    hosts = start(tmp_path, "dies")
    begun = time.monotonic()
    try:
        said = [host.communicate(timeout=100)[1].decode() for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert hosts[1].returncode == 9 and hosts[0].returncode != 0 and time.monotonic() - begun < 90
    assert "tasks are unhealthy (stopped sending heartbeats)" in said[0]
    assert sorted(int(x.name) for x in (tmp_path / "jit").iterdir()) == [4, 8]
    alone = {"held_out": [examples(9, 12)]}
    found = learned(UNEVEN, checkpoints=Checkpoints(tmp_path / "jit", steps=4), **alone)
    for a, b in zip(*(jax.tree.leaves(x.theta) for x in (found, learned(UNEVEN, **alone))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
