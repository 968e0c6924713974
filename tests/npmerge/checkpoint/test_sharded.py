"""Models of others: what is read is what was stored, and nothing in a file is believed before it has been checked."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.sharded import open_model

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.arange(5).astype(ml_dtypes.bfloat16), "n": np.int64([7])}
INDEX = "model.safetensors.index.json"


def folder_with(path: Path, shards: dict[str, list[str]] | None = None) -> Path:
    path.mkdir()
    if shards is None:
        save_file(TENSORS, path / "model.safetensors")
        return path
    for file, names in shards.items():
        save_file({name: TENSORS[name] for name in names}, path / file)
    where = {name: file for file, names in shards.items() for name in names}
    (path / INDEX).write_text(json.dumps({"weight_map": where}))
    return path


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "one")


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return folder_with(
        tmp_path / "two", {"model-00001-of-00002.safetensors": ["a"], "model-00002-of-00002.safetensors": ["b", "n"]}
    )


def raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def described(begin: int = 0, end: int = 4, dtype: str = "F32", shape: object = (1,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_every_tensor_is_read_whole_and_in_parts_from_one_file_and_from_several(one: Path, two: Path) -> None:
    for path in (one, two, one / "model.safetensors", two / INDEX):
        model = open_model(path)
        assert set(model.entries) == set(TENSORS)
        for name, expected in TENSORS.items():
            entry, got = model.entries[name], model.read(name)
            assert (entry.shape, entry.nbytes, DTYPES[entry.dtype]) == (expected.shape, expected.nbytes, expected.dtype)
            assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes() and got.flags.writeable
        np.testing.assert_array_equal(model.read("b", 2, 3), [2, 3, 4])
        assert model.read("b", 6).size == 0 and model.read("b").ctypes.data % 64 == 0


def test_the_configuration_is_that_of_the_folder(one: Path) -> None:
    assert open_model(one).config == {}
    (one / "config.json").write_text('{"vocab_size": 5}')
    assert open_model(one).config == open_model(one / "model.safetensors").config == {"vocab_size": 5}
    (one / "config.json").write_text("[")
    with pytest.raises(ValueError, match=r"config\.json"):
        open_model(one)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtypes_are_those_of_the_reference_implementation(tmp_path: Path, dtype: str) -> None:
    stored = np.arange(8).astype(DTYPES[dtype])
    save_file({"x": stored}, tmp_path / "x.safetensors")
    model = open_model(tmp_path)
    assert model.entries["x"].dtype == dtype
    assert model.read("x").tobytes() == stored.tobytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"", b"", "not a safetensors file"),
        (b"{", b"", "not a safetensors file"),
        (b"[1]", b"", "expected an object"),
        (b"[" * 100_000, b"", "not a safetensors file"),
        (b"\xff\xff", b"", "not a safetensors file"),
        (b'{"x": 1, "x": 2}', b"", "'x' stands there twice"),
        ({"x": 3}, b"", "'x' needs dtype, shape and two data_offsets"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        ({"x": described(shape=[-1])}, b"0000", "'x' has the shape"),
        ({"x": described(shape=[True])}, b"0000", "'x' has the shape"),
        ({"x": described(shape=[1.0])}, b"0000", "'x' has the shape"),
        ({"x": described(shape=[10**30])}, b"0000", "'x' has the shape"),
        ({"x": described(dtype="F4")}, b"0000", "dtype 'F4', expected one of BOOL"),
        ({"x": described(dtype=["F32"])}, b"0000", "dtype"),
        ({"x": described(end=8)}, b"0" * 8, r"'x' \(F32 \[1\]\) needs 4 bytes, has 8"),
        ({"x": described(4, 0)}, b"0" * 4, "needs 4 bytes, has -4"),
        ({"x": described(), "y": described()}, b"0" * 4, "'y' overlaps with 'x'"),
        ({"x": described(), "y": described(2, 6)}, b"0" * 6, "'y' overlaps with 'x'"),
        ({"x": described(), "y": described(8, 12)}, b"0" * 12, "'y' leaves 4 bytes free after 'x'"),
        ({"x": described(4, 8)}, b"0" * 8, "'x' leaves 4 bytes free after the header"),
        ({"x": described(2**59, 2**59 + 4)}, b"0" * 8, "'x' leaves"),
        ({"x": described()}, b"000", "is truncated: its tensors take 4 bytes, 3 are there"),
        ({"x": described()}, b"00000", "is damaged: its tensors take 4 bytes, 5 are there"),
        ({}, b"", "has no tensors"),
    ],
)
def test_a_damaged_file_is_refused_by_its_path(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(ValueError, match=message) as error:
        open_model(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_length_that_no_header_has_and_a_header_that_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content, message in ((b"\xff" * 16, "length"), (b"1234", "length"), ((90).to_bytes(8, "little") + b"{}", "truncated")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            open_model(path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a JSON object"),
        ("{}", "broken index: expected weight_map"),
        ('{"weight_map": {"a": 1}}', "broken index: expected weight_map"),
        ('{"weight_map": {"a": "../one.safetensors"}}', "'../one.safetensors' is no safetensors file of its folder"),
        ('{"weight_map": {"a": "/x.safetensors"}}', "is no safetensors file of its folder"),
        ('{"weight_map": {"a": "x.bin"}}', "is no safetensors file of its folder"),
        (
            '{"weight_map": {"a": "model-00003-of-00003.safetensors"}}',
            "names model-00003-of-00003.safetensors, which is missing",
        ),
        ('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}', "broken index: 'a', which is not in model-00002"),
        ('{"weight_map": {"b": "model-00002-of-00002.safetensors"}}', "'n', that it does not name lies in model-00002"),
    ],
)
def test_a_broken_index_is_refused(two: Path, index: str, message: str) -> None:
    (two / INDEX).write_text(index)
    with pytest.raises(ValueError, match=message):
        open_model(two)


def test_a_folder_must_leave_no_doubt_which_weights_are_meant(one: Path, two: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file or folder"):
        open_model(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no weights"):
        open_model(tmp_path / "empty")
    (tmp_path / "empty" / "model.pth").touch()
    with pytest.raises(ValueError, match=r"only model\.pth, which is not read here: convert it"):
        open_model(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"only pytorch_model\.bin, which is not read here: convert it"):
        open_model(tmp_path / "empty")
    (one / "training_args.bin").touch()
    open_model(one)
    (one / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"holds model\.safetensors and pytorch_model\.bin, and it is not clear.*name one"):
        open_model(one)
    assert set(open_model(one / "model.safetensors").entries) == set(TENSORS)
    save_file(TENSORS, two / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{INDEX} and model\.safetensors, and it is not clear"):
        open_model(two)
    (two / "model.safetensors").unlink()
    (two / INDEX).unlink()
    with pytest.raises(ValueError, match="but no index"):
        open_model(two)
    with pytest.raises(ValueError, match="expected a folder, a file"):
        open_model(one / "pytorch_model.bin")


def test_a_file_that_shrinks_or_goes_after_its_header_was_read(one: Path) -> None:
    model = open_model(one)
    os.truncate(one / "model.safetensors", (one / "model.safetensors").stat().st_size - 1)
    with pytest.raises(ValueError, match=r"model\.safetensors: is truncated"):
        [model.read(name) for name in TENSORS]
    (one / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read: No such file"):
        model.read("a")


def test_a_name_or_a_range_that_the_model_has_not(one: Path) -> None:
    model = open_model(one)
    with pytest.raises(ValueError, match="unknown tensor 'bb': the nearest is 'b'"):
        model.read("bb")
    with pytest.raises(ValueError, match="'b' has 6 entries, asked for 5 from 2 on"):
        model.read("b", 2, 5)
