"""NumPy's archives: what NumPy writes is read, NumPy reads what is written, and nothing in a stranger's is believed."""

import io
import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.npz import open_file
from tests.npmerge.checkpoint import samples
from tests.npmerge.checkpoint.mutations import check_survives

PLAIN = {
    **{x.name: np.arange(24).astype(x).reshape(2, 3, 4) for x in DTYPES.values() if x.kind in "biufc" and x.isbuiltin},
    "scalar": np.float32(2),
    "empty": np.zeros((0, 3), np.int8),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    "other order": np.arange(3, dtype=">f8"),
    "..": np.ones(2, bool),
    "/a": np.ones(3, np.int16),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read_whole_and_in_parts(tmp_path: Path, save: object) -> None:
    save(tmp_path / "x.npz", **PLAIN)
    model = open_file(tmp_path / "x.npz")
    assert set(model.entries) == set(PLAIN) and model.notes == ()
    for name, expected in PLAIN.items():
        got, flat = model.read(name), np.asarray(expected).ravel()
        assert got.dtype == flat.dtype.newbyteorder("=") and got.flags.writeable and model.entries[name].shape == expected.shape
        np.testing.assert_array_equal(got, flat)
        for start in (flat.size // 2, flat.size // 3, 0, flat.size // 2):
            np.testing.assert_array_equal(model.read(name, start, flat.size // 3), flat[start : start + flat.size // 3])


def test_numpy_reads_what_is_written_and_says_the_dtypes_that_it_lacks(tmp_path: Path) -> None:
    with np.load(samples.npz(tmp_path), allow_pickle=False) as found:
        lacking = json.loads(found["npmerge.json"])["dtypes"]
        assert set(lacking) == {"of/BF16", "of/F8_E4M3", "of/F8_E5M2", "params/empty"}
        for name, expected in samples.TENSORS.items():
            got = found[name].view(getattr(ml_dtypes, lacking[name])) if name in lacking else found[name]
            assert (got.dtype, got.shape, got.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
    assert samples.npz(tmp_path).read_bytes() == samples.npz(tmp_path).read_bytes()


def test_dtypes_that_numpy_lacks_without_a_word_of_what_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", b=np.arange(4).astype(ml_dtypes.bfloat16), f=np.arange(4).astype(ml_dtypes.float8_e5m2))
    model = open_file(tmp_path / "x.npz")
    assert model.read("b").astype(np.float32).tolist() == [0, 1, 2, 3] and "taken as bfloat16" in model.notes[0]
    np.savez(tmp_path / "x.npz", f=np.arange(4).astype(ml_dtypes.float8_e4m3fn))
    with pytest.raises(CheckpointError, match="'f' is of a byte that NumPy does not name"):
        open_file(tmp_path / "x.npz")


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def described(descr: object = "<f4", fortran: object = False, shape: object = (1,)) -> str:
    return str({"descr": descr, "fortran_order": fortran, "shape": shape})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no array of NumPy"),
        (npy(described())[:20], "damaged header"),
        (npy("__import__('os').abort()"), "damaged header"),
        (npy("(" * 5000), "damaged header"),
        (npy("{}"), "damaged header"),
        (npy(described(shape=[1])), "damaged header"),
        (npy(described(fortran=1)), "damaged header"),
        (npy(described(shape=(-1,))), "has the shape"),
        (npy(described(shape=(2**62,))), "has the shape"),
        (npy(described(shape=(0, 2**40, 2**40))), "no memory holds"),
        (npy(described(shape=(1,) * 60)), "has the shape"),
        (npy(described("|O"), b"1234"), "only a pickle could read"),
        (npy(described("<U4"), b"1234"), "is text .'<U4'., which no network has: is this a checkpoint"),
        (npy(described("<c16"), b"1234"), "dtype '<c16', which is not read"),
        (npy(described([("a", "<f4")]), b"1234"), "is not read"),
        (npy(described(), b"123"), "needs 4 bytes, has 3"),
        (npy(described(), b"12345"), "needs 4 bytes, has 5"),
    ],
)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_lies_is_refused_by_its_name(tmp_path: Path, content: bytes, message: str, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("w.npy", content)
    with pytest.raises(CheckpointError, match=message) as error:
        open_file(tmp_path / "x.npz")
    assert "'w'" in str(error.value)


def test_archives_that_lie(tmp_path: Path) -> None:
    path, good = tmp_path / "x.npz", npy(described(), b"1234")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", good)
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("w.npy", good)
    with pytest.raises(CheckpointError, match=r"'w\.npy' stands there twice"):
        open_file(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("w.npy", good)
    with pytest.raises(CheckpointError, match="is compressed by method 12"):
        open_file(path)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("w.npy", good)
        archive.writestr("v.npy", good)
    data = bytearray(whole.getvalue())
    second = data.rfind(b"PK\x01\x02")
    data[second + 42 : second + 46] = bytes(4)  # both members at byte 0
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"overlap|damaged|begin"):
        open_file(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path, size = tmp_path / "x.npz", 2**20
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", npy(described(shape=(size // 4,)), bytes(size)))
    open_file(path).read("w")
    data = path.read_bytes()
    path.write_bytes(data.replace((len(npy(described(shape=(size // 4,)))) + size).to_bytes(4, "little"), b"\xf0\xff\xff\x7f"))
    with pytest.raises(CheckpointError, match="claims 2147483632 bytes"):
        open_file(path)


@pytest.mark.parametrize("make", [samples.npz, samples.compressed])
def test_damaged_archives(tmp_path: Path, make: object) -> None:
    assert min(check_survives(open_file, make(tmp_path), tmp_path / "copies", 400)) > 10
