"""This project's own checkpoints: one safetensors file, with the containers and a record in its header."""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from alignment.checks import check_kinds, kind_of
from alignment.graph import PyTree
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import SAFETENSORS, format_of
from npmerge.checkpoint.trees import put_together, take_apart

FORMAT = 1
OTHERS = "load_named reads networks in PyTorch's names, npmerge.checkpoint.formats.open_checkpoint the tensors of any format"
"""What reads files that `save` has not written."""

Record = Mapping[str, Any]


def save(path: Path | str, variables: PyTree, record: Record | None = None, *, overwrite: bool = False) -> None:
    """Write a tree of arrays and a record of where it comes from.

    Tensors are named by their paths, `params/layers/0/kernel`; other readers of safetensors see those. The file appears whole
    or not at all.

    Args:
        path: of the file; its folder must exist.
        variables: nested dicts, lists and tuples of arrays.
        record: anything that JSON can hold, and numbers of NumPy and JAX, as metrics are.
        overwrite: whether an existing file may be replaced.

    Raises:
        ValueError: an existing file, a folder that is missing, a leaf that is no array (its path), a record that is no JSON.

    Example:
        >>> weights = {"w": np.arange(3.0), "b": (np.ones(2), np.zeros(2))}
        >>> nm.checkpoint.save("weights.safetensors", weights, {"data": "digits", "seed": 0})
        >>> from safetensors.numpy import load_file
        >>> sorted(load_file("weights.safetensors"))
        ['b/0', 'b/1', 'w']
    """
    check_kinds(
        "save takes (path, variables, record)", (path, str | os.PathLike), (variables, object), (record, Mapping | None)
    )
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: there is no folder {path.parent}")
    containers, arrays = take_apart(variables)
    try:
        header = json.dumps({"format": FORMAT, "containers": containers, "record": dict(record or {})}, default=_number)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot save {path}: the record is no JSON: {error}") from None
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists: choose another name, or pass overwrite=True")
    _write(path, arrays, {"format": "pt", "npmerge": header})  # transformers takes no file of metadata without the format


def _number(value: Any) -> Any:
    """What JSON holds of a number of NumPy or JAX; it asks for what it does not know itself."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"got {kind_of(value)}, expected text, numbers, lists and mappings")


def load(path: Path | str) -> PyTree:
    """The tree that `save` wrote, as NumPy arrays of the stored dtypes.

    Raises:
        ValueError: no such file, no safetensors file, a truncated one, or one without the record of `save`.

    Example:
        >>> nm.checkpoint.save("weights.safetensors", {"layers": [np.float32([1, 2]), np.float32([3])]})
        >>> nm.checkpoint.load("weights.safetensors")
        {'layers': [array([1., 2.], dtype=float32), array([3.], dtype=float32)]}
    """
    return _read(Path(path))[0]


def load_record(path: Path | str) -> dict[str, Any]:
    """The record that `save` was given. Raises ValueError as `load` does; no tensor is read.

    Example:
        >>> nm.checkpoint.save("merged.safetensors", {"w": np.ones(2)}, {"made": "by Average", "of": ["a", "b"]})
        >>> nm.checkpoint.load_record("merged.safetensors")
        {'made': 'by Average', 'of': ['a', 'b']}
    """
    return _read(Path(path), arrays=False)[1]["record"]


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    beside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        beside.touch()
        mode = beside.stat().st_mode  # safetensors would leave a file that nobody else may read
        save_file(dict(arrays), beside, metadata=metadata)
        beside.chmod(mode)
        os.replace(beside, path)  # noqa: PTH105
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _read(path: Path, *, arrays: bool = True) -> tuple[PyTree, dict[str, Any]]:
    if not path.is_file():
        folder = "is a folder, expected a file of npmerge.checkpoint.save (recipes with align: take folders)"
        raise ValueError(f"{path}: {folder if path.is_dir() else 'no such file'}")
    try:
        with safe_open(path, "np") as file:
            header = _header(path, file.metadata())
            found = {name: file.get_tensor(name) for name in file.keys()} if arrays else {}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} {_fault(path, str(error))}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None
    return _tree(path, header, found) if arrays else None, header


def _fault(path: Path, reason: str) -> str:
    """Why a file is not read: the format that it is in, where that is another one."""
    try:
        found = format_of(path)
    except CheckpointError:
        found = SAFETENSORS
    if found != SAFETENSORS:
        return f"is in the format {found}, expected a file of npmerge.checkpoint.save: {OTHERS}"
    cut = "not fully covered" in reason  # of a whole header, by what follows it
    what = "is truncated or damaged" if cut else "is not a safetensors file, or only the beginning of one"
    return f"{what}: {reason}"


def _header(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if "npmerge" not in (metadata or {}):
        raise ValueError(f"{path} has no record: it was not written by npmerge.checkpoint.save; {OTHERS}")
    try:
        header = json.loads((metadata or {})["npmerge"])
        version, _, _ = header["format"], header["containers"], header["record"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} has a damaged record") from None
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version of npmerge reads {FORMAT}")
    return header


def _tree(path: Path, header: Record, found: Mapping[str, np.ndarray]) -> PyTree:
    try:
        return put_together(header["containers"], found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged record: its tensors do not fill its containers ({error!r})") from None
