"""Hyper-parameters of methods: fields that know the values that papers search them among."""

import dataclasses
from collections.abc import Sequence
from typing import Any


def searched(default: Any, grid: Sequence[Any]) -> Any:
    """A field with a default and a published search grid, its `metadata["grid"]`; `npmerge methods` prints both."""
    return dataclasses.field(default=default, metadata={"grid": tuple(grid)})


def spaced(first: float, last: float, step: float) -> tuple[float, ...]:
    """From the first to the last in equal steps, as decimal numbers."""
    return tuple(round(first + step * k, 10) for k in range(round((last - first) / step) + 1))
