"""`npmerge convert`: formats by the name of the output, nothing lost, nothing left over."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from npmerge.checkpoint.formats import open_checkpoint
from npmerge.cli import app
from tests.npmerge.checkpoint import samples

TENSORS = {
    "layers/w": np.linspace(-1, 1, 60, dtype=np.float32).reshape(3, 20),
    "layers/big": np.array([1e30, -1e30, np.inf, 1], np.float32),
    "count": np.arange(3),
    "low": np.arange(4).astype(ml_dtypes.bfloat16),
}


def convert(*arguments: object) -> str:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)], catch_exceptions=False).output


def refused(*arguments: object) -> str:
    with pytest.raises(ValueError) as error:
        convert(*arguments)
    return str(error.value)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    samples.npz(folder, TENSORS).rename(folder / "model.npz")
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def values(path: Path) -> dict[str, np.ndarray]:
    model = open_checkpoint(path)
    return {name: model.read(name).reshape(entry.shape) for name, entry in model.entries.items()}


def test_the_name_of_the_output_says_the_format_and_folders_take_along_what_is_no_weight(source: Path, tmp_path: Path) -> None:
    for name, format_ in (("a.safetensors", "safetensors"), ("b.npz", "npz"), ("c.orbax", "orbax"), ("d", "safetensors")):
        assert "4 tensors, 288 B of npz in" in convert(source, tmp_path / name)
        assert open_checkpoint(tmp_path / name).format.lower() == format_
        assert {k: x.tobytes() for k, x in values(tmp_path / name).items()} == {k: x.tobytes() for k, x in TENSORS.items()}
    assert convert(source, tmp_path / "e", "--format", "orbax", "--quiet") == ""
    assert open_checkpoint(tmp_path / "e").format == "Orbax"
    assert {x.name for x in (tmp_path / "d").iterdir()} == {"model.safetensors", "config.json", "tokenizer.json"}
    assert {x.name for x in tmp_path.iterdir()} == {"in", "a.safetensors", "b.npz", "c.orbax", "d", "e"}


def test_shards_with_an_index_that_agree(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", "--out-shard-size", "100")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 2 and index["metadata"]["total_size"] == 288
    assert set(values(tmp_path / "out")) == set(TENSORS)


def test_a_dtype_is_for_floats_rounds_once_and_says_what_became_infinite(source: Path, tmp_path: Path) -> None:
    for name in ("x.safetensors", "x.npz", "x.orbax"):
        assert "warning: 2 entries of 'layers/big' became infinite in float16" in convert(
            source, tmp_path / name, "--dtype", "float16"
        )
        found = values(tmp_path / name)
        assert {k: x.dtype.name for k, x in found.items()} == dict.fromkeys(TENSORS, "float16") | {"count": "int64"}
        np.testing.assert_array_equal(found["layers/w"], TENSORS["layers/w"].astype(np.float16))
    assert "the nearest is 'float16'" in refused(source, tmp_path / "y", "--dtype", "float1")


def test_what_is_there_stays_unless_it_may_be_replaced(source: Path, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.npz", "c.orbax", "d"):
        out = tmp_path / name
        convert(source, out)
        assert f"{out} exists" in refused(source, out)
        convert(source, out, "--force", "--dtype", "bfloat16")
        assert values(out)["layers/w"].dtype == ml_dtypes.bfloat16
    (tmp_path / "d" / "notes.txt").touch()
    assert "holds notes.txt, which --force would lose" in refused(source, tmp_path / "d", "--force")
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder: name a file" in refused(source, tmp_path / "folder.npz", "--force")
    assert "is the input" in refused(tmp_path / "b.npz", tmp_path / "b.npz", "--force")
    assert "lie one in the other" in refused(source, source / "inner")
    assert ".pt is not written" in refused(source, tmp_path / "x.pt")
    assert "asks for orbax" in refused(source, tmp_path / "x.npz", "--format", "orbax")
    assert "needs a name that ends in .npz" in refused(source, tmp_path / "x", "--format", "npz")
    assert "unknown format 'np'" in refused(source, tmp_path / "x", "--format", "np")
    assert "is for folders of safetensors" in refused(source, tmp_path / "x.npz", "--out-shard-size", "5")
    assert "its folder does not exist" in refused(source, tmp_path / "none" / "x.npz")


def test_what_force_would_lose_is_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "d")
    convert(source, tmp_path / "d.orbax")
    for folder, name in (
        ("d", "README.md"),
        ("d", "optimizer.pt"),
        ("d", "model_final.safetensors"),
        ("d.orbax", "_notes.txt"),
    ):
        (source / name).touch()  # a namesake beside the input says nothing
        (tmp_path / folder / name).write_text("mine")
        assert f"holds {name}, which --force would lose" in refused(source, tmp_path / folder, "--force")
        (tmp_path / folder / name).unlink()
    for folder in ("d", "d.orbax"):
        (tmp_path / folder / "precious").mkdir()
        assert "holds precious, which --force would lose" in refused(source, tmp_path / folder, "--force")


def test_outputs_inside_the_input_are_refused(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "d", "--out-shard-size", "100")
    shards = sorted((tmp_path / "d").glob("*.safetensors"))
    before = [x.read_bytes() for x in shards]
    assert "lie one in the other" in refused(tmp_path / "d", shards[0], "--force")
    assert "is a file of the input" in refused(tmp_path / "d" / "model.safetensors.index.json", shards[1], "--force")
    assert [x.read_bytes() for x in shards] == before
    convert(source, tmp_path / "d.orbax")
    assert "lie one in the other" in refused(tmp_path / "d.orbax", tmp_path / "d.orbax" / "x.npz")


def test_names_that_a_format_does_not_hold_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    odd = samples.safetensors(tmp_path, {"a\0b": np.ones(2, np.float32), "c": np.ones(2, np.float32)})
    assert "no name for a member of a zip archive" in refused(odd, tmp_path / "x.npz")
    assert "is no name for Orbax" in refused(odd, tmp_path / "x.orbax")
    assert [x.name for x in tmp_path.iterdir()] == ["a.safetensors"]


NAMES = ["x.npz", "x.safetensors", "x", "x.orbax"]
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    big = samples.npz(tmp_path, {"w": np.arange(2000, dtype=np.float32)}).rename(tmp_path / "big.npz")
    convert(samples.npz(tmp_path, {"w": np.ones(2, np.float32)}), tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    program = f"{FULL}; import sys; sys.argv = ['npmerge', 'convert', {str(big)!r}, {str(tmp_path / name)!r}, '--force']"
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}; from npmerge.cli import main; main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2 and "cannot write" in ran.stderr and "File too large" in ran.stderr
    assert sorted(tmp_path.rglob("*")) == before and values(tmp_path / name)["w"].tolist() == [1, 1]


STOPPED = """
import os, signal, sys
from npmerge.checkpoint.conversion import Pieces
from npmerge.cli import main

first = Pieces.__init__
def told(self, model, dtype, advance):
    def stop(nbytes):
        os.kill(os.getpid(), signal.SIGTERM)
        advance(nbytes)
    first(self, model, dtype, stop)
Pieces.__init__ = told
sys.argv = ["npmerge", "convert", *sys.argv[1:], "--force"]
main()
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_conversion_that_is_told_to_stop_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    source = samples.npz(tmp_path, {"w": np.ones(2, np.float32)})
    convert(source, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    ran = subprocess.run([sys.executable, "-c", STOPPED, str(source), str(tmp_path / name)], check=False)
    assert ran.returncode == 143 and sorted(tmp_path.rglob("*")) == before


MEMORY = """
import sys, numpy as np
from npmerge.checkpoint.formats import open_checkpoint

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

before = anonymous()
model, most = open_checkpoint(sys.argv[1]), 0
for name, entry in model.entries.items():
    for start in range(0, entry.size, 2**22):
        model.read(name, start, min(2**22, entry.size - start))
        most = max(most, anonymous())
print((most - before) // 1024)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_file_of_a_gigabyte_takes_little_memory(tmp_path: Path) -> None:
    head = json.dumps({f"w{k}": {"dtype": "F32", "shape": [2**25], "data_offsets": [k << 27, (k + 1) << 27]} for k in range(8)})
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head.encode())
        os.ftruncate(file.fileno(), 8 + len(head) + 2**30)  # holes: no disk is needed
    ran = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.safetensors")], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 100
