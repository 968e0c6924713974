"""The batches of a fit: where they come from, how far it has come with them, and how a compiled step takes them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from npmerge.fitting.updates import Run
from npmerge.masks import examples_in, padded
from npmerge.sharding import AsGiven, Mapped


class Source(Iterator[tuple]):
    """Batches, as many as are asked for; a sequence of them is cycled."""

    def __init__(self, batches: Iterable[tuple], steps: int):
        self.steps, self.count = steps, 0
        self.batches = batches if isinstance(batches, Sequence) and len(batches) else None
        self.source: Any = iter(batches) if self.batches is None else itertools.cycle(self.batches)

    def __next__(self) -> tuple:
        try:
            batch = next(self.source)
        except StopIteration:
            endless = "; a list of batches is cycled, and shuffled(...) goes on for ever" if self.count else ""
            message = f"the data ended after {self.count} batches, {self.steps} steps were asked for{endless}"
            raise ValueError(message) from None
        self.count += 1
        return batch

    @property
    def position(self) -> Any:
        """What `go_on` needs besides the number of batches: what an iterator says by `get_state`, as those of grain do."""
        get = getattr(self.source, "get_state", None)
        if get is None:
            return None
        state = get()
        return {"bytes": state.hex()} if isinstance(state, bytes) else {"state": state}

    def go_on(self, position: Any, count: int) -> None:
        """Leave out the batches that an earlier part of a fit had: by `set_state`, or by reading past them."""
        self.count = count
        if position is not None and hasattr(self.source, "set_state"):
            self.source.set_state(bytes.fromhex(position["bytes"]) if "bytes" in position else position["state"])
            return
        for _ in itertools.islice(self.source, count):
            pass


class Feed:
    """Batches as a compiled step takes them: filled up to a size that divides, and put in place.

    Smaller batches are filled up to the size of those before, so that nothing is compiled again.
    """

    def __init__(self, run: Run):
        self.layout, self.multiple = run.layout, run.layout.parts * run.accumulate
        self.whole = isinstance(run.layout, AsGiven) and run.accumulate == 1
        self.alone = isinstance(run.layout, Mapped) or run.accumulate > 1
        self.masks, self.each = getattr(run.loss, "masks", False), getattr(run.loss, "map_batches", None)
        self.sizes: dict[int, int] = {}

    def __call__(self, batch: tuple) -> tuple:
        """Raises ValueError for a batch that neither divides nor can be filled up."""
        if self.whole:
            return batch
        if not self.masks or self.each is None:
            self._check_divides(batch)
            return self.layout.divide(batch)
        pairs: list[tuple] = []
        self.each(pairs.append, batch)
        position = itertools.count()
        return self.layout.divide(self.each(lambda pair: self._filled(pair, next(position), len(pairs)), batch))

    def _filled(self, pair: tuple, position: int, tasks: int) -> tuple:
        count = examples_in(pair)
        size = self.sizes[position] = max(-(-count // self.multiple) * self.multiple, self.sizes.get(position, 0))
        if tasks > 1 and self.alone and count < size:  # each task's mean would need weights of its own
            raise ValueError(
                f"batches of several tasks cannot be filled up where parts are computed alone: got one of {count} examples, "
                f"expected a multiple of {self.multiple}"
            )
        return padded(pair, size)

    def _check_divides(self, batch: tuple) -> None:
        for x in jax.tree.leaves(batch):
            if np.ndim(x) and len(x) % self.multiple:
                raise ValueError(
                    f"a batch of {len(x)} examples does not divide into {self.multiple} equal parts, and this loss takes no "
                    "mask to fill it up: give batches of a multiple"
                )
