"""Orbax: what it writes is read bit for bit without it, what is written by it comes back by it, shards and all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from npmerge.checkpoint import orbax, orbax_writer
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.orbax import open_file
from npmerge.checkpoint.orbax_writer import write
from npmerge.checkpoint.sharded import open_model
from tests.npmerge.checkpoint.mutations import check_holds, check_survives

KINDS = ("uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64")
ARRAYS = {
    **{f"kinds/{kind}": np.arange(24).astype(kind).reshape(2, 3, 4) for kind in KINDS},
    "params/dense/kernel": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "params/f8": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    "params/f8_e5": np.arange(4).astype(ml_dtypes.float8_e5m2),
    "flags": np.array([True, False]),
    "scalar": np.array(3, np.float32),
    "dotted.name.weight": np.zeros(3, np.float32),
    "mlp/~/linear_0/w": np.array([-0.0, np.nan, np.inf], np.float32),
}
EMPTY = {"params/none": np.zeros((0, 3), ml_dtypes.bfloat16)}
TREE = {"a": {"w": ARRAYS["params/dense/kernel"], "b": np.arange(3.0)}, "l": [np.int8([1]), np.ones(2, bool)], "step": 5}


def check(path: Path, expected: dict[str, np.ndarray]) -> None:
    check_holds(open_file(path), expected)


def saved(path: Path, tree: Any = TREE, **options: bool) -> Path:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**options)) as checkpointer:
        checkpointer.save(path, tree)
    return path


@pytest.mark.parametrize("options", [{}, {"use_ocdbt": False}, {"use_zarr3": True}])
def test_what_orbax_writes_is_read_in_all_its_layouts(tmp_path: Path, options: dict[str, bool]) -> None:
    path = saved(tmp_path / "own", {**TREE, "text": "words", "nothing": {}}, **options)
    expected = {"a/w": TREE["a"]["w"], "a/b": TREE["a"]["b"], "l/0": TREE["l"][0], "l/1": TREE["l"][1]}
    check(path, {**expected, "step": np.array(5)})
    assert any("left out, being no arrays" in note and "text" in note for note in open_file(path).notes)


def test_a_step_of_a_checkpoint_manager_is_found_and_several_are_listed(tmp_path: Path) -> None:
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        for step in (1, 2):
            manager.save(step, args=ocp.args.StandardSave({"w": np.full(3, step, np.float32)}))
    assert open_file(tmp_path / "run" / "2").notes == ("found in 'default'",)
    check(tmp_path / "run" / "2", {"w": np.full(3, 2, np.float32)})
    with pytest.raises(CheckpointError, match="holds several checkpoints, name one of them: 1/default, 2/default"):
        open_file(tmp_path / "run")


def test_arrays_come_back_bit_for_bit_and_orbax_itself_reads_them(tmp_path: Path) -> None:
    write(tmp_path / "new", {**ARRAYS, **EMPTY})
    check(tmp_path / "new", {**ARRAYS, **EMPTY})
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / "new")
    assert restored["params"]["dense"]["kernel"].tobytes() == ARRAYS["params/dense/kernel"].tobytes()
    assert "none" not in restored["params"]


def test_sharded_arrays_are_written_shard_by_shard(tmp_path: Path) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", "y"))
    array = np.arange(64, dtype=ml_dtypes.bfloat16).reshape(8, 8)
    write(tmp_path / "new", {"w": jax.device_put(array, sharding), "b": jnp.ones(3)})
    assert open_file(tmp_path / "new")._arrays["w"].chunk_layout.read_chunk.shape == (2, 4)
    check(tmp_path / "new", {"w": array, "b": np.ones(3, np.float32)})


HOST = """
import sys
import jax, numpy as np
from npmerge.checkpoint.orbax_writer import write
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
sharding = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(jax.devices()), "x"), jax.sharding.PartitionSpec("x"))
whole = np.arange(32, dtype=np.float32).reshape(8, 4)
array = jax.make_array_from_callback((8, 4), sharding, lambda index: whole[index])
assert not array.is_fully_addressable
write(sys.argv[3], {"params/w": array, "b": np.ones(3, np.int8)})
"""


def test_two_processes_write_the_shards_that_they_hold(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, port, str(k), str(tmp_path / "new")],
            env={**os.environ, **flags, "PYTHONPATH": os.pathsep.join(x for x in sys.path if x)},
            stderr=subprocess.PIPE,
        )
        for k in range(2)
    ]
    try:
        for host in hosts:
            _, errors = host.communicate(timeout=100)
            assert host.returncode == 0, errors.decode()
    finally:
        for host in hosts:
            host.kill()
    check(tmp_path / "new", {"params/w": np.arange(32, dtype=np.float32).reshape(8, 4), "b": np.ones(3, np.int8)})
    assert open_file(tmp_path / "new")._arrays["params/w"].chunk_layout.read_chunk.shape == (2, 4)


def test_a_stored_model_is_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").mkdir()
    arrays = {**ARRAYS, **EMPTY}
    save_file({name: x for name, x in arrays.items() if name != "params/f8_e5"}, tmp_path / "old" / "model.safetensors")
    monkeypatch.setattr(orbax_writer, "PIECE", 100)
    seen: list[int] = []
    parts = orbax_writer._parts
    monkeypatch.setattr(orbax_writer, "_parts", lambda model: (seen.append(len(x)) or x for x in parts(model)))
    write(tmp_path / "new", open_model(tmp_path / "old"))
    assert len(seen) > 5 and max(seen) < len(arrays)
    check(tmp_path / "new", {name: x for name, x in arrays.items() if name != "params/f8_e5"})
    assert open_file(tmp_path / "new").notes == ("found in 'state'",)
    assert sorted(x.name for x in tmp_path.iterdir()) == ["new", "old"]
    write(tmp_path / "new", open_model(tmp_path / "old"), overwrite=True)
    write(tmp_path / ".again", open_file(tmp_path / "new"))
    restored = ocp.PyTreeCheckpointer().restore(tmp_path / ".again" / "state")
    assert restored["kinds"]["int8"].tobytes() == ARRAYS["kinds/int8"].tobytes()


def test_parts_are_stored_as_they_are_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orbax_writer, "CHUNK", 2**14)
    save_file({"w": np.zeros((64, 1024), np.float32)}, tmp_path / "model.safetensors")
    write(tmp_path / "new", open_model(tmp_path / "model.safetensors"))
    layout = open_file(tmp_path / "new")._arrays["w"].chunk_layout.read_chunk
    assert 0 < np.prod(layout.shape) * 4 <= 2**14
    assert sum(x.stat().st_size for x in (tmp_path / "new").rglob("*") if x.is_file()) > 64 * 1024 * 4


def test_large_chunks_are_kept_while_they_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, limits, opened = saved(tmp_path / "own"), [], orbax._opened
    monkeypatch.setattr(orbax, "_opened", lambda *given: limits.append(given[-1]) or opened(*given))
    open_file(path)
    monkeypatch.setattr(orbax, "CACHE", 10)
    model = open_file(path)
    assert limits == [2**26, 10, 2 * TREE["a"]["b"].nbytes]
    assert model.read("a/b", 1, 2).tolist() == [1, 2]


def test_a_model_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_file(saved(tmp_path / "old"))
    monkeypatch.setattr(orbax_writer, "PIECE", 1)
    read = model.read
    monkeypatch.setattr(model, "read", lambda name: read(name) if name != "l/0" else read("no such tensor"))
    with pytest.raises(CheckpointError, match="unknown tensor"):
        write(tmp_path / "new", model)
    assert [x.name for x in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": 1, "a/b": 1}, "'a' is also the beginning of a path"),
        ({"a.b": 1, "a/b": 1}, "stores 'a.b' and 'a/b' under one name"),
        ({"": 1}, "'' is no name"),
        ({"a//b": 1}, "'a//b' is"),
        ({}, "no checkpoint without entries"),
    ],
)
def test_names_that_orbax_would_mix_up_are_refused(tmp_path: Path, arrays: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "new", {name: np.ones(1) for name in arrays})
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_unless_told_so(tmp_path: Path) -> None:
    write(tmp_path / "new", {"a": np.ones(1)})
    with pytest.raises(ValueError, match="exists"):
        write(tmp_path / "new", {"a": np.zeros(1)})
    write(tmp_path / "new", {"a": np.zeros(1)}, overwrite=True)
    check(tmp_path / "new", {"a": np.zeros(1)})
    with pytest.raises(ValueError, match="its folder does not exist"):
        write(tmp_path / "none" / "new", {"a": np.zeros(1)})


def changed(path: Path, change: Any) -> Path:
    file = path / "_METADATA"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return path


def _renamed(content: dict[str, Any], name: str) -> None:
    content["tree_metadata"]["('a', 'b')"]["key_metadata"] = [{"key": name, "key_type": 2}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: _renamed(x, "../../other"), "leads out of the checkpoint"),
        (lambda x: _renamed(x, "/etc/passwd"), "leads out of the checkpoint"),
        (lambda x: _renamed(x, "step"), "'step' stands there twice"),
        (lambda x: _renamed(x, "missing"), "damaged"),
        (lambda x: x.update(tree_metadata=[]), "expected tree_metadata"),
        (lambda x: x.update(tree_metadata={"a": 1}), "'a' needs key_metadata"),
        (lambda x: x.update(tree_metadata={}), "has no tensors"),
        (lambda x: x.update(use_zarr3=True), "damaged"),
    ],
)
@pytest.mark.parametrize("ocdbt", [True, False])
def test_metadata_that_lie_are_refused(tmp_path: Path, change: Any, message: str, ocdbt: bool) -> None:
    path = changed(saved(tmp_path / "own", use_ocdbt=ocdbt), change)
    with pytest.raises(CheckpointError, match=message):
        open_file(path)


def test_absurd_shapes_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "own", use_ocdbt=False)
    file = path / "a.b" / ".zarray"
    file.write_text(file.read_text().replace("[3]", f"[{2**40}]"))
    with pytest.raises(CheckpointError, match="says that it holds more than 40,000 times"):
        open_file(path)


def test_missing_pieces_are_refused_rather_than_read_as_zeros(tmp_path: Path) -> None:
    path = saved(tmp_path / "own", use_ocdbt=False)
    (path / "a.b" / "0").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        open_file(path).read("a/b")


def test_links_out_of_the_folder_and_other_folders_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "own", use_ocdbt=False)
    (tmp_path / "stranger").write_bytes(b"x")
    (path / "a.b" / "0").unlink()
    (path / "a.b" / "0").symlink_to(tmp_path / "stranger")
    with pytest.raises(CheckpointError, match="is a link that leads out"):
        open_file(path)
    for place, message in (
        (tmp_path / "none", "no such folder"),
        (tmp_path / "stranger", "is no folder"),
        (path / "a.b", "there is no _METADATA"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_file(place)


def test_damaged_checkpoints_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    for options in ({}, {"use_ocdbt": False}):
        path = saved(tmp_path / f"own{len(options)}", {"a": {"w": np.arange(6.0)}, "b": np.ones(3, np.int8)}, **options)
        assert min(check_survives(open_file, path, tmp_path / "copies", 100)) > 3
