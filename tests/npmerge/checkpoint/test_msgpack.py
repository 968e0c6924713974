"""Flax's files: what Flax writes is read bit for bit, and nothing that it does not write."""

import tracemalloc
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import msgpack
import numpy as np
import pytest

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.msgpack import open_file
from tests.npmerge.checkpoint.mutations import check_survives

ARRAYS = {
    "params/w": np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3),
    "params/empty": np.zeros((0, 3), np.float16),
    "params/flags": np.array([True, False]),
    "f8": np.ones(3, ml_dtypes.float8_e4m3fn),
    "scalar": np.array(3, np.float32),
    "list/0": np.array([-1, 2], np.int8),
    "list/1": np.arange(4, dtype=np.uint64),
}
TREE = {
    "params": {"w": jnp.asarray(ARRAYS["params/w"]), "empty": ARRAYS["params/empty"], "flags": ARRAYS["params/flags"]},
    "f8": ARRAYS["f8"],
    "scalar": np.float32(3),
    "list": [ARRAYS["list/0"], ARRAYS["list/1"]],
    "step": 5,
    "nothing": None,
    "complex": 1j,
    "text": "x" * 40,
}


def written(folder: Path, content: object = TREE) -> Path:
    path = folder / "flax_model.msgpack"
    path.write_bytes(flax.serialization.msgpack_serialize(content))
    return path


def raw(folder: Path, content: object, ending: bytes = b"") -> Path:
    path = folder / "raw.msgpack"
    path.write_bytes((content if isinstance(content, bytes) else msgpack.packb(content)) + ending)
    return path


def ndarray(shape: object, dtype: object, data: object, code: int = 1) -> msgpack.ExtType:
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def check(path: Path) -> None:
    model = open_file(path)
    assert set(model.entries) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        entry, got = model.entries[name], model.read(name)
        assert (entry.shape, entry.nbytes, DTYPES[entry.dtype]) == (expected.shape, expected.nbytes, expected.dtype)
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
        assert model.read(name, entry.size // 2, entry.size // 4).tobytes() == (
            expected.reshape(-1)[entry.size // 2 :][: entry.size // 4].tobytes()
        )


def test_what_flax_writes_is_read_bit_for_bit_and_what_is_no_array_is_named(tmp_path: Path) -> None:
    check(written(tmp_path))
    assert open_file(written(tmp_path)).notes == ("left out, being no arrays: complex, nothing, step, text",)


@pytest.mark.parametrize("most", [1, 4, 8])
def test_arrays_in_chunks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", most)
    path = written(tmp_path, {**TREE, "list": {"0": ARRAYS["list/0"], "1": ARRAYS["list/1"]}})
    assert b"__msgpack_chunked_array__" in path.read_bytes()
    check(path)


def test_only_what_is_asked_for_is_in_memory(tmp_path: Path) -> None:
    path = written(tmp_path, {"w": np.zeros(2**22, np.float32)})
    tracemalloc.start()
    try:
        part = open_file(path).read("w", 2**20, 10)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert part.nbytes == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xc1", "0xc1"),
        (b"\xdf\xff\xff\xff\xff", "truncated"),
        (b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "'a' is truncated"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "'a' is truncated"),
        (b"\x91" * 200, "more than 64 containers"),
        ({"a": msgpack.ExtType(5, b"x")}, "'a' has the extension type 5"),
        ({"a": ndarray((2,), "float32", bytes(4))}, r"'a' \(float32 \(2,\)\) needs 8 bytes, has 4"),
        ({"a": ndarray((2**62, 0), "float32", b"")}, "'a' has the shape"),
        ({"a": ndarray((2**40, 2**40, 0), "float32", b"")}, "no memory holds"),
        ({"a": ndarray((-1,), "float32", b"")}, "'a' has the shape"),
        ({"a": ndarray((1,) * 40, "float32", bytes(4))}, "'a' has the shape"),
        ({"a": ndarray((1,), "object", bytes(8))}, "'a' has the dtype 'object'"),
        ({"a": ndarray((1,), "<f4", bytes(4))}, "'a' has the dtype '<f4'"),
        ({"a": ndarray((1,), 4, bytes(4))}, "'a' is no array"),
        ({"a": ndarray((1,), "float32", "text")}, "'a' is no array"),
        ({"a": msgpack.ExtType(1, b"\x93\x91\xff\xff\xff")}, "'a' is no array"),
        ({"a": {"b": ndarray((1,), "int8", b"1")}, "a/b": ndarray((1,), "int8", b"1")}, "'a/b' stands there twice"),
        (b"\x82\xa1a\x01\xa1a\x01", "'a' stands there twice"),
        ({b"a": 1}, "key that is bin"),
        ({"a": 1}, "has no tensors"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}, "chunks": {}}}, "'a' needs a shape and flat chunks"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"1": 2}, "chunks": {}}}, "'a' has chunks or a shape out of"),
        ({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 2}}}, "'a' is no chunked array"),
        (
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2},
                    "chunks": {"0": ndarray((1,), "int8", b"1"), "1": ndarray((1,), "bool", b"1")},
                }
            },
            "'a' needs a shape and flat chunks of one dtype",
        ),
    ],
)
def test_what_flax_does_not_write_is_refused_with_its_path(tmp_path: Path, content: object, message: str) -> None:
    path = raw(tmp_path, content)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_file(path)
    assert caught.value.path == path


def test_bytes_behind_the_end_and_a_file_that_shrinks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="3 bytes follow its end"):
        open_file(raw(tmp_path, {"a": ndarray((1,), "int8", b"1")}, b"abc"))
    path = written(tmp_path)
    model = open_file(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="is truncated: it ends at byte"):
        model.read("list/1")


def test_more_values_than_anybody_needs_take_no_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npmerge.checkpoint.msgpack.MOST_NODES", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 values"):
        open_file(raw(tmp_path, [1] * 2000))


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    assert min(check_survives(open_file, written(tmp_path), tmp_path / "copies", 500)) > 10
