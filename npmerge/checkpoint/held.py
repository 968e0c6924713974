"""Models whose tensors lie in memory and are read as those on disk are."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.dtypes import CODES
from npmerge.checkpoint.stored import Entry, StoredModel


class HeldModel(StoredModel):
    """A model of arrays.

    Args:
        name: what messages call it.
        arrays: by the names of its tensors.
        config: the content of `config.json`.
    """

    def __init__(self, name: str, arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]):
        self.path, self.called, self.config = Path(name), name, config
        self._arrays = {key: np.asarray(x, order="C") for key, x in arrays.items()}
        self.entries = {key: Entry(key, CODES[x.dtype.name], x.shape) for key, x in self._arrays.items()}

    @property
    def digest(self) -> str:
        """Of all values, by which two such models are told apart."""
        found = hashlib.sha256()
        for name, x in self._arrays.items():
            found.update(name.encode() + x.reshape(-1).view(np.uint8).data)
        return found.hexdigest()

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`."""
        flat = self._arrays[name].reshape(-1)
        return flat[start : None if count is None else start + count].copy()
