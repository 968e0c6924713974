"""GGUF: what the package writes is read bit for bit, quantised tensors as the package dequantises them."""

import struct
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.gguf import open_file
from tests.npmerge.checkpoint.mutations import check_survives

ARRAYS = {
    "token_embd.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.arange(24, dtype=np.float16).reshape(2, 3, 4),
    "bytes": np.array([-1, 2, 3], np.int8),
    "long": np.array([2**40], np.int64),
    "double": np.array([1e300]),
}
BRAIN = np.arange(6).astype(ml_dtypes.bfloat16).reshape(3, 2)
QUANTISED = ("Q8_0", "Q4_0", "Q5_1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    gguf = pytest.importorskip("gguf", reason='needs the package gguf: pip install "npmerge[gguf]"')
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_uint32("llama.block_count", 3)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bc", "é"])
    writer.add_array("numbers", [1, 2, 3])
    for name, array in ARRAYS.items():
        writer.add_tensor(name, array)
    kinds = gguf.GGMLQuantizationType
    writer.add_tensor("brain", BRAIN.view(np.uint8), raw_dtype=kinds.BF16)
    rows = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    for name in QUANTISED:
        writer.add_tensor(name, gguf.quants.quantize(rows, kinds[name]), raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_plain_tensors_are_read_bit_for_bit_with_numpys_order_of_axes(path: Path) -> None:
    model = open_file(path)
    for name, expected in {**ARRAYS, "brain": BRAIN}.items():
        entry, got = model.entries[name], model.read(name)
        assert (entry.shape, entry.nbytes, DTYPES[entry.dtype]) == (expected.shape, expected.nbytes, expected.dtype)
        assert got.dtype == expected.dtype and got.tobytes() == expected.tobytes()
    assert model.read("half", 5, 7).tolist() == list(range(5, 12))


def test_quantised_tensors_are_what_the_package_makes_of_them_whole_and_in_parts(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, theirs = open_file(path), {x.name: x for x in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(model.entries)
    for name in QUANTISED:
        expected = gguf.quants.dequantize(theirs[name].data, theirs[name].tensor_type).reshape(-1)
        assert model.entries[name].dtype == "F32" and model.entries[name].shape == (3, 64)
        assert model.read(name).tobytes() == expected.tobytes()
        for start, count in ((0, 1), (31, 2), (33, 90), (191, 1)):
            assert model.read(name, start, count).tobytes() == expected[start : start + count].tobytes()
    assert model.notes == ("architecture llama", "dequantised to float32: tensors of Q4_0, Q5_1, Q8_0")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file(folder: Path, *tensors: bytes, keys: tuple[bytes, ...] = (), count: int | None = None, data: int = 64) -> Path:
    number = len(tensors) if count is None else count
    head = b"GGUF" + struct.pack("<IQQ", 3, number, len(keys)) + b"".join((*keys, *tensors))
    path = folder / "own.gguf"
    path.write_bytes(head + bytes(-len(head) % 32 + data))
    return path


def tensor(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_a_file_by_hand_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    model = open_file(file(tmp_path, tensor("a"), tensor("b", (2, 0), 1, 32)))
    assert model.read("a").tolist() == [0] * 4 and model.entries["b"].shape == (0, 2)
    with pytest.raises(CheckpointError, match=r"needs the package gguf: pip install \"npmerge\[gguf\]\""):
        open_file(file(tmp_path, tensor("a", (32,), 8)))


HUGE = 2**63 - 1


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ([], {"count": HUGE}, "truncated"),
        ([tensor("a")], {"data": 8}, "'a' ends at byte"),
        ([tensor("a", (HUGE,))], {}, "'a' has the shape"),
        ([tensor("a", (2**40, 2**40))], {}, "no memory holds"),
        ([tensor("a", (1,) * 33)], {}, "'a' has 33 axes"),
        ([tensor("a", offset=2**62)], {}, "'a' ends at byte"),
        ([tensor("a", offset=5)], {}, "'a' begins at 5, expected a multiple of 32"),
        ([tensor("a"), tensor("b", offset=0)], {}, "'b' begins at 0, expected a multiple of 32 from 16"),
        ([tensor("a"), tensor("a", offset=32)], {}, "'a' stands there twice"),
        ([tensor("a", kind=999)], {}, "'a' has the type 999"),
        ([tensor("a", (256,), 9)], {"data": 1000}, "'a' is of the type Q8_1, which the package gguf does not dequantise"),
        ([tensor("a", (33,), 8)], {}, "'a' has the shape .* multiple of 32"),
        ([text("x" * 70_000)], {}, "a name takes 70000 bytes"),
        ([tensor("a")], {"keys": (text("k") + struct.pack("<I", 77),)}, "'k' has a value of the type 77"),
        ([tensor("a")], {"keys": (text("k") + struct.pack("<IIQ", 9, 0, HUGE),)}, "truncated"),
        ([tensor("a")], {"keys": (text("k") + struct.pack("<IIQ", 9, 9, HUGE),)}, "truncated"),
        ([tensor("a")], {"keys": (text("k") + struct.pack("<IQ", 8, HUGE),)}, "truncated"),
        ([tensor("a")], {"keys": (text("general.alignment") + struct.pack("<II", 4, 3),)}, "a power of two"),
        ([], {}, "has no tensors"),
    ],
)
def test_headers_that_lie_are_refused_with_the_tensor(
    tmp_path: Path, tensors: list[bytes], options: dict, message: str
) -> None:
    pytest.importorskip("gguf", reason='needs the package gguf: pip install "npmerge[gguf]"')
    with pytest.raises(CheckpointError, match=message):
        open_file(file(tmp_path, *tensors, **options))


def test_lists_in_lists_and_other_versions_are_refused(tmp_path: Path) -> None:
    nested = text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 20
    with pytest.raises(CheckpointError, match="'k' has a value of the type 9"):
        open_file(file(tmp_path, tensor("a"), keys=(nested,)))
    (tmp_path / "big.gguf").write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(50))
    with pytest.raises(CheckpointError, match="big-endian"):
        open_file(tmp_path / "big.gguf")
    (tmp_path / "no.gguf").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="truncated or no GGUF file"):
        open_file(tmp_path / "no.gguf")


def test_damaged_files_are_read_or_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "copies").mkdir()
    assert min(check_survives(open_file, path, tmp_path / "copies", 400)) > 10
