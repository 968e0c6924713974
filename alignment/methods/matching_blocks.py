"""Blocks of tensors while two sets of weights are matched, and what their axes carry."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from alignment.blocks import Bare, axis_of, name_of
from alignment.labels import Fixed, NodeAxis


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


def stacked(labels: Sequence[Sequence[Bare]], models: Sequence[Sequence[np.ndarray]]) -> tuple[list, list[list[np.ndarray]]]:
    """All blocks that carry the same nodes as one: a network has many vectors, and every product costs.

    Which axis of its tensor a node stands on does not matter here, so its weights to and from another node are one block. The
    first node is on the first axis and the last on the last, both in front of all else without a copy; what no node carries
    is left out.
    """
    groups: dict[tuple[Bare, ...], list[tuple[int, list[int]]]] = {}
    for k, block in enumerate(labels):
        named = sorted((d for d, x in enumerate(block) if name_of(x)), key=lambda d: name_of(block[d]))
        if any(isinstance(x, NodeAxis) for x in block):
            axes = [*named[:1], *(d for d in range(len(block)) if d not in named), *named[1:]]
            groups.setdefault(tuple(_bare(block[d]) for d in named), []).append((k, axes))
    together = [[first, Fixed(-1), *others] for first, *others in groups]

    def joined(model: Sequence[np.ndarray], nodes: tuple[Bare, ...], same: list[tuple[int, list[int]]]) -> np.ndarray:
        first, *others = (x.size for x in nodes)
        parts = [model[k].transpose(axes).reshape(first, -1, *others) for k, axes in same]
        return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    return together, [[joined(model, *group) for group in groups.items()] for model in models]


def _bare(label: Bare) -> Bare:
    return NodeAxis(label.node, label.size, "out") if isinstance(label, NodeAxis) else label
