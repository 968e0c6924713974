"""Layers of a model, read off the names of its tensors: the first part of a name that counts up tells the layer."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

_COUNTED = re.compile(r"^(?P<stack>|.*?[./_])(?P<number>\d+)(?P<rest>([./].*)?)$")
_HEADS = "lm_head|head|heads|score|classifier|fc|embed_out|output|output_projection|logits|proj_out"
_HEAD = re.compile(rf"(^|[./_])({_HEADS})([./_]|$)")
_EMBEDDING = re.compile(r"emb|wte|wpe|patch|cls_token|pos_|^shared\.")


class Place(NamedTuple):
    """Where in a stack of layers a tensor stands: its name is `stack`, then the number, then `rest`."""

    stack: str
    number: int
    rest: str

    def name(self, number: int) -> str:
        """Of the tensor in the same place of another layer."""
        return f"{self.stack}{number}{self.rest}"


def place_of(name: str) -> Place | None:
    """The place that a name tells; None if no part of it is a number, alone or after an underscore."""
    found = _COUNTED.match(name)
    return None if found is None else Place(found["stack"], int(found["number"]), found["rest"])


@dataclass(frozen=True)
class Layers:
    """The stacks of layers of a model.

    Attributes:
        numbers: for each stack the numbers of its layers, in order. Stacks of one layer count only if there are no longer ones.
        first: place in the model's order of the first tensor of a layer.
        order: place of each tensor.
    """

    numbers: Mapping[str, tuple[int, ...]]
    first: int
    order: Mapping[str, int]

    def place(self, name: str) -> Place | None:
        """As `place_of`, but only in the stacks."""
        place = place_of(name)
        return place if place is not None and place.stack in self.numbers else None

    def depth(self, name: str) -> float:
        """From 0 (first layer of its stack) to 1 (last, or only one); outside the layers that of the end it stands at."""
        place = self.place(name)
        if place is None:
            return float(self.is_after(name))
        numbers = self.numbers[place.stack]
        return numbers.index(place.number) / (len(numbers) - 1) if len(numbers) > 1 else 1.0

    def is_after(self, name: str) -> bool:
        """Whether a tensor outside the layers comes after them: a head does and an embedding does not, whatever the order.

        Files are often in the order of the alphabet, in which `lm_head` comes before the layers and `wte` after them.
        """
        if _HEAD.search(name):
            return True
        return not _EMBEDDING.search(name) and self.order[name] > self.first


def layers_of(names: Iterable[str]) -> Layers:
    """The stacks of layers of a model with tensors of these names, in their order."""
    order = {name: i for i, name in enumerate(names)}
    found: dict[str, set[int]] = {}
    for place in map(place_of, order):
        if place is not None:
            found.setdefault(place.stack, set()).add(place.number)
    longest = max(map(len, found.values()), default=0)
    numbers = {stack: tuple(sorted(indices)) for stack, indices in found.items() if len(indices) > 1 or longest == 1}
    first = min((i for name, i in order.items() if (place := place_of(name)) and place.stack in numbers), default=len(order))
    return Layers(numbers, first, order)
