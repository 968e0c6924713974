"""Checkpoints of any format: what a file is stands in its first bytes, whatever it is called."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

from npmerge.checkpoint.errors import CheckpointError, from_hub
from npmerge.checkpoint.headers import MOST
from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.sharded import INDEX, OTHERS, check_inside, choose, open_chosen
from npmerge.checkpoint.stored import StoredModel

READERS = {
    "npz": "npz",
    "PyTorch": "torch_zip",
    "PyTorch (legacy)": "torch_legacy",
    "PyTorch (sharded)": "torch_sharded",
    "Flax msgpack": "msgpack",
    "Orbax": "orbax",
    "Keras": "keras",
    "GGUF": "gguf",
    "ONNX": "onnx",
}
"""The module of `npmerge.checkpoint` that reads each format; safetensors has `sharded`."""

SAFETENSORS = "safetensors"
TORCH_INDEX = ".bin.index.json"
PERHAPS = ("*.npz", "*.onnx", "*.weights.h5", "*.h5", "*.msgpack", "*.pt", "*.pth", "*.ckpt", "*.bin", "*.th")
"""Names that may be of weights, where there is nothing else."""

FOREIGN = (
    (b"\x93NUMPY", "one array of NumPy: put it into an .npz by numpy.savez, so that it has a name"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself by `git lfs pull`"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstandard: unpack it first"),
    (b"7z\xbc\xaf", "an archive of 7-Zip: unpack it first"),
    (b"Rar!", "an archive of RAR: unpack it first"),
    (b"%PDF", "a PDF"),
    (b"\x7fELF", "a program"),
    (b"<", "a page or a document in XML or HTML, as servers send instead of a file"),
)
"""How files begin that hold no checkpoint, and what to do."""

ONNX_FIELDS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)
"""How the second field of an ONNX model begins; the first is its version."""


def open_checkpoint(path: Path | str) -> StoredModel:
    """A checkpoint of any format that is read here: headers are checked whole, tensors are read when asked for.

    Args:
        path: of a file, or of a folder with one checkpoint in it.

    Raises:
        CheckpointError: no such path, a file of another kind (which one), a folder that holds none or several, and what the
            reader of the format raises.
    """
    path = Path(path)
    found = _chosen(path) if path.is_dir() else path
    kind = format_of(found)
    if kind == SAFETENSORS:
        model: StoredModel = open_chosen(path, found, index=_is_json(found))
    else:
        model = _reader(kind)(found)
        if path.is_dir() and found != path:
            model.path = path
        config = model.folder / "config.json"
        if config.is_file():
            model.config = MappingProxyType(read_object(config))
    model.format, model.notes = kind, (*model.notes, *_twins(model.entries))
    return model


def format_of(path: Path) -> str:
    """The format of a file, "safetensors" or a key of `READERS`, by its first bytes; or of an Orbax folder.

    Raises:
        CheckpointError: no such file, one that cannot be read or is no checkpoint (what it is instead, where that is known).
    """
    if path.is_dir() and is_orbax(path):
        return "Orbax"
    if not path.is_file():
        raise CheckpointError(
            path, "is neither a file nor a folder" if path.exists() else f"no such file or folder{from_hub(path)}"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    if not head:
        raise CheckpointError(path, "is empty")
    found = _by_magic(path, head, size)
    if found is None:
        what = next((f"is {text}" for magic, text in FOREIGN if head.startswith(magic)), "is no checkpoint")
        raise CheckpointError(path, f"{what}; read are {SAFETENSORS}, {', '.join(READERS)}")
    return found


def _by_magic(path: Path, head: bytes, size: int) -> str | None:
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MOST:
        return SAFETENSORS
    if head[:64].lstrip()[:1] == b"{":
        return _index(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip(path)
    for magic, kind in ((b"\x89HDF\r\n\x1a\n", "Keras"), (b"GGUF", "GGUF"), (b"\x80", "PyTorch (legacy)")):
        if head.startswith(magic):
            return kind
    if any(head.startswith(magic) for magic, _ in FOREIGN):
        return None
    if len(head) > 2 and head[0] == 8 and 0 < head[1] < 32 and head[2] in ONNX_FIELDS:
        return "ONNX"
    if 0x81 <= head[0] <= 0x9F or head[0] in (0xDC, 0xDD, 0xDE, 0xDF, 0xC7, 0xC8, 0xC9):
        return "Flax msgpack"
    by_name = {".safetensors": SAFETENSORS, ".onnx": "ONNX"}  # a damaged length, or fields in another order
    return by_name.get(path.suffix)


def _index(path: Path) -> str | None:
    """The format of the shards that an index names."""
    where = read_object(path).get("weight_map")
    if not isinstance(where, dict):
        return None
    torch = any(isinstance(x, str) and not x.endswith(".safetensors") for x in where.values())
    return SAFETENSORS if path.name.endswith(INDEX) or not torch else "PyTorch (sharded)"


def _zip(path: Path) -> str:
    from npmerge.checkpoint.zips import read_members

    names = list(read_members(path))
    if any(x == "data.pkl" or x.endswith("/data.pkl") for x in names):
        return "PyTorch"
    if any(x.endswith(".npy") for x in names):
        return "npz"
    if "model.weights.h5" in names:
        raise CheckpointError(path, "is a whole model of Keras: unpack its model.weights.h5, which is read here")
    first = f"its first member is {names[0][:80]!r}" if names else "it has no members"
    raise CheckpointError(path, f"is a zip archive, but neither PyTorch's nor NumPy's: {first}")


def _chosen(folder: Path) -> Path:
    """The file that stands for a folder, or the folder itself for Orbax."""
    if is_orbax(folder):
        return folder
    tensors = sorted(folder.glob("*.safetensors")) + sorted(folder.glob(f"*{INDEX}"))
    indices = sorted(folder.glob(f"*{TORCH_INDEX}"))
    others = indices or _matching(folder, OTHERS) or _matching(folder, PERHAPS)
    if tensors or not others:
        return choose(folder)
    if len(others) > 1:
        names = [x.name for x in others]
        raise CheckpointError(folder, f"holds {', '.join(names[:3])}{' and more' if len(names) > 3 else ''}: name one of them")
    check_inside(folder, others[0])
    return others[0]


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted({x for pattern in patterns for x in folder.glob(pattern) if x.is_file()})


def is_orbax(folder: Path) -> bool:
    """Whether the metadata of Orbax are there, or in a folder within and nothing else is."""
    if any((folder / name).is_file() for name in ("_METADATA", "_CHECKPOINT_METADATA")):
        return True
    around = any(True for pattern in ("*/_METADATA", "*/*/_METADATA") for _ in folder.glob(pattern))
    return around and not _matching(folder, ("*.safetensors", *OTHERS, *PERHAPS))


def _reader(kind: str) -> Callable[[Path], StoredModel]:
    return import_module(f"npmerge.checkpoint.{READERS[kind]}").open_file


def _is_json(path: Path) -> bool:
    """Whether a file is an index, not tensors behind the length of their header, whose first bytes may look like one."""
    with path.open("rb") as file:
        first = file.read(64)
    return not _has_header(first, path.stat().st_size) and first.lstrip()[:1] == b"{"


def _has_header(first: bytes, size: int) -> bool:
    """Whether a file begins as safetensors do: a length that fits into it, then an object."""
    return first[8:9] == b"{" and 8 + int.from_bytes(first[:8], "little") <= size


def _twins(names: Iterable[str]) -> list[str]:
    """A note where names differ only in upper and lower case, which some file systems and people take for one."""
    alike = defaultdict(list)
    for name in names:
        alike[name.casefold()].append(name)
    pairs = [" and ".join(found) for found in alike.values() if len(found) > 1]
    return [f"names that differ only by case: {', '.join(pairs[:5])}"] if pairs else []
