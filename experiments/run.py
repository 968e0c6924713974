"""What every experiment shares: presets, rows that survive an interruption, and what its page says of the run."""

import csv
import json
import os
import platform
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from npmerge.version import __version__


class Preset(StrEnum):
    """How much work a seed is: `test` seconds, `cpu` under an hour on two cores, `paper` the published setting, for a GPU."""

    test = "test"
    cpu = "cpu"
    paper = "paper"


class Rows:
    """The rows of an experiment in `rows.csv`, written one by one: a run that was interrupted goes on behind the last.

    A last line that was only half written is dropped: its row is computed again. What the rows were made with is kept beside
    them in `settings.json`, and other rows are not mixed with them.

    Args:
        path: the file; made with its folder.
        key: the columns that say which row it is.
        settings: what all rows are made with, anything that JSON can hold.

    Raises:
        ValueError: if there are rows that were made with other settings (which, and both values), or a row that is there twice,
            which two runs at once have written (which).
    """

    def __init__(self, path: Path, key: Sequence[str], settings: Mapping[str, Any]):
        self.path, self.key = path, tuple(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fields: list[str] = []
        self.all: list[dict[str, Any]] = []
        if path.exists():
            _drop_half_line(path)
            self.all = read_rows(path)
            self.fields = list(self.all[0]) if self.all else []
            _check_once(path, self.all, self.key)
        _keep_settings(path.with_name("settings.json"), settings, made=bool(self.all))

    def has(self, **key: Any) -> bool:
        """Whether this row is there already."""
        return any(all(row[name] == key[name] for name in self.key) for row in self.all)

    def add(self, row: dict[str, Any]) -> None:
        """Write one more row. Raises ValueError if its columns are not those of the others, in whatever order."""
        self.fields = self.fields or list(row)
        if odd := sorted(row.keys() ^ set(self.fields)):
            raise ValueError(f"a row has other columns than {self.path}: {odd[0]!r} is in only one of them")
        self.all.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.fields, lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()})


def _check_once(path: Path, rows: Sequence[Mapping[str, Any]], key: Sequence[str]) -> None:
    seen = set()
    for row in rows:
        values = tuple(str(row[name]) for name in key)
        if values in seen:
            told = ", ".join(f"{name} {value}" for name, value in zip(key, values, strict=True))
            raise ValueError(f"{path} has a row twice, which two runs at once have written: {told}; delete one")
        seen.add(values)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `Rows` has written; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: _parsed(text) for name, text in row.items()} for row in csv.DictReader(file)]


def check_settings(found: Mapping[str, Any], wanted: Mapping[str, Any], where: Path) -> None:
    """Raise ValueError naming the first setting in which a file differs from what is wanted."""
    differs = _difference(found, json.loads(json.dumps(wanted)), "")
    if differs is not None:
        name, got, expected = differs
        raise ValueError(f"{where} was made with other settings: {name} is {got} there, {expected} here: choose another --out")


def _difference(found: Any, wanted: Any, name: str) -> tuple[str, Any, Any] | None:
    """The first place where two trees differ, as deep as it can be named, and both values."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        inner = [(f"{name}.{key}".lstrip("."), found.get(key), wanted.get(key)) for key in dict.fromkeys([*wanted, *found])]
    elif _alike(found, wanted):
        inner = [(f"{name}[{k}]", mine, theirs) for k, (mine, theirs) in enumerate(zip(found, wanted, strict=True))]
    else:
        return (name, found, wanted) if found != wanted else None
    return next((x for place, mine, theirs in inner if (x := _difference(mine, theirs, place)) is not None), None)


def _alike(found: Any, wanted: Any) -> bool:
    """Whether both are lists of as many trees: lists of numbers are told as a whole."""
    lists = isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted)
    return lists and all(isinstance(x, Mapping | list) for x in wanted)


def _keep_settings(path: Path, settings: Mapping[str, Any], *, made: bool) -> None:
    if path.exists():
        check_settings(json.loads(path.read_text(encoding="utf-8")), settings, path)
    elif made:
        raise ValueError(f"there are rows but no {path}, which says what they were made with: choose another --out")
    else:
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def _drop_half_line(path: Path) -> None:
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.truncate(content.rfind(b"\n") + 1)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def mean_and_deviation(values: Sequence[float]) -> str:
    """`mean +- standard deviation` over seeds (n - 1), or the one value there is."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def points(values: Sequence[float]) -> str:
    """Fractions as percent: `mean +- standard deviation` over seeds (n - 1), or the one value there is."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def forget_compiled() -> None:
    """Let go of all programs: each holds maps of memory, of which Linux gives a process 65,530, and long runs use them up."""
    jax.clear_caches()


def machine() -> str:
    """Versions and machine, for the page of a result."""
    device = jax.devices()[0]
    versions = f"npmerge {__version__}, jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}"
    hardware = f"{platform.machine()} of {os.cpu_count()} cores, {jax.device_count()} x {device.device_kind}"
    return f"{versions}, Python {platform.python_version()}, {hardware}"
