"""Examples of a recipe: read, checked against the network, and split into what is learned from and what is held out."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.checks import channels_first, unknown
from npmerge.batches import in_order
from npmerge.learning.images import class_folders, read_images
from npmerge.learning.text import read_text
from npmerge.models import Config
from npmerge.recipe.examples import Data

SAVEZ = "numpy.savez(FILE, inputs=x, labels=y) writes one"


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in memory.

    Attributes:
        name: what messages call them.
        inputs: (examples, ...), of the dtype that the network takes.
        targets: (examples, ...), int32, or float32 for objectives that read such; None where there are none.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray | None

    @property
    def filled(self) -> np.ndarray:
        """The targets; zeros that nobody reads where there are none."""
        return np.zeros(len(self.inputs), np.int32) if self.targets is None else self.targets

    def take(self, index: np.ndarray) -> "Examples":
        """Those at the given places."""
        return Examples(self.name, self.inputs[index], None if self.targets is None else self.targets[index])

    def batches(self, size: int) -> list[tuple]:
        """All of them, in order."""
        return in_order(self.inputs, self.filled, size)


class Parts(NamedTuple):
    """What is learned from, and what is held out, if anything is."""

    train: Examples
    held_out: Examples | None


def read_examples(data: Data, config: Config | None, tokenizer: Path | Mapping[str, Any]) -> Examples:
    """The examples that a recipe names.

    Args:
        data: of the recipe.
        config: of the network, where it is one of `npmerge.models`: inputs must fit it.
        tokenizer: folder in which that of the model lies, or the content of its file.

    Raises:
        ValueError: data that cannot be found or read or do not fit the network; packages that are missing.
    """
    if data.dataset is not None:
        from npmerge.learning.datasets import read_dataset

        inputs, targets = read_dataset(data, config, tokenizer)
        name = f"{data.dataset}[{data.split}]" if "split" in data.model_fields_set else data.dataset
        return _checked(Examples(name, inputs, targets), config)
    path = Path(str(data.path))
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder of data")
    kind = data.kind or _kind(path)
    if kind == "images":
        inputs, targets = read_images(path, data, config)
    elif kind == "text":
        _check_reads_tokens(path, config)
        inputs, targets = read_text(path, data, config, tokenizer)
    else:
        inputs, targets = _read_arrays(path, data)
    return _checked(Examples(str(path), inputs, targets), config)


def split(data: Examples, fraction: float, seed: int) -> Parts:
    """Hold out a fraction of the different examples, drawn by a seed; copies of one example stay together.

    Raises:
        ValueError: a part without examples.
    """
    if not fraction:
        return Parts(data, None)
    keys, group = np.unique(_keys(data), return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(keys))[: round(fraction * len(keys))]
    held = np.isin(group, chosen)
    if held.all() or not held.any():
        raise ValueError(f"held_out {fraction:g} of {len(keys)} different examples leaves one part empty")
    return Parts(data.take(np.flatnonzero(~held)), data.take(np.flatnonzero(held)))


def check_apart(train: Examples, held_out: Examples) -> None:
    """Raise ValueError if some of the held-out inputs are among those that are learned from."""
    common = np.isin(_keys(held_out), _keys(train))
    if common.any():
        first = int(np.flatnonzero(common)[0])
        raise ValueError(
            f"{held_out.name} is to be held out, but {int(common.sum())} of its {len(common)} inputs are in {train.name} too, "
            f"such as number {first}"
        )


def common(examples: Examples, others: Examples) -> int:
    """How many of the inputs are among others."""
    return int(np.isin(_keys(examples), _keys(others)).sum())


def whole(batches: list[tuple]) -> list[tuple]:
    """Without a smaller batch at the end, which would count as much as the others in statistics of BatchNorm."""
    return batches[:-1] if len(batches) > 1 and len(batches[-1][0]) < len(batches[0][0]) else batches


def without(name: str, array: str) -> str:
    """That data have no such array, and which they have where they are a file of arrays."""
    try:
        with np.load(name, allow_pickle=False) as file:
            held = ", ".join(file.files)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile):  # a folder, a data set
        return f"{name} has no {array!r}"
    return f"{name} has no {array!r}: it holds {held}"


def _kind(path: Path) -> str:
    if path.is_dir():
        return "images" if class_folders(path) else "text"
    if path.suffix == ".npz" or path.suffix == "":
        return "npz"
    if path.suffix in (".npy", ".csv", ".json", ".parquet", ".h5"):
        as_text = "; kind: text reads it so" if path.suffix in (".csv", ".json") else ""
        raise ValueError(f"{path}: expected an .npz file, a folder of images or text, got {path.suffix}; {SAVEZ}{as_text}")
    return "text"


def _check_reads_tokens(path: Path, config: Config | None) -> None:
    """Raise ValueError for text, as which all files are read that are nothing else, where a network takes no tokens."""
    if config is not None and np.dtype(config.input_dtype).kind != "i":
        shape = ", ".join(map(str, config.input_shape))
        raise ValueError(
            f"{path} would be read as text, and the network takes inputs of shape (examples, {shape}): give an .npz file with "
            "inputs and labels, or a folder with a folder of images for each class"
        )


def _read_arrays(path: Path, data: Data) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files if name in (data.inputs, data.labels)}
            names = list(file.files)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"{path} is not an .npz file of arrays: {SAVEZ}") from None
        raise ValueError(f"{path} is not an .npz file of arrays, as numpy.savez writes it: {error}") from None
    if data.inputs not in arrays and "inputs" in data.model_fields_set:
        raise ValueError(f"{path}: {unknown('array', data.inputs, names)}")
    if data.inputs not in arrays:
        raise ValueError(f"{path} has no array {data.inputs!r}: got {', '.join(names) or 'none'}")
    return arrays[data.inputs], arrays.get(data.labels)


def _checked(data: Examples, config: Config | None) -> Examples:
    inputs, targets, name = data.inputs, data.targets, data.name
    if not len(inputs):
        raise ValueError(f"{name} holds no examples")
    if inputs.dtype.kind not in "biufc":
        raise ValueError(f"{name}: inputs must be numbers, got {inputs.dtype}")
    with np.errstate(over="ignore"):  # what is too large for the dtype is told as not finite
        if config is not None:
            inputs = _fitting(name, inputs, config)
        elif inputs.dtype == np.float64:
            inputs = inputs.astype(np.float32)
    _check_finite(name, "inputs", inputs)
    if targets is None:
        return Examples(name, inputs, None)
    if len(targets) != len(inputs):
        raise ValueError(f"{name} has {len(inputs)} inputs and {len(targets)} labels")
    if targets.dtype.kind not in "iuf":
        raise ValueError(f"{name}: labels must be numbers, got {targets.dtype}")
    _check_finite(name, "labels", targets)
    return Examples(name, inputs, targets.astype(np.float32 if targets.dtype.kind == "f" else np.int32))


def _fitting(name: str, inputs: np.ndarray, config: Config) -> np.ndarray:
    wanted, tokens = config.input_shape, np.dtype(config.input_dtype).kind == "i"
    fits = inputs.shape[1:] == wanted or (tokens and inputs.ndim == 2 and 0 < inputs.shape[1] <= wanted[0])
    if not fits:
        shape = ", ".join(f"{'up to ' if tokens else ''}{size}" for size in wanted)
        hint = channels_first([inputs.shape])
        raise ValueError(f"{name}: inputs must have the shape (examples, {shape}), got {inputs.shape}{hint}")
    if inputs.dtype.kind not in ("iu" if tokens else "f"):
        raise ValueError(f"{name}: {wrong_kind(inputs, tokens=tokens)}")
    if tokens and not 0 <= inputs.min() <= inputs.max() < (size := config.vocabulary):  # type: ignore[attr-defined]
        raise ValueError(f"{name}: tokens must be from 0 to {size - 1}, got {inputs.min()} to {inputs.max()}")
    return inputs.astype(config.input_dtype)


def wrong_kind(inputs: np.ndarray, *, tokens: bool) -> str:
    """What is wrong with inputs that a network does not take, and for pixels what is done about it."""
    pixels = not tokens and inputs.dtype == np.uint8
    help_ = ": divide pixels by 255, and subtract and divide by what the network was trained with" if pixels else ""
    return f"inputs must be {'integers' if tokens else 'floating-point'}, got {inputs.dtype}{help_}"


def _check_finite(name: str, what: str, values: np.ndarray) -> None:
    bad = ~np.isfinite(values).reshape(len(values), -1)
    if bad.any():
        count, first = int(bad.sum()), int(np.flatnonzero(bad.any(1))[0])
        raise ValueError(f"{name}: {what} hold values that are not finite: {count:,}, the first in example {first}")


def _keys(data: Examples) -> np.ndarray:
    """A number for each input: equal ones have equal numbers, others with a probability of 1 - 2^-64."""
    rows = np.ascontiguousarray(data.inputs)
    found = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(found), np.uint64)
