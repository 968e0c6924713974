"""Lookups: tables whose rows are read by numbers that come with the data. That is a linear site of one-hot inputs.

An embedding is `table[ids]`, `jnp.take` or a lookup inside a loop or a vmap: all are a `gather` of whole rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float, Int

from alignment.primitives import Value
from alignment.sites import Use, stacked_in
from alignment.unification.terms import Term


@dataclass(frozen=True, eq=False)
class Lookup(Use):
    """One "gather" of rows of a weight: a row of its matrix is what stands at one place of `axis`.

    Attributes:
        axis: of the weight as the equation sees it.

    Example:
        >>> apply = lambda v, tokens: jnp.tanh(v["table"][tokens]) @ v["out"]
        >>> v = {"table": jnp.arange(8.0).reshape(4, 2), "out": jnp.ones((2, 1))}
        >>> graph = alignment.trace(apply, v, jnp.array([0, 1]))
        >>> graph.lookups[0].name, graph.lookups[0].matrix(v["table"]).shape
        ('table', (4, 2))
        >>> alignment.capture(apply, graph, v, jnp.array([3, 1]), lookups=["table"]).lookups["table"].tolist()
        [3, 1]
    """

    axis: int

    def inputs(self, x: Array) -> Int[Array, "samples 1"]:
        """The row that each sample reads, a number outside of the matrix for none, from the other operand."""
        rows = x[..., self.params["dimension_numbers"].start_index_map.index(self.axis)].reshape(-1, 1)
        clips = self.params["mode"] == jax.lax.GatherScatterMode.CLIP
        return jnp.clip(rows, 0, self.shape[self.axis] - 1) if clips else rows

    def _as_matrix(self, weight: Array) -> Float[Array, "rows columns"]:
        return jnp.moveaxis(weight, self.axis, 0).reshape(weight.shape[self.axis], -1)


def lookup_of(eqn: JaxprEqn, ins: Sequence[Value], location: tuple[int, ...], loops: tuple[Term, ...]) -> Lookup | None:
    """The lookup that an equation is, if it reads whole rows of a leaf by numbers that depend on the inputs."""
    source = ins[0].source if eqn.primitive.name == "gather" else None
    if source is None or not ins[1].data:
        return None
    shape, taken = ins[0].shape, eqn.params["slice_sizes"]
    along = [d for d, n in enumerate(shape) if taken[d] != n]
    if len(along) != 1 or taken[along[0]] != 1 or eqn.params["dimension_numbers"].operand_batching_dims:
        return None
    return Lookup(source.path, source, location, 0, stacked_in(source, loops), "gather", eqn.params, shape, along[0])
