"""What is known of every array while a network is evaluated at other widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

from alignment.primitives import Value
from alignment.resizing.sizes import Extent, Sizes

Shape = tuple[int, ...]


class Doubt(NamedTuple):
    """One reading of a number that stays as it is though it may stand for a width.

    Attributes:
        place: of the number, `extent`: the width.
        power: how the result grows with the width through it, 1 if it multiplies by the width.
        factor: what the result would have to be multiplied by if it followed.
    """

    place: int
    extent: Extent
    power: float | None
    factor: float


@dataclass(frozen=True)
class Trail:
    """What an array owes to the lengths of axes that were summed over on its way.

    Attributes:
        powers: how it grows with these lengths: a sum as their first power, a norm as the root, a mean as the power 0; None
            where that is not known.
        weighted: the lengths of axes that were contracted with weights, `paired`: of features with features.
        doubts: numbers that its features were multiplied by.
    """

    powers: Mapping[Extent, float | None] = field(default_factory=dict)
    weighted: frozenset[Extent] = frozenset()
    paired: frozenset[Extent] = frozenset()
    doubts: frozenset[Doubt] = frozenset()

    @property
    def changed(self) -> bool:
        """Whether any of it depends on the new widths."""
        return bool(self.doubts) or any(e.old != e.new for e in (*self.powers, *self.weighted, *self.paired))


@dataclass(frozen=True)
class Known:
    """An array at its new shape, what the walk knows of it, and what it owes to widths."""

    array: Any
    value: Value
    trail: Trail = Trail()


@dataclass(frozen=True)
class Equation:
    """An equation with changed operands: `shapes` are the new ones of its results."""

    eqn: JaxprEqn
    whole: Jaxpr
    ins: Sequence[Known]
    outs: Sequence[Value]
    shapes: Sequence[Shape]
    sizes: Sizes

    @property
    def arrays(self) -> list[Any]:
        """The operands as they are."""
        return [known.array for known in self.ins]

    def bind(self, *arrays: Any, **changed: Any) -> list[Any]:
        """Run the primitive on these operands with some parameters changed."""
        primitive = self.eqn.primitive
        made = primitive.bind(*arrays, **{**self.eqn.params, **changed})
        return list(made) if primitive.multiple_results else [made]


def fitted(known: Known, shape: Shape) -> Any:
    """An operand with the axes along which it is uniform as long as they now have to be."""
    x = known.array
    if not known.value.shape or x.shape == shape:
        return x
    for d, (n, term) in enumerate(zip(shape, known.value.axes, strict=True)):
        if 1 < x.shape[d] != n and term is None:
            x = jax.lax.slice_in_dim(x, 0, 1, axis=d)
    return jnp.broadcast_to(x, shape)
