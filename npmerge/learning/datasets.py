"""Datasets of Hugging Face, by their package `datasets` where that is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alignment.checks import unknown
from npmerge.learning.images import prepared
from npmerge.learning.text import windows
from npmerge.models import Config
from npmerge.recipe.examples import Data

SAVED = ("dataset_dict.json", "state.json")
"""Files by which folders that `save_to_disk` has written are known."""


def read_dataset(
    data: Data, config: Config | None, tokenizer: Path | Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The columns of inputs and labels as arrays: images as those of files, text in windows of tokens, others as they are.

    Args:
        data: of the recipe.
        config: of the network, where it is known.
        tokenizer: of text: the folder in which it lies, or its content.

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
    table, name = _table(datasets, data), str(data.dataset)
    if data.inputs not in table.column_names:
        raise ValueError(unknown(f"column of {name}", data.inputs, table.column_names))
    column = list(table[data.inputs])
    if column and isinstance(column[0], str):
        return windows(name, ["\n".join(column).encode()], data, config, tokenizer)
    labels = np.asarray(table[data.labels]) if data.labels in table.column_names else None
    if column and hasattr(column[0], "convert"):  # of Pillow
        return prepared(name, column, data, config), labels
    return _stacked(data, column), labels


def _table(datasets: Any, data: Data) -> Any:
    folder = Path(str(data.dataset))
    if str(data.dataset).startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of a dataset")
    try:
        if not any((folder / name).is_file() for name in SAVED):
            return datasets.load_dataset(data.dataset, split=data.split)
        found = datasets.load_from_disk(data.dataset)
    except Exception as error:  # whatever it is that the package raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"dataset {data.dataset!r}, split {data.split!r}, cannot be read: {reason}") from None
    if not isinstance(found, dict):
        if "split" in data.model_fields_set:
            raise ValueError(f"{folder} is one table without splits: leave out split, got {data.split!r}")
        return found
    if data.split not in found:
        raise ValueError(unknown(f"split of {folder}", data.split, found))
    return found[data.split]


def _stacked(data: Data, column: list) -> np.ndarray:
    rows = [np.asarray(x) for x in column]
    if len({row.shape for row in rows}) > 1:
        shapes = sorted({row.shape for row in rows})[:3]
        raise ValueError(f"dataset {data.dataset!r} has inputs of several shapes, such as {shapes}: bring them to one first")
    found = np.stack(rows) if rows else np.zeros(0, np.float32)
    if found.dtype != np.uint8 or found.ndim < 3:
        return found
    images = (found if found.ndim == 4 else found[..., None]).astype(np.float32) / np.float32(255)
    mean, deviation = (np.array(x, np.float32) for x in (data.mean or [0.0], data.deviation or [1.0]))
    return (images - mean) / deviation
