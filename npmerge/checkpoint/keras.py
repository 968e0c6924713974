"""Keras' HDF5 files of weights, through `h5py`: no link of theirs is followed and no filter but the common ones is run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.slabs import slabs
from npmerge.checkpoint.spans import NamedModel, checked_entry, guarded, optional
from npmerge.checkpoint.stored import Entry

CONTAINER = "model_weights"
"""Where a whole model that Keras 2 saved keeps its weights."""

FILTERS = {1: 1100, 2: 1, 3: 1, 32000: 300}
"""Deflate, shuffle, Fletcher's sum and LZF: how many times its stored bytes a dataset may take."""

DEEPEST, MOST_DATASETS = 32, 1_000_000


class KerasModel(NamedModel):
    """The datasets of an HDF5 file."""

    def __init__(self, path: Path, root: str, entries: Sequence[Entry], notes: list[str]):
        super().__init__(path, entries, notes)
        self._root = root

    def _part(self, name: str, start: int, count: int) -> np.ndarray:
        entry = self.entries[name]

        def read() -> np.ndarray:
            with _opened(self.file) as file:
                dataset = file[self._root][name]
                if dataset.shape != entry.shape:
                    raise CheckpointError(self.path, f"has become {dataset.shape}, was {entry.shape}", name)
                return slabs(lambda index: dataset[index], entry, start, count)

        return guarded(self.path, "an HDF5 file", read)


def open_file(path: Path) -> KerasModel:
    """Keras' weights: "dense/dense/kernel:0" of a legacy file `.h5`, "layers/dense/vars/0" of one `.weights.h5`.

    Names are the paths of the datasets, in the group `model_weights` where there is one, which a note says.

    Raises:
        CheckpointError: no such file, a damaged one, soft or external links, groups that hold themselves, data kept in other
            files, filters that are not read, lengths that the stored bytes cannot fill, a missing package.
    """
    optional("h5py", "keras", path)
    if not path.is_file():
        raise CheckpointError(path, "no such file")

    def read() -> tuple[str, list[Entry]]:
        with _opened(path) as file:
            root = CONTAINER if file.get(CONTAINER, getlink=True) is not None else "/"
            _check_link(path, file, root)
            return root, list(_datasets(path, file[root], "", set(), 0))

    root, entries = guarded(path, "an HDF5 file", read)
    return KerasModel(path, root, entries, [f"found in {CONTAINER!r}"] if root == CONTAINER else [])


def _opened(path: Path) -> Any:
    import h5py

    return h5py.File(path, "r", locking=False)


def _datasets(path: Path, group: Any, prefix: str, above: set[int], depth: int) -> Iterator[Entry]:
    import h5py

    place = h5py.h5o.get_info(group.id).addr
    if place in above or depth > DEEPEST:
        raise CheckpointError(path, f"holds itself or more than {DEEPEST} groups in one another", prefix or "/")
    if len(group) > MOST_DATASETS:
        raise CheckpointError(path, f"holds more than {MOST_DATASETS:,} entries", prefix or "/")
    for key in group:
        _check_link(path, group, key, prefix)
        node = group[key]
        if isinstance(node, h5py.Group):
            yield from _datasets(path, node, f"{prefix}{key}/", above | {place}, depth + 1)
        elif isinstance(node, h5py.Dataset):
            yield _entry(path, prefix + key, node)
        else:
            raise CheckpointError(path, "is neither a group nor a dataset", prefix + key)


def _check_link(path: Path, group: Any, key: str, prefix: str = "") -> None:
    import h5py

    if key != "/" and not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise CheckpointError(path, "is a soft or an external link, which is not followed", prefix + key)


def _entry(path: Path, name: str, dataset: Any) -> Entry:
    """What a dataset is, if its bytes are there."""
    if dataset.is_virtual or dataset.external:
        raise CheckpointError(path, "keeps its data in other files, which are not read", name)
    if dataset.shape is None:
        raise CheckpointError(path, "has no shape", name)
    if not dataset.dtype.isnative and dataset.dtype.kind in "iufc":
        raise CheckpointError(path, "is big-endian, which is not read", name)
    entry = checked_entry(path, name, dataset.dtype.name, (int(x) for x in dataset.shape))
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(k)[0] for k in range(properties.get_nfilters())]
    if unread := [x for x in filters if x not in FILTERS]:
        raise CheckpointError(path, f"is compressed by the filter {unread[0]} of HDF5, which is not read", name)
    growth = int(np.prod([FILTERS[x] for x in filters] or [1]))
    stored = dataset.id.get_storage_size()
    piece = int(np.prod(dataset.chunks, dtype=object)) * DTYPES[entry.dtype].itemsize if dataset.chunks else 0
    if max(entry.nbytes, piece if entry.nbytes else 0) > growth * stored + 4096:
        raise CheckpointError(path, f"needs {max(entry.nbytes, piece)} bytes, {stored} are stored", name)
    return entry
