"""A fit on disk, so that what ends it costs no more than the steps since: theta, the optimiser's state, what was measured."""

import dataclasses
import functools
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from alignment.checks import check_count, first_line
from alignment.graph import PyTree

CHECKED = {
    "start": "another theta or other models",
    "loss": "another loss",
    "held_out_batches": "other held-out batches",
    "batches": "other training batches",
    "optimizer": "another kind of optimizer",
}
"""What a fit must have in common with its checkpoints, and what is said of it."""


@dataclass(frozen=True)
class Checkpoints:
    """Where and how often a fit is saved; one that finds an earlier part of itself there goes on from it.

    Saved by Orbax, whole or not at all; the last two are kept. Several processes need a folder that all of them see. A first
    part whose number of steps is no multiple of `every` was judged at its end, once more than a fit without a break would be.

    Attributes:
        folder: of the checkpoints, made if it is not there.
        steps: between two of them; None to go by time alone.
        minutes: after which there is one, at the next judgement (`every`); None to go by steps alone.

    Raises:
        ValueError: neither steps nor minutes, or such as are not positive.

    Example:
        >>> loss = lambda theta, stack, batch: jnp.square(theta - batch[1]).mean()
        >>> given = jnp.zeros(2), loss, None, [(None, jnp.ones(2))], optax.sgd(0.5)
        >>> for steps in (2, 3):  # the second goes on where the first ended
        ...     found = nm.fit(*given, steps=steps, checkpoints=nm.Checkpoints("run", steps=1))
        ...     print(found.theta, found.history.loss)
        [0.75 0.75] [1.   0.25]
        [0.875 0.875] [1.     0.25   0.0625]
    """

    folder: Path | str
    steps: int | None = 1000
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check_count("the steps between checkpoints", self.steps)
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"minutes between checkpoints must be more than 0, got {self.minutes}")
        if self.steps is None and self.minutes is None:
            raise ValueError("checkpoints need steps or minutes: got neither")


class Saved(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        arrays: trees of arrays.
        numbers: what JSON holds.
    """

    arrays: dict[str, PyTree]
    numbers: dict[str, Any]


class Saver:
    """Saves and finds the checkpoints of one fit.

    Args:
        checkpoints: where and how often.
        start: theta and the stack as the fit was given them; another fit's checkpoints are refused by them.
        loss: likewise.
        batches: those held out and those to learn from, likewise, where they are lists and all this process's.

    Raises:
        ValueError: a folder that cannot be made or written.
    """

    def __init__(self, checkpoints: Checkpoints, start: PyTree, loss: Any, batches: tuple[Any, Any]):
        import orbax.checkpoint as ocp  # not needed where nothing is saved

        self.checkpoints = checkpoints
        held_out, training = (fingerprint(x) if jax.process_count() == 1 else None for x in batches)
        loss_of = zlib.crc32(described(loss).encode())
        self.of = {"start": fingerprint(start), "loss": loss_of, "held_out_batches": held_out, "batches": training}
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.folder = Path(checkpoints.folder)  # as it is named in messages; Orbax wants it absolute
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot write {self.folder}: {error.strerror or error}") from None
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)
        self._arguments, self._last = ocp.args, time.monotonic()

    def found(self, like: Mapping[str, PyTree]) -> tuple[int, Saved] | None:
        """The newest checkpoint and its step; None if there is none.

        Args:
            like: trees of the arrays that are expected, laid out as they are to be.

        Raises:
            ValueError: checkpoints of a fit with another start, damaged ones, or arrays that are not as expected.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        numbers = self._restored(step, numbers=self._arguments.JsonRestore()).numbers
        ours_of = {**self.of, "optimizer": _kind_of_optimizer(like)}
        known = [(what, numbers.get(name), ours_of[name]) for name, what in CHECKED.items()]
        if wrong := [what for what, there, ours in known if None not in (there, ours) and there != ours]:
            raise ValueError(f"{self.folder} holds a fit of {' and '.join(wrong)}: name another folder")
        abstract = jax.tree.map(_abstract, {**like, "losses": np.zeros(step, np.float32)})
        arrays = self._restored(step, arrays=self._arguments.StandardRestore(abstract)).arrays
        return step, Saved(arrays, numbers)

    def _restored(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=self._arguments.Composite(**items))
        except (ValueError, KeyError, TypeError, OSError) as error:
            message = f"{self.folder / str(step)} cannot be read ({first_line(error)[:200].rstrip(':')})"
            raise ValueError(f"{message}: if it is damaged, move it away to go on from an earlier one") from None

    def is_due(self, step: int, *, judged: bool) -> bool:
        """Whether to save now.

        Args:
            step: that was done.
            judged: whether theta was judged at it: only then is the time looked at.
        """
        every, minutes = self.checkpoints.steps, self.checkpoints.minutes
        if every is not None and step % every == 0:
            return True
        return judged and minutes is not None and _of_first(time.monotonic() - self._last > 60 * minutes)

    def save(self, step: int, saved: Saved) -> None:
        """Write a checkpoint. Raises ValueError for a disk that cannot be written."""
        numbers = {**saved.numbers, **self.of, "optimizer": _kind_of_optimizer(saved.arrays)}
        arguments = self._arguments.Composite(
            arrays=self._arguments.StandardSave(saved.arrays), numbers=self._arguments.JsonSave(numbers)
        )
        try:
            self._manager.save(step, args=arguments, force=True)
        except OSError as error:
            raise ValueError(f"cannot write {self.folder}: {error.strerror or error}") from None
        self._last = time.monotonic()

    def close(self) -> None:
        """Let Orbax end what it does."""
        self._manager.close()


def _kind_of_optimizer(arrays: Mapping[str, PyTree]) -> int:
    """Of what the optimiser's state holds, whatever the values: numbers such as learning rates do not stand in it."""
    leaves = jax.tree_util.tree_leaves_with_path(arrays["state"]["optimizer"])
    kinds = [(jax.tree_util.keystr(path), str(x.dtype), np.shape(x)) for path, x in leaves]
    return zlib.crc32(repr(kinds).encode())


def fingerprint(tree: PyTree) -> int:
    """Of the values, shapes and dtypes of a tree whose arrays this process has."""
    found = 0
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        value = np.ascontiguousarray(x)
        described = f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}"
        found = zlib.crc32(value.view(np.uint8).data if value.size else b"", zlib.crc32(described.encode(), found))
    return found


def described(x: Any) -> str:
    """A value that a loss is made of, in words that another process finds too: functions by name, arrays by fingerprint."""
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        parts = {field.name: getattr(x, field.name) for field in dataclasses.fields(x)}
        return f"{type(x).__qualname__}({', '.join(f'{name}={described(part)}' for name, part in parts.items())})"
    if isinstance(x, functools.partial):
        return f"partial({described((x.func, x.args, x.keywords))})"
    if isinstance(x, Mapping):
        return f"{{{', '.join(f'{key}: {described(part)}' for key, part in x.items())}}}"
    if isinstance(x, tuple | list):
        return f"({', '.join(map(described, x))})"
    if isinstance(x, np.ndarray | jax.Array):
        return f"array {fingerprint(x)}"
    if isinstance(x, str | int | float | complex | bytes | np.generic | None):
        return repr(x)
    return f"{getattr(x, '__module__', '')}.{getattr(x, '__qualname__', type(x).__qualname__)}"


def _abstract(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return x


def _of_first(value: bool) -> bool:
    """What the first process says: clocks differ."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))
