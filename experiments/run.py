"""What every experiment shares: presets, rows that survive an interruption, and what its page says of the run."""

import csv
import json
import os
import platform
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from npmerge.version import __version__


class Preset(StrEnum):
    """How much work: `test` takes seconds, `cpu` under an hour on two cores, `paper` is the published setting, for a GPU."""

    test = "test"
    cpu = "cpu"
    paper = "paper"


class Rows:
    """The rows of an experiment in `rows.csv`, written one by one: a run that was interrupted goes on behind the last.

    Args:
        path: the file; made with its folder.
        key: the columns that say which row it is.
    """

    def __init__(self, path: Path, key: Sequence[str]):
        self.path, self.key = path, tuple(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.all: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.all = [{name: _parsed(text) for name, text in row.items()} for row in csv.DictReader(file)]

    def has(self, **key: Any) -> bool:
        """Whether this row is there already."""
        return any(all(row[name] == key[name] for name in self.key) for row in self.all)

    def add(self, row: dict[str, Any]) -> None:
        """Write one more row."""
        self.all.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def mean_and_deviation(values: Sequence[float]) -> str:
    """`mean +- standard deviation` over seeds (n - 1), or the one value there is."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {np.std(values, ddof=1):.3f}"


def machine() -> str:
    """Versions and machine, for the page of a result."""
    device = jax.devices()[0]
    versions = f"npmerge {__version__}, jax {jax.__version__}, flax {flax.__version__}, optax {optax.__version__}"
    hardware = f"{platform.machine()} of {os.cpu_count()} cores, {jax.device_count()} x {device.device_kind}"
    return f"{versions}, Python {platform.python_version()}, {hardware}"
