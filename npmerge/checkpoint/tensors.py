"""Tensors on disk where arrays are expected: what asks for their shape and dtype reads nothing."""

from typing import Any

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.stored import StoredModel


class StoredTensor:
    """A tensor on disk that becomes an array when NumPy asks for one.

    Attributes:
        shape: of the tensor.
        dtype: of the tensor.
    """

    def __init__(self, model: StoredModel, name: str):
        self._model, self._name = model, name
        self.shape, self.dtype = model.entries[name].shape, DTYPES[model.entries[name].dtype]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._model.read(self._name).reshape(self.shape)


def tensors_of(model: StoredModel) -> dict[str, StoredTensor]:
    """The tensors of a model by name."""
    return {name: StoredTensor(model, name) for name in model.entries}
