"""Stacks of layers that a merge has made longer, shorter or reordered, and what a configuration says of them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from npmerge.recipe.plan import Plan

LAYER = re.compile(r"(?:^|\.)(\d+)\.")
COUNT = re.compile(r"((^|_)n_?layers?|(^|_)layers?|depth)$")
COMMON = {
    "model",
    "transformer",
    "layer",
    "layers",
    "block",
    "blocks",
    "num",
    "n",
    "h",
    "hidden",
    "config",
    "types",
    "depth",
    "",
}
"""Words that tell no stack from another."""

Origin = tuple[int, int]  # place of the model, layer in it
Change = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Stack:
    """One stack of the reference.

    Attributes:
        prefix: that the names of its tensors begin with, before the number.
        layers: in the reference.
        origins: for each layer of the result the model and the layer that it is read of.
    """

    prefix: str
    layers: int
    origins: tuple[Origin, ...]

    @property
    def words(self) -> set[str]:
        """That tell it from others."""
        return _words(self.prefix)


def restacked(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A configuration with the numbers of layers, and the lists of one value a layer, of the result.

    Where there are several stacks as high, a key is about those that it or the section it stands in shares a word with, such as
    `vision_config` and `vision.blocks.0`; if none, about those that no key shares a word with.
    """
    stacks = list(_stacks(plan))
    claimed = set().union(*(_words(path) for path in _paths(config)))

    def change(path: str, value: Any) -> Any:
        height = len(value) if isinstance(value, list) else value
        same = [stack for stack in stacks if stack.layers == height]
        near = [s for s in same if s.words & _words(path)] or [s for s in same if not s.words & claimed]
        if len({s.origins for s in near}) != 1 or isinstance(value, bool):
            return value
        return _values(plan, near[0], path.rpartition(".")[2]) or value if isinstance(value, list) else len(near[0].origins)

    return _each(config, change)


def _each(config: dict[str, Any], change: Change, above: str = "") -> dict[str, Any]:
    """The configuration with each number of layers and each list of one value a layer changed."""
    found = {}
    for key, value in config.items():
        if isinstance(value, dict):
            value = _each(value, change, f"{above}{key}.")
        elif (isinstance(value, int) and COUNT.search(key)) or (isinstance(value, list) and "layer" in key):
            value = change(f"{above}{key}", value)
        found[key] = value
    return found


def _paths(config: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Of sections and of what may be a number of layers."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield f"{above}{key}"
            yield from _paths(value, f"{above}{key}.")
        elif COUNT.search(key):
            yield f"{above}{key}"


def _stacks(plan: Plan) -> Iterator[Stack]:
    heights = {prefix: len(set(numbers)) for prefix, numbers in _numbers(plan.reference.entries).items()}
    for prefix, height in heights.items():
        found: dict[int, Origin] = {}
        for step in plan.steps:
            match = LAYER.search(step.name)
            if match and step.name[: match.start(1)] == prefix:
                source = step.base or step.sources[0]
                layer = LAYER.search(source.name)
                found.setdefault(int(match[1]), (source.model, int((layer or match)[1])))
        kept = tuple((0, number) for number in range(height))
        yield Stack(prefix, height, tuple(found[number] for number in sorted(found)) or kept)


def _numbers(names: Iterable[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for name in names:
        if match := LAYER.search(name):
            found.setdefault(name[: match.start(1)], []).append(int(match[1]))
    return found


def _values(plan: Plan, stack: Stack, key: str) -> list[Any]:
    """A list of one value a layer, put together from the configurations that the layers come from; empty if one lacks it."""
    values = []
    for model, layer in stack.origins:
        of_layers = find(plan.models[model].config, key)
        if not isinstance(of_layers, list) or layer >= len(of_layers):
            return []
        values.append(of_layers[layer])
    return values


def find(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key in the outermost section that has it; None if none has."""
    if key in config:
        return config[key]
    nested = (find(value, key) for value in config.values() if isinstance(value, dict))
    return next((value for value in nested if value is not None), None)


def _words(path: str) -> set[str]:
    return set(filter(None, re.split(r"[._]", path.lower()))) - COMMON
