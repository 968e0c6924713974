"""Keras' files of weights: names and bits as Keras writes them, and nothing that HDF5 could lead to elsewhere."""

import sys
from pathlib import Path

import numpy as np
import pytest

from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.keras import open_file
from tests.npmerge.checkpoint.mutations import check_holds, check_survives
from tests.npmerge.checkpoint.samples import FIXTURES

h5py = pytest.importorskip("h5py", reason='needs the package h5py: pip install "npmerge[keras]"')

KERNEL, BIAS = np.arange(12, dtype=np.float32).reshape(3, 4), np.arange(4, dtype=np.float16)
MANY = np.arange(1000, dtype=np.int32).reshape(10, 100)


def legacy(path: Path, container: str = "") -> Path:
    """As Keras 2 lays them out: a group for each layer, with the names of its weights."""
    with h5py.File(path, "w") as file:
        root = file.create_group(container) if container else file
        root.attrs["layer_names"] = [b"dense", b"flatten"]
        group = root.create_group("dense")
        group.attrs["weight_names"] = [b"dense/kernel:0", b"dense/bias:0"]
        group["dense/kernel:0"], group["dense/bias:0"] = KERNEL, BIAS
        root.create_group("flatten").attrs["weight_names"] = np.zeros(0, "S1")
    return path


def check(path: Path, expected: dict[str, np.ndarray]) -> None:
    check_holds(open_file(path), expected)


def test_files_that_keras_has_written(tmp_path: Path) -> None:
    """See tests/fixtures/record_keras.py."""
    with np.load(FIXTURES / "keras_3_15" / "values.npz") as found:
        values = dict(found)
    # the newer format numbers the variables of a layer in the order in which it made them
    places = {"conv2d": "net/first", "batch_normalization": "net/batch_normalization", "dense": "net/dense"}
    numbered = {place: [x for name, x in values.items() if name.rpartition("/")[0] == place] for place in places.values()}
    expected = {f"layers/{name}/vars/{k}": x for name, place in places.items() for k, x in enumerate(numbered[place])}
    check(FIXTURES / "keras_3_15" / "net.weights.h5", expected)
    check(FIXTURES / "keras_3_15" / "whole.h5", {f"{name.split('/')[1]}/{name}": x for name, x in values.items()})
    assert len(values) == 8


def test_legacy_files_are_read_with_their_names_and_a_whole_models_container_is_said(tmp_path: Path) -> None:
    names = {"dense/dense/kernel:0": KERNEL, "dense/dense/bias:0": BIAS}
    check(legacy(tmp_path / "weights.h5"), names)
    check(legacy(tmp_path / "model.h5", "model_weights"), names)
    assert open_file(tmp_path / "weights.h5").notes == ()
    assert open_file(tmp_path / "model.h5").notes == ("found in 'model_weights'",)


def test_files_of_keras_3_and_every_kind_of_storage_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    with h5py.File(path, "w") as file:
        file.create_group("layers/dense/vars").create_dataset("0", data=KERNEL)
        file["layers/dense/vars/1"] = BIAS
        file.create_dataset("packed", data=MANY, compression="gzip", shuffle=True, chunks=(3, 40))
        file.create_dataset("lzf", data=MANY, compression="lzf", fletcher32=True)
        file.create_dataset("zeros", data=np.zeros(100_000), compression="gzip", chunks=(100_000,))
        file["flags"], file["scalar"], file["empty"] = np.array([True, False]), np.float64(3), np.zeros((0, 3), np.int8)
    check(
        path,
        {
            "layers/dense/vars/0": KERNEL,
            "layers/dense/vars/1": BIAS,
            "packed": MANY,
            "lzf": MANY,
            "zeros": np.zeros(100_000),
            "flags": np.array([True, False]),
            "scalar": np.array(3.0),
            "empty": np.zeros((0, 3), np.int8),
        },
    )


def _soft(file: "h5py.File") -> None:
    file["w"] = KERNEL
    file["x"] = h5py.SoftLink("/w")


def _external(file: "h5py.File") -> None:
    file["x"] = h5py.ExternalLink("/etc/hostname", "/w")


def _container(file: "h5py.File") -> None:
    file["w"] = KERNEL
    file["model_weights"] = h5py.SoftLink("/")


def _elsewhere(file: "h5py.File") -> None:
    file.create_dataset("x", (8,), np.uint8, external=[("/etc/hostname", 0, 8)])


def _virtual(file: "h5py.File") -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource("other.h5", "w", (4,))
    file.create_virtual_dataset("x", layout)


def _circle(file: "h5py.File") -> None:
    group = file.create_group("a/b")
    group["x"] = file["a"]


def _deep(file: "h5py.File") -> None:
    file["/".join("a" * 40)] = KERNEL


def _absurd(file: "h5py.File") -> None:
    file.create_dataset("x", (2**40,), np.float32, chunks=(1024,), compression="gzip")


def _never_written(file: "h5py.File") -> None:
    file.create_dataset("x", (2**20,), np.float32)


def _text(file: "h5py.File") -> None:
    file["x"] = "words"


def _compound(file: "h5py.File") -> None:
    file["x"] = np.zeros(2, [("a", "f4"), ("b", "i4")])


def _big_endian(file: "h5py.File") -> None:
    file["x"] = np.zeros(2, ">f4")


def _null(file: "h5py.File") -> None:
    file["x"] = h5py.Empty("f")


def _type(file: "h5py.File") -> None:
    file["x"] = np.dtype("f4")


def _other_filter(file: "h5py.File") -> None:
    file.create_dataset("x", data=MANY, scaleoffset=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_soft, "'x' is a soft or an external link"),
        (_external, "'x' is a soft or an external link"),
        (_container, "'model_weights' is a soft or an external link"),
        (_elsewhere, "'x' keeps its data in other files"),
        (_virtual, "'x' keeps its data in other files"),
        (_circle, "'a/b/x/' holds itself"),
        (_deep, "more than 32 groups"),
        (_absurd, "'x' needs 4398046511104 bytes, 0 are stored"),
        (_never_written, "'x' needs 4194304 bytes, 0 are stored"),
        (_text, "'x' has the dtype 'object'"),
        (_compound, "'x' has the dtype"),
        (_big_endian, "'x' is big-endian"),
        (_null, "'x' has no shape"),
        (_type, "'x' is neither a group nor a dataset"),
        (_other_filter, "'x' is compressed by the filter 6"),
        (lambda file: None, "has no tensors"),
    ],
)
def test_what_leads_elsewhere_or_is_no_tensor_is_refused(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(CheckpointError, match=message):
        open_file(path)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"no HDF5 at all"])
def test_what_is_no_hdf5_file_is_said_to_be_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not an HDF5 file"):
        open_file(tmp_path / "x.h5")
    with pytest.raises(CheckpointError, match="no such file"):
        open_file(tmp_path / "none.h5")


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    path = legacy(tmp_path / "weights.h5", "model_weights")
    (tmp_path / "copies").mkdir()
    assert min(check_survives(open_file, path, tmp_path / "copies", 300)) > 10


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = legacy(tmp_path / "weights.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(CheckpointError, match=r'needs the package h5py: pip install "npmerge\[keras\]"'):
        open_file(path)
