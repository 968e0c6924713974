"""A small sound checkpoint in every format that is read, with tensors of every dtype that the format has."""

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np

from npmerge.checkpoint.adapted import open_reference
from npmerge.checkpoint.conversion import Pieces, write_npz, write_orbax, write_safetensors
from npmerge.checkpoint.dtypes import CODES, DTYPES
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.sharded import open_model
from npmerge.checkpoint.stored import Entry, StoredModel

Opener = Callable[[Path], StoredModel]


class Sample(NamedTuple):
    """A format that is read.

    Attributes:
        open: its reader, without the look at the first bytes.
        make: writes a sound file or folder of it into a folder, and returns it.
    """

    open: Opener
    make: Callable[[Path], Path]


FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

TENSORS: Mapping[str, np.ndarray] = {
    **{f"of/{code}": np.arange(6).astype(dtype).reshape(2, 3) for code, dtype in DTYPES.items()},
    "params/scalar": np.array(2.5, np.float32),
    "params/empty": np.zeros((0, 3), DTYPES["BF16"]),
    "params/not a number": np.array([np.nan, -np.nan, -0.0, np.inf], np.float16),
}


class Held(StoredModel):
    """Arrays in memory as a model on disk."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.path, self.config, self._tensors = Path("memory"), {}, tensors
        self.entries = {name: Entry(name, CODES[x.dtype.name], x.shape) for name, x in tensors.items()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        flat = self._tensors[name].reshape(-1)
        return flat[start : flat.size if count is None else start + count].copy()


def safetensors(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    write_safetensors(folder / "a.safetensors", Pieces(Held(tensors)), {"format": "pt"})
    return folder / "a.safetensors"


def sharded(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    write_safetensors(folder / "sharded", Pieces(Held(tensors)), {}, 100)
    return folder / "sharded"


def npz(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    write_npz(folder / "a.npz", Pieces(Held(tensors)))
    return folder / "a.npz"


def compressed(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    np.savez_compressed(folder / "c.npz", **{k: x for k, x in tensors.items() if x.dtype.kind in "biufc" and "F8" not in k})  # type: ignore[arg-type]
    return folder / "c.npz"


def orbax(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    write_orbax(folder / "a.orbax", Pieces(Held(tensors)))
    return folder / "a.orbax"


def msgpack(folder: Path, tensors: Mapping[str, np.ndarray] = TENSORS) -> Path:
    from flax.serialization import msgpack_serialize

    (folder / "a.msgpack").write_bytes(msgpack_serialize({name: np.asarray(x) for name, x in tensors.items()}))
    return folder / "a.msgpack"


def keras(folder: Path) -> Path:
    import h5py

    with h5py.File(folder / "a.h5", "w") as file:
        file["dense/kernel"] = np.arange(12, dtype=np.float32).reshape(3, 4)
        file.create_dataset("dense/bias", data=np.arange(400, dtype=np.float16), chunks=(100,), compression="gzip")
    return folder / "a.h5"


def gguf(folder: Path) -> Path:
    import gguf as package

    writer = package.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_array("tokens", ["a", "bc"])
    writer.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    kind = package.GGMLQuantizationType.Q8_0
    writer.add_tensor("q", package.quants.quantize(np.ones((2, 32), np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "a.gguf"


def onnx(folder: Path) -> Path:
    from onnx import helper, numpy_helper

    tensors = [numpy_helper.from_array(np.arange(6, dtype=x).reshape(2, 3), x) for x in ("float32", "int64", "float16")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [], tensors)
    (folder / "a.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return folder / "a.onnx"


def torch_zip(folder: Path) -> Path:
    return Path(shutil.copyfile(FIXTURES / "torch_2_13" / "zip_nested.pt", folder / "zip.pt"))


def torch_zip_views(folder: Path) -> Path:
    return Path(shutil.copyfile(FIXTURES / "torch_2_13" / "zip_views.pt", folder / "views.pt"))


def torch_legacy(folder: Path) -> Path:
    return Path(shutil.copyfile(FIXTURES / "torch_2_13" / "legacy_nested.pt", folder / "legacy.pt"))


def torch_legacy_views(folder: Path) -> Path:
    return Path(shutil.copyfile(FIXTURES / "torch_2_13" / "legacy_views.pt", folder / "legacy_views.pt"))


def torch_sharded(folder: Path) -> Path:
    out = folder / "torch_sharded"
    out.mkdir()
    files = {f"pytorch_model-{k}.bin": FIXTURES / "torch_2_13" / f"zip_{what}.pt" for k, what in enumerate(("nested", "views"))}
    for name, file in files.items():
        shutil.copyfile(file, out / name)
    where = {tensor: name for name, file in files.items() for tensor in open_checkpoint(file).entries}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return out


def adapter(folder: Path) -> Path:
    return shutil.copytree(FIXTURES / "adapters" / "patterns", folder / "adapter")


def _reader(module: str) -> Opener:
    def open_file(path: Path) -> StoredModel:
        model: StoredModel = import_module(f"npmerge.checkpoint.{module}").open_file(path)
        return model

    return open_file


SAMPLES: Mapping[str, Sample] = {
    "safetensors": Sample(open_model, safetensors),
    "safetensors, sharded": Sample(open_model, sharded),
    "npz": Sample(_reader("npz"), npz),
    "npz, compressed": Sample(_reader("npz"), compressed),
    "PyTorch zip, nested": Sample(_reader("torch_zip"), torch_zip),
    "PyTorch zip, views": Sample(_reader("torch_zip"), torch_zip_views),
    "PyTorch legacy, nested": Sample(_reader("torch_legacy"), torch_legacy),
    "PyTorch legacy, views": Sample(_reader("torch_legacy"), torch_legacy_views),
    "PyTorch, sharded": Sample(lambda x: _reader("torch_sharded")(x / "pytorch_model.bin.index.json"), torch_sharded),
    "Flax msgpack": Sample(_reader("msgpack"), msgpack),
    "Keras": Sample(_reader("keras"), keras),
    "GGUF": Sample(_reader("gguf"), gguf),
    "ONNX": Sample(_reader("onnx"), onnx),
    "Orbax": Sample(_reader("orbax"), orbax),
}
"""By the format."""

ADAPTER = Sample(lambda x: open_reference(f"{FIXTURES / 'adapters' / 'base'}+{x}"), adapter)
"""A LoRA adapter, read with its base."""
