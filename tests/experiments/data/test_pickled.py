"""Pickles of CIFAR's Python version, as Python 2 and 3 write them, and pickles that want something else."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from experiments.data.pickled import read_dictionary
from tests.experiments.data.writers import pixels, python_2

PATH = Path("data_batch_1")


def read(content: bytes):
    return read_dictionary(PATH, io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("binary", [True, False])
def test_what_python_3_writes(protocol, binary):
    key = (lambda name: name.encode()) if binary else str
    found = read(pickle.dumps({key("data"): pixels(3, 5), key("labels"): [1, 2, 300], key("n"): b"ab"}, protocol))
    assert list(found) == ["data", "labels", "n"]
    assert np.array_equal(found["data"], pixels(3, 5))
    assert found["data"].dtype == np.uint8
    assert (found["labels"], found["n"]) == ([1, 2, 300], b"ab")


def test_what_python_2_writes():
    found = read(python_2({"data": pixels(3, 200), "labels": [6, 9, 255]}))
    assert np.array_equal(found["data"], pixels(3, 200))
    assert found["labels"] == [6, 9, 255]


def test_nothing_is_called(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for protocol in range(2, 6):
        with pytest.raises(ValueError, match=r"data_batch_1: has a pickle that calls '(posix|nt).mkdir', which is refused"):
            read(pickle.dumps({"data": Attack()}, protocol))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros(3), "of another dtype or order"),
        (np.asfortranarray(np.zeros((2, 3), np.uint8)), "of another dtype or order"),
    ],
    ids=["float64", "by column"],
)
def test_arrays_of_another_kind(value, said):
    for protocol in (2, 5):
        with pytest.raises(ValueError, match=rf"got an array that cannot be read \(.*{said}.*\), expected one of bytes"):
            read(pickle.dumps({"data": value}, protocol))


def test_damaged_pickles():
    whole = python_2({"data": pixels(3, 200), "labels": [6, 9, 255]})
    for size in range(0, len(whole), 37):
        with pytest.raises(ValueError, match=r"^data_batch_1: "):
            read(whole[:size])
    with pytest.raises(ValueError, match="got a pickle of list, expected one of a dictionary"):
        read(pickle.dumps([1]))
    short = whole.replace(struct.pack("<i", 600) + pixels(3, 200).tobytes(), struct.pack("<i", 599) + bytes(599))
    with pytest.raises(ValueError, match=r"array that cannot be read \(599 bytes for the shape \(3, 200\)\)"):
        read(short)
