"""Datasets of Hugging Face, by their package `datasets` where that is installed."""

from pathlib import Path
from typing import Any

import numpy as np

from alignment.checks import unknown
from npmerge.recipe.examples import Data


def read_dataset(data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns of inputs and labels as arrays; images become float32 from 0 to 1.

    Raises:
        ValueError: no package, no such dataset, split or column, inputs of several shapes.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"dataset {data.dataset!r} is read by the package `datasets`, which is not installed: pip install datasets, or "
            "give the examples as an .npz file"
        ) from None
    table = _table(datasets, data)
    if data.inputs not in table.column_names:
        raise ValueError(unknown(f"column of {data.dataset}", data.inputs, table.column_names))
    labels = np.asarray(table[data.labels]) if data.labels in table.column_names else None
    return _stacked(data, table[data.inputs]), labels


def _table(datasets: Any, data: Data) -> Any:
    try:
        if Path(str(data.dataset)).is_dir():
            found = datasets.load_from_disk(data.dataset)
            return found[data.split] if isinstance(found, dict) else found
        return datasets.load_dataset(data.dataset, split=data.split)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"dataset {data.dataset!r}, split {data.split!r}, cannot be read: {error}") from None


def _stacked(data: Data, column: Any) -> np.ndarray:
    rows = [np.asarray(x) for x in column]
    if len({row.shape for row in rows}) > 1:
        shapes = sorted({row.shape for row in rows})[:3]
        raise ValueError(f"dataset {data.dataset!r} has inputs of several shapes, such as {shapes}: bring them to one first")
    found = np.stack(rows) if rows else np.zeros(0, np.float32)
    if found.dtype != np.uint8:
        return found
    images = (found if found.ndim == 4 else found[..., None]).astype(np.float32) / np.float32(255)
    mean, deviation = (np.array(x, np.float32) for x in (data.mean or [0.0], data.deviation or [1.0]))
    return (images - mean) / deviation
