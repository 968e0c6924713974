"""Pickles that attack: nothing is called, nothing is imported, and time and memory stay bounded."""

import datetime
import io
import os
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from npmerge.checkpoint import torch_legacy, torch_zip
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.pickles import Pairs, Stated, read_pickle
from npmerge.checkpoint.rebuilt import call, persistent

PATH = Path("model.pt")


def _read(data: bytes) -> Any:
    return read_pickle(PATH, io.BytesIO(data), call, persistent)


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def _storage(key: str = "0", size: int = 6, kind: str = "FloatStorage") -> bytes:
    """The persistent id of a storage."""
    return (
        b"("
        + _text("storage")
        + f"ctorch\n{kind}\n".encode()
        + _text(key)
        + _text("cpu")
        + b"J"
        + struct.pack("<i", size)
        + b"tQ"
    )


def _ints(*values: int) -> bytes:
    return b"(" + b"".join(b"\x8a\x09" + x.to_bytes(9, "little", signed=True) for x in values) + b"t"


def _tensor(shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, storage: bytes | None = None) -> bytes:
    begin = b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage or _storage())
    return begin + b"\x8a\x09" + offset.to_bytes(9, "little", signed=True) + _ints(*shape) + _ints(*strides) + b"\x89NtR"


def _archive(folder: Path, pickled: bytes, **members: bytes) -> Path:
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickled)
        for name, data in ({"data/0": bytes(range(24))} | members).items():
            archive.writestr(f"model/{name}", data)
    return path


class _Calls:
    """Pickles as a call with arguments."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "system"), (eval, "eval"), (exec, "exec"), (getattr, "getattr"), (__import__, "__import__")],
)
def test_what_a_pickle_would_call_is_refused_by_name_and_not_called(
    function: Callable[..., Any], name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "touched"
    for nested in (_Calls(function, f"touch {target}"), {"state_dict": [_Calls(function, _Calls(function, "1"))]}):
        with pytest.raises(
            CheckpointError, match=rf"calls '\w+\.{name}', which is refused: .*; of a whole module save the state dict"
        ):
            torch_zip.open_file(_archive(tmp_path, pickle.dumps(nested, protocol)))
    assert not target.exists()


def test_nothing_that_is_named_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attack.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for data in (b"cattack\nrun\n.", b"cattack\nrun\n(tR.", b"cattack\nrun\n)\x81.", b"cattack\nrun\n)}\x92."):
        with pytest.raises(CheckpointError):
            torch_zip.open_file(_archive(tmp_path, b"\x80\x02" + data))
    assert "attack" not in sys.modules


@pytest.mark.parametrize(
    "data",
    [
        b"(iposix\nsystem\n.",
        b"(cposix\nsystem\nX\x02\x00\x00\x00lso.",
        b"\x82\x01.",
        b"P0\n.",
        b"\x97.",
        b"ctorch._utils\n_rebuild_parameter\n(cposix\nsystem\ntR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\nctorch\nTensor\n)NtR.",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncposix\nsystem\n)NtR.",
        b"ctorch.storage\n_load_from_bytes\n(C\x01atR.",
        b"cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00xcposix\nsystem\n)Rsb.",
        b"(X\x06\x00\x00\x00modulecposix\nsystem\ntQ.",
        b"K\x01}b.",
        b"]}b.",
    ],
)
def test_other_ways_to_call_or_to_set_state_are_refused(data: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"model\.pt"):
        _read(b"\x80\x04" + data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x04",
        b"X\xff\xff\xff\xffa.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x8e" + struct.pack("<Q", 2**62) + b".",
        b"\x96" + struct.pack("<Q", 2**40) + b".",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8b\xff\xff\xff\xff.",
        b"\x8b" + struct.pack("<i", 10_000) + b"\x7f" * 10_000 + b".",
        b"L" + b"9" * 5_000 + b"L\n.",
        b"I" + b"1" * 70_000 + b"\n.",
        b"Sabc",
        b"h\x00.",
        b"Np-1\n.",
        b"Np99999999999\n.",
        b"t.",
        b"\x87.",
        b"}K\x01s.",
        b"K\x01(K\x01e.",
        b"NR.",
    ],
)
def test_damaged_pickles_are_refused_without_allocating_what_they_claim(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="pickle"):
            _read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_deep_objects_are_refused(tmp_path: Path) -> None:
    for deep in (b"\x85" * 100_000, b"]" * 100_000 + b"a" * 99_999):
        start = b"" if deep.startswith(b"]") else b")"
        with pytest.raises(CheckpointError, match="nested more than 32 deep"):
            torch_zip.open_file(_archive(tmp_path, b"\x80\x04" + start + deep + b"."))


def test_objects_within_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nested too deep or within themselves"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02]q\x00(" + _tensor((6,), (1,)) + b"h\x00e."))
    with pytest.raises(CheckpointError, match="has no tensors"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02]q\x00h\x00a."))


def test_laughs_by_the_billion_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npmerge.checkpoint.containers.MOST_TENSORS", 10_000)
    laughs = b"\x80\x02]q\x00"
    for number in range(1, 25):
        laughs += b"](" + bytes([ord("h"), number - 1]) * 10 + b"eq" + bytes([number])
    with pytest.raises(CheckpointError, match="has no tensors"):
        torch_zip.open_file(_archive(tmp_path, laughs + b"."))
    with_tensor = laughs.replace(b"]q\x00", b"]" + _tensor((6,), (1,)) + b"aq\x00", 1)
    with pytest.raises(CheckpointError, match="holds more than"):
        torch_zip.open_file(_archive(tmp_path, with_tensor + b"."))


def test_a_pickle_of_too_many_steps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npmerge.checkpoint.pickles.MOST_STEPS", 1000)
    with pytest.raises(CheckpointError, match="more than 1,000 steps"):
        _read(b"N0" * 1000 + b"N.")


def test_a_long_list_that_is_copied_again_and_again_is_refused() -> None:
    copied = b"\x80\x02(" + b"](K\x00Ne" * 10_000 + b"lq\x000"
    for name in (b"ccollections\nOrderedDict\n(h\x00tR0", b"ctorch\nSize\n(h\x00tR0"):
        with pytest.raises(CheckpointError, match="more than 3,000,000 steps"):
            _read(copied + name * 1_000 + b"N.")


def test_long_names_and_containers_within_themselves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="too long"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02}" + _text("w" * 2000) + _tensor((2,), (1,)) + b"s."))
    with pytest.raises(CheckpointError, match="a name that is too long"):
        _read(b"\x80\x04" + _text("w" * 2000) + _text("w") + b"\x93.")
    again = b"\x80\x02}q\x00(" + _text("w") + _tensor((2,), (1,)) + _text("state_dict") + b"h\x00u."
    with pytest.raises(CheckpointError, match="within themselves"):
        torch_zip.open_file(_archive(tmp_path, again))


def test_keys_are_never_hashed(tmp_path: Path) -> None:
    nested = b")" + b"\x85" * 100_000
    path = _archive(tmp_path, b"\x80\x02}(" + nested + b"K\x01X\x01\x00\x00\x00w" + _tensor((2, 3), (3, 1)) + b"u.")
    model = torch_zip.open_file(path)
    assert list(model.entries) == ["w"] and model.notes == ("left out: [tuple] (int 1)",)
    assert model.read("w").tobytes() == bytes(range(24))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (_tensor((2, 3), (3, 1), 1), "ends at byte 28 of a storage of 24"),
        (_tensor((7,), (1,)), "ends at byte 28 of a storage of 24"),
        (_tensor((2,), (2**59,)), "ends at byte"),
        (_tensor((2,), (-1,), 1), "has the strides"),
        (_tensor((2,), (1,), -1), "and an offset"),
        (_tensor((-2,), (1,)), "has the shape"),
        (_tensor((2**61,), (0,)), "has the shape"),
        (_tensor((2**31, 2**31), (0, 0)), "which no memory holds"),
        (_tensor((2**40,), (0,)), "many times what is stored"),
        (_tensor((2,), (1, 1)), "damaged shape"),
        (_tensor((1,) * 40, (1,) * 40), "has the shape"),
        (_tensor((0,), (1,), 7), "ends at byte 28"),
        (_tensor((2,), (1,), storage=_storage("1")), "lies in the storage '1', which is missing"),
        (_tensor((2,), (1,), storage=_storage("../0")), "which is missing"),
        (_tensor((2,), (1,), storage=_storage(size=7)), "needs a storage of 28 bytes, has 24"),
        (_tensor((2,), (1,), storage=_storage(size=-1)), "a storage without"),
        (_tensor((2,), (1,), storage=_storage(kind="QInt8Storage")), "QInt8Storage"),
        (_tensor((2,), (1,), storage=b"K\x01"), "a tensor without a storage"),
    ],
)
def test_tensors_that_lie_are_refused(tensor: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."))


def test_names_that_stand_there_twice_or_are_no_text_are_refused(tmp_path: Path) -> None:
    item = _tensor((2,), (1,))
    with pytest.raises(CheckpointError, match="'w' stands there twice"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02}(" + (_text("w") + item) * 2 + b"u."))
    with pytest.raises(CheckpointError, match="is a name that is no text"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80" + item + b"s."))
    with pytest.raises(CheckpointError, match=r"no text, or too long \(NoneType\)"):
        torch_zip.open_file(_archive(tmp_path, b"\x80\x02}N" + item + b"s."))


def test_archives_that_are_none_of_pytorch_are_refused(tmp_path: Path) -> None:
    pickled = b"\x80\x02}X\x01\x00\x00\x00w" + _tensor((2,), (1,)) + b"s."
    with pytest.raises(CheckpointError, match=r"2 members are called data\.pkl"):
        torch_zip.open_file(_archive(tmp_path, pickled, **{"more/data.pkl": pickled}))
    with pytest.raises(CheckpointError, match="expected 'little' or 'big'"):
        torch_zip.open_file(_archive(tmp_path, pickled, byteorder=b"middle"))
    with pytest.raises(CheckpointError, match="expected 16 at most"):
        torch_zip.open_file(_archive(tmp_path, pickled, byteorder=b"little" * 10))


def test_a_pickle_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", b"N" * 2**27)
    with pytest.raises(CheckpointError, match=r"data\.pkl' takes 134217728 bytes"):
        torch_zip.open_file(path)


def test_legacy_files_whose_storages_lie_are_refused(tmp_path: Path) -> None:
    content = (Path(__file__).parents[2] / "fixtures/torch_2_13/legacy_nested.pt").read_bytes()
    path = tmp_path / "model.pt"
    for cut, said in ((1, "is truncated"), (len(content) - 20, "pickle")):
        path.write_bytes(content[:-cut])
        with pytest.raises(CheckpointError, match=said):
            torch_legacy.open_file(path)
    four = (4).to_bytes(8, "little")
    assert four in content
    path.write_bytes(content.replace(four, b"\xff" * 8))
    with pytest.raises(CheckpointError, match="expected 4"):
        torch_legacy.open_file(path)


def test_a_reader_may_ask_for_states_and_say_how_much_it_reads() -> None:
    data = pickle.dumps({"time": datetime.timedelta(1), "error": _Given(3)}, 2)

    def made(name: str, arguments: tuple[Any, ...]) -> Stated:
        return Stated(name, arguments)

    found = read_pickle(PATH, io.BytesIO(data), made)
    (_, time), (_, given) = found.items
    assert (time.name, time.arguments, time.state) == ("datetime.timedelta", (1, 0, 0), None)
    assert isinstance(given.state, Pairs)
    assert given.state.items == [("value", 3)]
    assert read_pickle(PATH, io.BytesIO(data), made, most=len(data)).items[0][0] == "time"
    with pytest.raises(CheckpointError, match=r"model.pt: has a damaged or truncated pickle: \d+ bytes needed, \d+ left"):
        read_pickle(PATH, io.BytesIO(data), made, most=len(data) - 1)


class _Given:
    """Pickles as a call and a state."""

    def __init__(self, value: int):
        self.value = value
