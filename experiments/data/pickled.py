"""Dictionaries that were pickled, with arrays of NumPy in them: nothing is imported or called to read one."""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from experiments.data.faults import fault
from npmerge.checkpoint.pickles import Pairs, Stated, read_pickle

MOST_BYTES = 256 * 2**20
"""Of one pickle; the training images of CIFAR-100 take 155 MB."""

ARRAYS = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
BUFFERS = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
BYTES = ("u1", "uint8", b"u1")


def read_dictionary(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What is written in a pickle, its arrays of bytes as arrays; of all else that it may name, nothing is read.

    Args:
        path: for messages.
        file: at the beginning of the pickle.

    Raises:
        ValueError: a pickle that is damaged, truncated or too large, is no dictionary, or names anything but arrays.
    """
    content = read_pickle(path, file, _call, most=MOST_BYTES)
    if not isinstance(content, Pairs):
        raise fault(path, f"a pickle of {type(content).__name__}", "one of a dictionary")
    return {_text(key): _value(path, value) for key, value in content.items}


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """The data that stand for what is called. Raises KeyError for what is not on the list."""
    if name == "_codecs.encode":  # how Python 3 writes bytes for Python 2
        return _bytes(arguments[0])
    if name in ARRAYS or name in BUFFERS or name == "numpy.dtype":
        return Stated(name, arguments)
    raise KeyError(name)


def _value(path: Path, value: Any) -> Any:
    if not isinstance(value, Stated):
        return value
    try:
        return _array(value)
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        raise fault(path, f"an array that cannot be read ({error})", "one of bytes, row by row") from None


def _array(value: Stated) -> np.ndarray:
    if value.name in BUFFERS:
        content, dtype, shape, order = value.arguments
        by_column = order != "C"
    else:
        _, shape, dtype, by_column, content = value.state
    if dtype.name != "numpy.dtype" or dtype.arguments[0] not in BYTES or by_column:
        raise ValueError("of another dtype or order")
    content = _bytes(content)
    if len(content) != math.prod(shape):
        raise ValueError(f"{len(content)} bytes for the shape {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _bytes(value: Any) -> bytes:
    """Bytes of Python 2 are read as text, a letter for each."""
    return value.encode("latin-1") if isinstance(value, str) else bytes(value)


def _text(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
