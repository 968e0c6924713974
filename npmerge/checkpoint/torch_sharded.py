"""Models in several files of PyTorch with an index, `pytorch_model.bin.index.json` and `pytorch_model-00001-of-00002.bin`."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npmerge.checkpoint import torch_legacy, torch_zip
from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.indices import check_agreement, tensors_by_file
from npmerge.checkpoint.sharded import check_inside
from npmerge.checkpoint.spans import NamedModel
from npmerge.checkpoint.strided import StridedModel
from npmerge.checkpoint.zips import LOCAL, opened

SUFFIXES = (".bin", ".pt", ".pth")


class TorchShards(NamedModel):
    """A model in several files, each read on its own."""

    def __init__(self, path: Path, shards: Mapping[Path, StridedModel]):
        notes = [f"{file.name}: {note}" for file, shard in shards.items() for note in shard.notes]
        super().__init__(path, (x for shard in shards.values() for x in shard.entries.values()), notes)
        self._files = (path, *shards)
        self._where = {name: shard for shard in shards.values() for name in shard.entries}

    @property
    def read_from(self) -> tuple[Path, ...]:
        """See `StoredModel.read_from`."""
        return self._files

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        return self._where[name].read(name, start, count)


def open_torch(path: Path) -> StridedModel:
    """One file of PyTorch, zip or older, told by its first bytes. Raises CheckpointError as their readers do."""
    with opened(path) as file:
        first = file.read(len(LOCAL))
    return torch_zip.open_file(path) if first == LOCAL else torch_legacy.open_file(path)


def open_file(path: Path) -> TorchShards:
    """The model of an index, whose files lie beside it.

    Raises:
        CheckpointError: an index that is damaged, names files outside its folder or missing ones (all at once), or does
            not agree with them; what the readers of the files raise.
    """
    path = Path(path)
    names = tensors_by_file(path)
    _check_files(path, sorted(names))
    shards = {path.parent / file: open_torch(path.parent / file) for file in sorted(names)}
    for file, shard in shards.items():
        check_agreement(path, file, names[file.name], shard.entries)
    return TorchShards(path, shards)


def _check_files(index: Path, names: list[str]) -> None:
    for name in names:
        if Path(name).name != name or "\0" in name or not name.endswith(SUFFIXES) or len(name) > 200:
            raise CheckpointError(index, f"is a broken index: {short(name)} is no file of PyTorch in its folder")
    missing = [x for x in names if not (index.parent / x).is_file()]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(index, f"lacks {len(missing)} of {len(names)} files: {', '.join(missing[:3])}{more}")
    for name in names:
        check_inside(index.parent, index.parent / name)
