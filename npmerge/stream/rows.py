"""Tables of tokens whose rows are put together from several models, read piece by piece."""

import threading
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.plan import Rows

NEAR = 2**16  # bytes between two rows that are read along with them rather than skipped
SPAN = 2**22  # bytes that are read at once, unless a row is longer
ROWS = 2**12  # rows of a table whose mean is taken at a time

_dtypes: WeakKeyDictionary[Rows, np.dtype] = WeakKeyDictionary()
_means: WeakKeyDictionary[Rows, np.ndarray] = WeakKeyDictionary()
_lock = threading.Lock()


def read_rows(models: Sequence[StoredModel], rows: Rows, start: int = 0, count: int | None = None) -> np.ndarray:
    """Entries of a table that `rows` puts together, from a flat position on, as `StoredModel.read` gives those of a tensor.

    Thread-safe. Where no row is a mean and all tables are of one dtype, entries are those stored, bit for bit. Else they are in
    float32, or float64 if a table is.

    Args:
        models: of the plan.
        rows: which rows of which models.
        start: flat position of the first entry.
        count: of entries; all that follow for None.
    """
    width = _width(models, rows)
    stop = (len(rows.table) + rows.padding) * width if count is None else start + count
    first, last = start // width, -(-stop // width)
    table = _gathered(models, rows, first, min(last, len(rows.table)))
    if last > len(rows.table):
        mean = np.broadcast_to(_mean(models, rows), (last - max(first, len(rows.table)), width))
        table = np.concatenate([table, mean.astype(table.dtype)])
    return table.reshape(-1)[start - first * width : stop - first * width]


def dtype_of_rows(models: Sequence[StoredModel], rows: Rows) -> np.dtype:
    """The dtype that `read_rows` gives, whichever rows are read."""
    if rows not in _dtypes:
        stored = {DTYPES[models[model].entries[name].dtype] for model, name in zip(rows.models, rows.names, strict=True)}
        shared = rows.padding or (np.count_nonzero(rows.table >= 0, axis=1) > 1).any()
        wide = np.float64 if np.dtype(np.float64) in stored else np.float32
        _dtypes[rows] = np.dtype(wide) if shared or len(stored) > 1 else stored.pop()
    return _dtypes[rows]


def _width(models: Sequence[StoredModel], rows: Rows) -> int:
    shape = models[rows.models[0]].entries[rows.names[0]].shape
    return int(np.prod(shape[1:], dtype=np.int64))


def _gathered(models: Sequence[StoredModel], rows: Rows, first: int, last: int) -> np.ndarray:
    """Rows of the result from `first` up to `last`."""
    table, width = rows.table[first:last], _width(models, rows)
    result = np.zeros((max(last - first, 0), width), dtype_of_rows(models, rows))
    counts = np.count_nonzero(table >= 0, axis=1)
    for column, (model, name) in enumerate(zip(rows.models, rows.names, strict=True)):
        wanted = np.flatnonzero(table[:, column] >= 0)
        for places, values in _read(models[model], name, table[wanted, column], width):
            to, alone = wanted[places], counts[wanted[places]] == 1
            result[to[alone]] = values[alone]
            result[to[~alone]] += values[~alone].astype(result.dtype)
    shared = counts > 1
    result[shared] /= counts[shared, None].astype(result.dtype)
    return result


def _read(model: StoredModel, name: str, wanted: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of one table in spans that are near each other: the places in `wanted`, and their values."""
    order = np.argsort(wanted, kind="stable")
    rows, entry = wanted[order].astype(np.int64), model.entries[name]
    nbytes = max(width * entry.nbytes // max(entry.size, 1), 1)
    far = np.diff(rows) * nbytes > NEAR
    begins = np.maximum.accumulate(np.where(np.append(True, far), rows, 0)[: len(rows)])
    cut = far | (np.diff((rows - begins) * nbytes // SPAN) > 0)
    for places in np.split(order, np.flatnonzero(cut) + 1) if len(rows) else []:
        first, last = int(wanted[places[0]]), int(wanted[places[-1]])
        values = model.read(name, first * width, (last - first + 1) * width).reshape(-1, width)
        yield places, values[wanted[places] - first]


def _mean(models: Sequence[StoredModel], rows: Rows) -> np.ndarray:
    """The mean of all rows of the table, which is what rows beyond the tokens are."""
    with _lock:
        if rows not in _means:
            total = np.zeros(_width(models, rows))
            for first in range(0, len(rows.table), ROWS):
                total += _gathered(models, rows, first, min(first + ROWS, len(rows.table))).sum(0, dtype=np.float64)
            _means[rows] = total / len(rows.table)
        return _means[rows]
