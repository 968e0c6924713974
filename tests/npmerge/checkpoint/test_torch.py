"""Files of PyTorch read without it: what torch 2.13 wrote, real files of strangers, shards with an index."""

import json
import shutil
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from npmerge.checkpoint import torch_legacy, torch_sharded, torch_zip
from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.torch_sharded import open_torch
from tests.npmerge.checkpoint.mutations import check_survives

FIXTURES = Path(__file__).parents[2] / "fixtures/torch_2_13"
RESNETS = Path(__file__).parents[4] / "shared/data/resnet_cifar10"
FILES = sorted(x.name for x in FIXTURES.glob("*.pt"))


@pytest.fixture(scope="module")
def values() -> dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Dtype, shape and bytes of each tensor of each file."""
    said = json.loads((FIXTURES / "values.json").read_text())["tensors"]
    found: dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]] = {}
    with np.load(FIXTURES / "values.npz") as stored:
        for key, (dtype, shape) in said.items():
            file, name = key.split("/")
            found.setdefault(file, {})[name] = dtype, tuple(shape), stored[key].tobytes()
    return found | {"zip_big_endian.pt": found["zip_views.pt"]}


@pytest.mark.parametrize("file", FILES)
def test_tensors_are_those_that_torch_wrote_bit_for_bit(file: str, values) -> None:
    model, expected = open_torch(FIXTURES / file), values[file]
    assert list(model.entries) == list(expected) and len(expected) >= 5
    for name, (dtype, shape, data) in expected.items():
        entry, got = model.entries[name], model.read(name)
        assert (DTYPES[entry.dtype].name, entry.shape, entry.nbytes) == (dtype, shape, len(data))
        assert got.dtype.name == dtype and got.tobytes() == data and got.flags.writeable


@pytest.mark.parametrize("file", ["zip_views.pt", "legacy_views.pt", "zip_big_endian.pt"])
def test_every_range_of_a_view_is_that_of_the_whole(file: str) -> None:
    model = open_torch(FIXTURES / file)
    for name, entry in model.entries.items():
        whole = model.read(name)
        for start in range(0, entry.size, 5):
            for count in (0, 1, 7, entry.size - start):
                if start + count <= entry.size:
                    assert np.array_equal(model.read(name, start, count), whole[start : start + count])


def test_compressed_archives_hold_the_same_tensors(tmp_path: Path) -> None:
    path = tmp_path / "deflated.pt"
    with zipfile.ZipFile(FIXTURES / "zip_views.pt") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for info in source.infolist():
            target.writestr(info.filename, source.read(info))
    stored, deflated = open_torch(FIXTURES / "zip_views.pt"), open_torch(path)
    assert all(np.array_equal(stored.read(x), deflated.read(x)) for x in stored.entries)
    assert np.array_equal(deflated.read("transposed", 3, 9), stored.read("transposed")[3:12])


@pytest.mark.parametrize("file", ["zip_training.pt", "legacy_training.pt"])
def test_the_container_is_found_and_what_is_left_out_is_said(file: str) -> None:
    container, left_out = open_torch(FIXTURES / file).notes
    assert container == "container: state_dict"
    for said in (
        "epoch (int 3)",
        "args (argparse.Namespace)",
        "optimizer (dict)",
        "multiarray.scalar)",
        "device (torch.device)",
    ):
        assert said in left_out
    assert open_torch(FIXTURES / "zip_nested.pt").notes == ("left out: encoder.depth (int 2)",)


def test_the_legacy_pickle_of_resnet_20_equals_its_safetensors_twin() -> None:
    if not RESNETS.is_dir():
        pytest.skip("the data resnet_cifar10 is not there")
    twin, model = open_model(RESNETS / "resnet20_akamaster.safetensors"), open_torch(RESNETS / "resnet20_akamaster.th")
    assert dict(model.entries) == dict(twin.entries) and len(twin.entries) == 97
    for name in twin.entries:
        assert model.read(name).tobytes() == twin.read(name).tobytes()


@pytest.mark.parametrize(
    ("file", "tensors", "best"),
    [("resnet20_zheng", 116, 92.09), ("resnet20_bognev", 116, 91.59), ("resnet56_akamaster", 277, 93.62)],
)
def test_networks_that_strangers_published_are_read(file: str, tensors: int, best: float) -> None:
    if not RESNETS.is_dir():
        pytest.skip("the data resnet_cifar10 is not there")
    model = open_torch(RESNETS / f"{file}.th")
    assert len(model.entries) == tensors and model.notes == ("container: state_dict", f"left out: best_prec1 (float {best})")
    assert all(np.isfinite(model.read(x)).all() for x in model.entries)


@pytest.mark.parametrize(("kind", "tensors"), [("attacut-c", 11), ("attacut-sc", 27)])
def test_the_files_of_attacut_are_read(kind: str, tensors: int) -> None:
    spec = find_spec("attacut")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package attacut")
    model = open_torch(Path(spec.origin).parent / "artifacts" / kind / "model.pth")
    assert len(model.entries) == tensors and all(np.isfinite(model.read(x)).all() for x in model.entries)


@pytest.fixture
def folder(tmp_path: Path, values) -> Path:
    """Two shards, of which one is a file of old, with their index."""
    where = {}
    for number, file in enumerate(["zip_dtypes.pt", "legacy_views.pt"], 1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        shutil.copy(FIXTURES / file, tmp_path / name)
        where |= dict.fromkeys(values[file], name)
    (tmp_path / "config.json").write_text('{"model_type": "toy"}')
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tmp_path


def _reindexed(folder: Path, **changed: str) -> Path:
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] |= changed
    index.write_text(json.dumps(content))
    return index


def test_shards_with_an_index_are_one_model(folder: Path, values) -> None:
    model = open_checkpoint(folder)
    expected = values["zip_dtypes.pt"] | values["legacy_views.pt"]
    assert set(model.entries) == set(expected) and model.config == {"model_type": "toy"}
    assert all(model.read(name).tobytes() == data for name, (_, _, data) in expected.items())


def test_an_index_that_lies_is_refused(folder: Path) -> None:
    shard = folder / "pytorch_model-00002-of-00002.bin"
    with pytest.raises(CheckpointError, match="'more', which is not in pytorch_model-00002"):
        torch_sharded.open_file(_reindexed(folder, more=shard.name))
    for name in ("../x.bin", "/etc/x.bin", "..", "a/b.bin", "x.json", "x\0.bin"):
        with pytest.raises(CheckpointError, match="is no file of PyTorch in its folder"):
            torch_sharded.open_file(_reindexed(folder, more=name))
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 files: pytorch_model-00002-of-00002\.bin"):
        torch_sharded.open_file(_reindexed(folder, more="pytorch_model-00001-of-00002.bin"))
    shard.symlink_to(FIXTURES / "legacy_views.pt")
    with pytest.raises(CheckpointError, match="is a link that leads out of its folder"):
        torch_sharded.open_file(folder / "pytorch_model.bin.index.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0" * 257 + b"ustar\0" + b"\0" * 300, "is a tar archive of PyTorch 0.1"),
        (b"\x80\x04K\x01.", "does not begin with its magic number"),
        (b"{}", "is no pickle of PyTorch"),
        (b"PK\x03\x04", "is not a zip archive"),
    ],
)
def test_other_files_are_refused_by_what_they_are(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        open_torch(tmp_path / "model.pt")


def test_files_that_became_shorter_are_told(tmp_path: Path) -> None:
    for file in ("zip_views.pt", "legacy_views.pt"):
        shutil.copy(FIXTURES / file, tmp_path / file)
        model = open_torch(tmp_path / file)
        with (tmp_path / file).open("r+b") as opened:
            opened.truncate(100)
        for name in ("base", "transposed"):
            with pytest.raises(CheckpointError, match="is truncated"):
                model.read(name)


@pytest.mark.parametrize("file", ["zip_views.pt", "zip_training.pt", "legacy_views.pt", "legacy_training.pt"])
def test_damaged_files_are_read_or_refused(file: str, tmp_path: Path) -> None:
    reader = torch_legacy if file.startswith("legacy") else torch_zip
    _, refused = check_survives(reader.open_file, FIXTURES / file, tmp_path, 150)
    assert refused > 30
