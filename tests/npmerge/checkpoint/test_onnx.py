"""ONNX: initialisers bit for bit, data outside the file only from its folder, and the published files of silero-vad."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.onnx import open_file
from npmerge.checkpoint.sharded import open_model
from tests.npmerge.checkpoint.mutations import check_holds, check_survives

onnx = pytest.importorskip("onnx", reason='needs the package onnx: pip install "npmerge[onnx]"')

KINDS = ("bool", "uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64")
ARRAYS = {
    **{kind: np.arange(6).astype(kind).reshape(2, 3) for kind in KINDS},
    "bfloat16": np.arange(4).astype(ml_dtypes.bfloat16),
    "float8_e4m3fn": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.arange(4).astype(ml_dtypes.float8_e5m2),
    "complex64": np.array([1 + 2j], np.complex64),
    "scalar": np.array(3, np.float32),
    "empty": np.zeros((0, 2), np.float32),
}


def proto(name: str, array: np.ndarray) -> Any:
    return onnx.numpy_helper.from_array(array, name)


def written(folder: Path, tensors: list[Any], nodes: list[Any] | None = None, name: str = "model.onnx") -> Path:
    nodes = nodes if nodes is not None else [onnx.helper.make_node("Identity", ["x"], ["y"])]
    (folder / name).write_bytes(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString())
    return folder / name


def check(path: Path, expected: dict[str, np.ndarray]) -> None:
    check_holds(open_file(path), expected)


def test_initialisers_of_every_dtype_are_read_bit_for_bit(tmp_path: Path) -> None:
    check(written(tmp_path, [proto(name, array) for name, array in ARRAYS.items()]), ARRAYS)


def test_numbers_that_stand_as_such_are_read_too(tmp_path: Path) -> None:
    make, types = onnx.helper.make_tensor, onnx.TensorProto
    tensors = [
        make("f", types.FLOAT, [2], [1.5, 2.5]),
        make("h", types.FLOAT16, [2], [1.5, 2.5]),
        make("b", types.BFLOAT16, [2], [1.5, 2.5]),
        make("i", types.INT8, [3], [-1, 2, 3]),
        make("c", types.COMPLEX64, [1], [1 + 2j]),
    ]
    values = {"f": np.float32([1.5, 2.5]), "h": np.float16([1.5, 2.5]), "i": np.int8([-1, 2, 3]), "c": np.complex64([1 + 2j])}
    check(written(tmp_path, tensors), {**values, "b": np.array([1.5, 2.5], ml_dtypes.bfloat16)})


def test_inner_graphs_and_constants_are_named_by_where_they_stand(tmp_path: Path) -> None:
    one = proto("w", np.float32([1]))
    inner = onnx.helper.make_graph([], "inner", [], [], [one])
    nodes = [
        onnx.helper.make_node("If", ["x"], ["y"], name="branch", then_branch=inner, else_branch=inner),
        onnx.helper.make_node("Constant", [], ["c"], value=proto("", np.float32([2]))),
        onnx.helper.make_node("Constant", [], ["d"], value_float=3.0),
    ]
    path = written(tmp_path, [one], nodes)
    names = ("w", "branch/then_branch/w", "branch/else_branch/w")
    check(path, {**dict.fromkeys(names, np.float32([1])), "c": np.float32([2])})
    assert open_file(path).notes == (
        "1 tensors stand in nodes Constant, not among the initialisers",
        "left out: 1 constants that are no tensors",
    )


def external(location: str, **fields: object) -> Any:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_data_outside_the_file_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "w.bin").write_bytes(bytes(8) + np.float32([1, 2]).tobytes() + b"more")
    check(written(tmp_path, [external("inner/w.bin", offset=8, length=8)]), {"w": np.float32([1, 2])})
    check(written(tmp_path, [external("inner/w.bin", offset=8)]), {"w": np.float32([1, 2])})


@pytest.mark.parametrize(
    ("location", "fields", "message"),
    [
        ("../w.bin", {}, "expected a file inside"),
        ("a/../../w.bin", {}, "expected a file inside"),
        ("/etc/passwd", {}, "expected a file inside"),
        ("..\\w.bin", {}, "expected a file inside"),
        ("", {}, "expected a file inside"),
        ("w\0.bin", {}, "expected a file inside"),
        ("link.bin", {}, "which is a link"),
        ("linked/w.bin", {}, "which is a link"),
        ("nothing.bin", {}, "which is missing"),
        ("w.bin", {"offset": 5}, "ends at byte 13"),
        ("w.bin", {"offset": -1}, "has the offset -1"),
        ("w.bin", {"offset": "x"}, "no number"),
        ("w.bin", {"offset": "9" * 30}, "has the offset"),
        ("w.bin", {"length": 4}, "needs 8 bytes, its file gives 4"),
    ],
)
def test_data_from_elsewhere_is_refused(tmp_path: Path, location: str, fields: dict[str, object], message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "w.bin").write_bytes(bytes(8))
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=f"'w' .*{message}"):
        open_file(written(folder, [external(location, **fields)]))


def described(name: str = "w", kind: int = 1, dims: tuple[int, ...] = (2,), **fields: object) -> Any:
    return onnx.TensorProto(name=name, data_type=kind, dims=dims, **fields)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([described(raw_data=bytes(4))], r"'w' \(float32 \(2,\)\) needs 8 bytes, has 4"),
        ([described(dims=(2**40, 2**40))], "no memory holds"),
        ([described(dims=(2**30,))], "needs 1073741824 entries, has 0"),
        ([described(dims=(-1,))], "'w' has the shape"),
        ([described(kind=8)], "'w' has the data type 8"),
        ([described(kind=99, raw_data=bytes(8))], "'w' has the data type 99"),
        ([described(raw_data=bytes(8))] * 2, "'w' stands there twice"),
        ([], "has no tensors"),
    ],
)
def test_tensors_that_lie_are_refused(tmp_path: Path, tensors: list[Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_file(written(tmp_path, tensors))


@pytest.mark.parametrize("content", [b"", b"not protobuf at all", b"\x08\x07"])
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not an ONNX file"):
        open_file(tmp_path / "x.onnx")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_file(tmp_path / "none.onnx")


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [proto(name, ARRAYS[name]) for name in ("float32", "bfloat16", "bool", "scalar")])
    (tmp_path / "copies").mkdir()
    assert min(check_survives(open_file, path, tmp_path / "copies", 400)) > 10


def test_the_published_files_of_silero_vad_agree_with_each_other_and_with_its_safetensors() -> None:
    found = importlib.util.find_spec("silero_vad")
    if found is None or found.origin is None:
        pytest.skip("needs the files of silero-vad: pip install --no-deps silero-vad")
    folder = Path(found.origin).parent / "data"
    flat, within, others = (open_file(folder / f"silero_vad{x}.onnx") for x in ("_16k_op15", "", "_op18_ifless"))
    names = [x for x in others.entries if x.startswith(("model.encoder", "model.decoder.rnn", "model.stft"))]
    assert len(names) == 13
    for name in names:
        inner = f"If_0/then_branch/If_0_then_branch__Inline_0__{name.removeprefix('model.')}"
        assert flat.entries[name].shape == within.entries[inner].shape == others.entries[name].shape
        assert flat.read(name).tobytes() == within.read(inner).tobytes() == others.read(name).tobytes()
    twin = open_model(folder / "silero_vad_16k.safetensors")  # its other weights are of another training
    assert twin.read("stft_conv.weight").tobytes() == flat.read("model.stft.forward_basis_buffer").tobytes()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, [proto("w", np.float32([1]))])
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CheckpointError, match=r'needs the package onnx: pip install "npmerge\[onnx\]"'):
        open_file(path)
