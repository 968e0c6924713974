"""Blocks of tensors while two sets of weights are matched, and what their axes carry."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alignment.blocks import Bare, axis_of
from alignment.labels import NodeAxis


@dataclass(frozen=True, eq=False)
class Layout:
    """What the axes of a block carry, each one node or fixed: found once for all models."""

    labels: Sequence[Bare]
    _axes: dict[tuple[str, ...], list[tuple[int, ...]]] = field(default_factory=dict)

    @functools.cached_property
    def carried(self) -> list[str]:
        """The node or the name of the fixed axis on each axis."""
        return [name_of(label) for label in self.labels]

    @functools.cached_property
    def nodes(self) -> frozenset[str]:
        """The nodes that stand on an axis."""
        return frozenset(label.node for label in self.labels if isinstance(label, NodeAxis))

    def axes(self, names: tuple[str, ...]) -> list[tuple[int, ...]]:
        """The axes of these names, once for each axis that carries the last; those before are found on one axis each."""
        if names not in self._axes:
            front = [axis_of(self.labels, name) for name in names[:-1]]
            self._axes[names] = [(*front, d) for d, name in enumerate(self.carried) if name == names[-1]]
        return self._axes[names]


@dataclass(eq=False)
class Block:
    """A block of a tensor in both models; `theirs` is permuted in place."""

    layout: Layout
    ours: np.ndarray
    theirs: np.ndarray
    moved: bool = False

    def __post_init__(self) -> None:
        self.labels, self.carried, self.nodes = self.layout.labels, self.layout.carried, self.layout.nodes


def name_of(label: Bare) -> str:
    """The node or the name of a fixed axis."""
    return label.node if isinstance(label, NodeAxis) else label.name
