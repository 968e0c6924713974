"""Models as folders of safetensors files, or one such file: headers are checked whole, tensors are read when asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from npmerge.checkpoint.errors import CheckpointError, from_hub, short
from npmerge.checkpoint.headers import Header, read_header
from npmerge.checkpoint.indices import check_agreement, read_object, tensors_by_file
from npmerge.checkpoint.spans import Span, SpanModel

INDEX = ".safetensors.index.json"
OTHERS = ("pytorch_model*.bin", "tf_model*.h5", "flax_model*.msgpack", "*.gguf")
"""Weights of a folder in other formats: where they are, files of other names are none."""

PERHAPS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
"""Names that may be of weights: told where there is nothing else."""


class ShardedModel(SpanModel):
    """A model in one or several safetensors files.

    Attributes:
        files: that hold the tensors, in the order of their names, with their headers.
    """

    def __init__(self, path: Path, files: Mapping[Path, Header], config: Mapping[str, Any], name: str = ""):
        placed = [(file, x) for file, header in files.items() for x in header.tensors.values()]
        super().__init__(path, ((x.entry, (Span(file, x.offset, x.entry.nbytes),)) for file, x in placed))
        self.called, self.config, self.files = name, config, MappingProxyType(dict(files))

    @property
    def read_from(self) -> tuple[Path, ...]:
        """See `StoredModel.read_from`."""
        return tuple(self.files)

    @property
    def saved(self) -> dict[str, Any] | None:
        """The containers and the record of a file that `npmerge.checkpoint.save` wrote; None for the files of others."""
        texts = [header.metadata.get("npmerge", "") for header in self.files.values()]
        try:
            found = json.loads(texts[0]) if len(texts) == 1 else None
        except ValueError:
            return None
        return found if isinstance(found, dict) and isinstance(found.get("record"), dict) else None


def open_model(path: Path | str, *, name: str = "") -> ShardedModel:
    """A model whose headers are read and checked: a folder, one safetensors file, or the index of several.

    Args:
        path: of the folder or file.
        name: what people call it; the path for an empty one.

    Raises:
        CheckpointError: no such path; a folder with no weights, weights in two formats or one that is not read here; an index
            that is damaged, names files outside the folder or missing ones, or does not agree with them; what `read_header`
            raises.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(path, f"no such file or folder{from_hub(path)}")
    chosen = choose(path) if path.is_dir() else path
    if not chosen.name.endswith((INDEX, ".safetensors")):
        raise CheckpointError(path, f"expected a folder, a file .safetensors or an index {INDEX}")
    return open_chosen(path, chosen, index=chosen.name.endswith(INDEX), name=name)


def open_chosen(path: Path, chosen: Path, *, index: bool, name: str = "") -> ShardedModel:
    """The model of one file or index, whatever that is called, which `path` stands for; see `open_model`."""
    files = _indexed(chosen) if index else {chosen: read_header(chosen)}
    folder = chosen.parent
    if not any(header.tensors for header in files.values()):
        raise CheckpointError(path, "has no tensors")
    config = read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    return ShardedModel(path, files, config, name)


def check_inside(folder: Path, path: Path) -> None:
    """Raises CheckpointError for what is found in a folder and is no file, or a link that leads out of it.

    In the cache of Hugging Face, files are links from `snapshots/REVISION` to `blobs`: those are followed.
    """
    real, here = path.resolve(), folder.resolve()
    cached = here.parent.name == "snapshots" and real.parent == here.parent.parent / "blobs"
    if not real.is_relative_to(here) and not cached:
        raise CheckpointError(path, f"is a link that leads out of its folder, to {real}: name the file itself")
    if not real.is_file():
        raise CheckpointError(path, "is no file")


def choose(folder: Path) -> Path:
    """The file or the index that stands for a folder. Raises CheckpointError if none or several could."""
    indices, files = sorted(folder.glob(f"*{INDEX}")), sorted(folder.glob("*.safetensors"))
    others = sorted(x for pattern in OTHERS for x in folder.glob(pattern))
    single = [x for x in files if x.name.removesuffix(".safetensors") + INDEX in {i.name for i in indices}]
    found = indices + single if indices else files
    if not found:
        others = others or sorted(x for pattern in PERHAPS for x in folder.glob(pattern))
        holds = f"only {_listed(others)}, which is not read here: convert it to safetensors" if others else "no weights"
        raise CheckpointError(folder, f"holds {holds}")
    if len(found) > 1 or others:
        broken = not indices and any("-of-" in x.name for x in files)
        why = (
            f"but no index *{INDEX}" if broken else "and it is not clear which is meant: name one of them instead of the folder"
        )
        raise CheckpointError(folder, f"holds {_listed([*found, *others])}, {why}")
    if not indices and "-of-" in found[0].name:
        raise CheckpointError(folder, f"holds {found[0].name}, one of several, but no index *{INDEX}")
    check_inside(folder, found[0])
    return found[0]


def _listed(paths: list[Path]) -> str:
    names = [x.name for x in paths]
    return " and ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more files"


def _indexed(index: Path) -> dict[Path, Header]:
    """The files that an index names, which must agree with it."""
    names = tensors_by_file(index)
    for file in names:
        if Path(file).name != file or not file.endswith(".safetensors") or len(file) > 200:
            raise CheckpointError(index, f"is a broken index: {short(file)} is no safetensors file of its folder")
        if not (index.parent / file).is_file():
            raise CheckpointError(index, f"names {file}, which is missing")
        check_inside(index.parent, index.parent / file)
    files = {index.parent / file: read_header(index.parent / file) for file in sorted(names)}
    for path, header in files.items():
        check_agreement(index, path, names[path.name], header.tensors)
    return files
