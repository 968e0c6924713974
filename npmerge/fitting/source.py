"""Where the batches of a fit come from, and how far it has come with them."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


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
            raise ValueError(f"the data ended after {self.count} batches, {self.steps} steps were asked for") from None
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
