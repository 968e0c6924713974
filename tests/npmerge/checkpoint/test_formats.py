"""What a file is stands in its first bytes; between all formats that are written tensors go bit for bit."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from npmerge.checkpoint.conversion import Pieces, write_npz, write_orbax, write_safetensors
from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.stored import StoredModel
from npmerge.cli import app
from tests.npmerge.checkpoint import samples
from tests.npmerge.checkpoint.mutations import check_survives
from tests.npmerge.checkpoint.samples import TENSORS

WRITERS = {
    "safetensors": lambda out, pieces: write_safetensors(out.with_suffix(".safetensors"), pieces, {}),
    "sharded": lambda out, pieces: write_safetensors(out, pieces, {}, 100),
    "npz": lambda out, pieces: write_npz(out.with_suffix(".npz"), pieces),
    "orbax": lambda out, pieces: write_orbax(out.with_suffix(".orbax"), pieces),
}


def same(model: StoredModel) -> None:
    assert set(model.entries) == set(TENSORS)
    for name, expected in TENSORS.items():
        entry, got = model.entries[name], model.read(name)
        assert (entry.shape, DTYPES[entry.dtype], got.dtype) == (expected.shape, expected.dtype, expected.dtype)
        assert got.tobytes() == expected.tobytes(), name


def held(model: StoredModel) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor."""
    return {name: (entry.dtype, entry.shape, model.read(name).tobytes()) for name, entry in model.entries.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {name: sample.make(folder) for name, sample in samples.SAMPLES.items()}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(samples.SAMPLES, WRITERS)))
def test_between_all_pairs_of_formats_bit_for_bit(made: dict[str, Path], tmp_path: Path, source: str, target: str) -> None:
    model = open_checkpoint(made[source])
    if source in ("safetensors", "safetensors, sharded", "npz", "Flax msgpack", "Orbax"):
        same(model)
    WRITERS[target](tmp_path / "out", Pieces(model))
    (out,) = tmp_path.iterdir()
    found = held(open_checkpoint(out))
    assert found == held(model) and len(found) >= 2


def test_the_name_of_a_file_does_not_matter_and_a_wrong_one_is_no_reason(made: dict[str, Path], tmp_path: Path) -> None:
    for name in ("safetensors", "npz", "Flax msgpack"):
        shutil.copyfile(made[name], tmp_path / "x.bin")
        same(open_checkpoint(tmp_path / "x.bin"))
        assert open_checkpoint(tmp_path).path == tmp_path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.safetensors", b"", "is empty"),
        ("a.npz", b"PK\x05\x06" + bytes(18), "is a zip archive, but neither PyTorch's nor NumPy's: it has no members"),
        ("a.npz", b"PK\x03\x04 cut", "zip"),
        ("a.safetensors", b"\x93NUMPY\x01", "one array of NumPy"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        ("a.bin", b"\x1f\x8b\x08 and so on", "compressed by gzip"),
        ("a.pt", b"<!DOCTYPE html><html>", "a page"),
        ("a.gguf", b"plain text", "is no checkpoint; read are safetensors, npz"),
        ("a.safetensors", b"plain text that is longer", "not a safetensors file"),
        ("a.json", b'{"weight_map": {"w": "../a.safetensors"}}', "'../a.safetensors' is no"),
        ("a.json", b'{"a": 1}', "no checkpoint"),
        ("a.json", b"{", "cannot be read"),
    ],
)
def test_what_is_no_checkpoint_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        open_checkpoint(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) or str(tmp_path) in str(error.value)


@pytest.mark.parametrize("length", [123, 31520])
def test_a_length_that_reads_as_the_beginning_of_json_is_one(tmp_path: Path, length: int) -> None:
    text = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    (tmp_path / "a.safetensors").write_bytes(length.to_bytes(8, "little") + text + np.float32(3).tobytes())
    for place in (tmp_path, tmp_path / "a.safetensors"):
        assert open_checkpoint(place).read("w").tolist() == [3]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_checkpoint(tmp_path / "none")
    with pytest.raises(CheckpointError, match="holds no weights"):
        open_checkpoint(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="is neither a file nor a folder"):
        open_checkpoint(tmp_path / "pipe")
    shutil.copyfile(samples.npz(tmp_path), tmp_path / "b.npz")
    with pytest.raises(CheckpointError, match=r"holds a\.npz, b\.npz: name one of them"):
        open_checkpoint(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    samples.npz(tmp_path).chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        open_checkpoint(tmp_path / "a.npz")


@pytest.mark.parametrize("make", [samples.npz, samples.safetensors, samples.torch_zip, samples.msgpack])
def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]) -> None:
    """Whoever runs the tests: the superuser may read everything."""
    path, opened = make(tmp_path), Path.open

    def refusing(self: Path, *given: Any, **named: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *given, **named)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied") as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


def test_links_out_of_a_folder_are_refused_but_the_cache_of_hugging_face_is_read(tmp_path: Path) -> None:
    blob = samples.safetensors(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to(blob)
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        open_checkpoint(tmp_path / "model")
    same(open_checkpoint(tmp_path / "model" / "model.safetensors"))
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}))
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        open_checkpoint(index)
    snapshot, blobs = tmp_path / "snapshots" / "1", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    blob.rename(blobs / "b")
    (snapshot / "model.safetensors").symlink_to(blobs / "b")
    same(open_checkpoint(snapshot))


def test_names_that_differ_only_by_case_or_are_prefixes_are_kept_and_told(tmp_path: Path) -> None:
    tensors = {"A": np.zeros(2, np.float32), "a": np.ones(2, np.float32), "a.b": np.ones(1, np.int8)}
    for make in (samples.safetensors, samples.npz):
        model = open_checkpoint(make(tmp_path, tensors))
        assert list(model.entries) == list(tensors) or set(model.entries) == set(tensors)
        assert model.notes[-1] == "names that differ only by case: A and a" or "A" in model.notes[-1]
    with pytest.raises(ValueError, match="beginning of a path"):
        samples.orbax(tmp_path, {"a": tensors["a"], "a/b": tensors["a"]})
    assert not list(tmp_path.glob("*orbax*"))


def test_damaged_safetensors(tmp_path: Path) -> None:
    for make in (samples.safetensors, samples.sharded):
        assert min(check_survives(open_model, make(tmp_path), tmp_path / "copies", 200)) > 5


def test_inspect_says_format_and_notes(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=TENSORS["of/BF16"])
    found = CliRunner().invoke(app, ["inspect", str(tmp_path / "x.npz"), "--values"], catch_exceptions=False).output
    assert "format  npz" in found and "taken as bfloat16" in found
