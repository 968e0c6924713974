"""The examples of one task or of several: what is learned from, and what is held out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from npmerge.batches import shuffled
from npmerge.learning.data import Examples, Parts, check_apart
from npmerge.loading import by_task
from npmerge.reports.numbers import plural


@dataclass(frozen=True, eq=False)
class Tasks:
    """The data of a `learn:` block. With one task a batch is `(inputs, targets)`, with several a tuple of those.

    Attributes:
        parts: for each task what is learned from and what is held out.
        seed: of the order of the examples.
    """

    parts: tuple[Parts, ...]
    seed: int

    @property
    def joint(self) -> bool:
        """Whether there are several."""
        return len(self.parts) > 1

    @property
    def has_held_out(self) -> bool:
        """Whether something is held out."""
        return self.parts[0].held_out is not None

    @property
    def train(self) -> tuple[Examples, ...]:
        """What is learned from, by task."""
        return tuple(part.train for part in self.parts)

    @property
    def measured(self) -> dict[str, Examples]:
        """What networks are measured on, by the name of the task: held-out examples if there are any."""
        found = [part.held_out or part.train for part in self.parts]
        names = [x.name for x in found]
        same = len(set(names)) < len(names)
        return {f"{name} (task {k + 1})" if same else name: x for k, (name, x) in enumerate(zip(names, found, strict=True))}

    def batches(self, size: int) -> Iterable[tuple]:
        """Batches without end, of so many examples of each task."""
        each = [shuffled(x.inputs, x.filled, size, seed=self.seed + k) for k, x in enumerate(self.train)]
        return by_task(each) if self.joint else each[0]

    def repeated(self, size: int) -> tuple[str, ...]:
        """How batches of so many examples are filled from fewer, a line for each task that has fewer."""
        few = [(len(x.inputs), x.name) for x in self.train if len(x.inputs) < size]
        return tuple(
            f"a batch of {size:,} is more than the {plural(n, 'example')} of {name}, and takes each {_times(size, n)}"
            for n, name in few
        )

    def first(self, size: int) -> tuple:
        """The first examples of each task, in order."""
        found = tuple((x.inputs[:size], x.filled[:size]) for x in self.train)
        return found if self.joint else found[0]

    def held_out(self, size: int) -> list[tuple]:
        """All that is held out, in batches of about so many examples of each task."""
        found = [part.held_out for part in self.parts if part.held_out is not None]
        if not self.joint or not found:
            return found[0].batches(size) if found else []
        lengths = [len(x.inputs) for x in found]
        count = min(-(-max(lengths) // size), *lengths)
        places = [np.array_split(np.arange(n), count) for n in lengths]
        return by_task([[(x.inputs[i], x.filled[i]) for i in p] for x, p in zip(found, places, strict=True)])  # type: ignore[return-value]

    def mixed(self, size: int, most: int) -> list[tuple]:
        """Up to so many batches of what is learned from, of all tasks together."""
        if not self.joint:
            return self.train[0].batches(size)[:most]
        joined = joined_examples(self.train)
        order = np.random.default_rng(self.seed).permutation(len(joined.inputs))
        return joined.take(order).batches(size)[:most]


def check_all_apart(parts: Sequence[Parts]) -> None:
    """Raise ValueError if what is held out of one task is learned from in another."""
    for one in parts:
        for other in parts:
            if one is not other and one.held_out is not None:
                check_apart(other.train, one.held_out)


def _times(size: int, examples: int) -> str:
    least = size // examples
    return f"{least:,} times" if size % examples == 0 else f"{least:,} or {least + 1:,} times"


def joined_examples(tasks: Sequence[Examples]) -> Examples:
    """The examples of all tasks; without labels unless all have them. Raises ValueError for inputs of several shapes."""
    if len(tasks) == 1:
        return tasks[0]
    if len({x.inputs.shape[1:] for x in tasks}) > 1:
        shapes = ", ".join(f"{x.inputs.shape[1:]} in {x.name}" for x in tasks)
        raise ValueError(f"inputs of all tasks must be of one shape to be put together: got {shapes}")
    targets = [x.targets for x in tasks if x.targets is not None]
    labelled = len(targets) == len(tasks) and len({y.shape[1:] for y in targets}) == 1
    inputs = np.concatenate([x.inputs for x in tasks])
    return Examples(", ".join(dict.fromkeys(x.name for x in tasks)), inputs, np.concatenate(targets) if labelled else None)
