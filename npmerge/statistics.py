"""Statistics that merges need, and `collect`, the one pass over data that gathers them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.base import functions_of, graphs_of, of_one_width
from alignment.checks import check_count, check_kinds, check_list, kind_of
from alignment.graph import Graph, PyTree
from alignment.moments import Joint, JointMoments, Moments, NodeMoments, Statistic
from npmerge.batches import measured

__all__ = ["DiagonalFisher", "Joint", "JointMoments", "Moments", "NodeMoments", "Statistic", "collect"]


@dataclass(frozen=True)
class DiagonalFisher(Statistic):
    """The diagonal of each model's Fisher information, E_x E_{y ~ p(y|x)} (d log p(y|x) / d theta)^2.

    The true Fisher: the expectation over classes is taken exactly, so no labels are needed (Matena and Raffel 2022, equation
    3; Kunstner et al. 2019 on why labels would give something else). Gradients are squared per example, then averaged.
    Finalised to a tree like the variables with leaves (models, ...), float32.

    Attributes:
        microbatch: examples differentiated at once; memory is microbatch x classes x parameters.
    """

    microbatch: int = 8
    reads = frozenset({"gradients"})

    def __post_init__(self) -> None:
        check_count("microbatch", self.microbatch)

    def measure(
        self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple
    ) -> tuple[Array, PyTree]:
        """Number of examples and sums of squares over one batch."""
        inputs = batch[0]
        sums = [self._sum_of_squares(apply, model, inputs) for model in models]
        return jnp.float32(len(inputs)), jax.tree.map(lambda *leaves: jnp.stack(leaves), *sums)

    def combine(self, a: tuple[Array, PyTree], b: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: tuple[Array, PyTree]) -> PyTree:
        """Divide by the number of examples."""
        return jax.tree.map(lambda s: s / state[0], state[1])

    def _sum_of_squares(self, apply: Callable[..., PyTree], model: PyTree, inputs: Array) -> PyTree:
        def one(x: Array) -> PyTree:
            def log_probabilities(v: PyTree) -> Array:
                return jax.nn.log_softmax(apply(v, x[None])[0].astype(jnp.float32))

            p = jnp.exp(log_probabilities(model))
            jacobian = jax.jacrev(log_probabilities)(model)
            return jax.tree.map(lambda j: jnp.tensordot(p, jnp.square(j.astype(jnp.float32)), 1), jacobian)

        # the last microbatch is filled up with copies of the first example, of weight zero
        fill = -len(inputs) % self.microbatch
        padded = jnp.concatenate([inputs, jnp.broadcast_to(inputs[:1], (fill, *inputs.shape[1:]))])
        weights = jnp.concatenate([jnp.ones(len(inputs)), jnp.zeros(fill)]).astype(jnp.float32)
        chunks = jax.tree.map(lambda x: x.reshape(-1, self.microbatch, *x.shape[1:]), (padded, weights))
        start = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), model)

        def add(total: PyTree, chunk: tuple[Array, Array]) -> tuple[PyTree, None]:
            squares = jax.vmap(one)(chunk[0])
            return jax.tree.map(lambda t, s: t + jnp.tensordot(chunk[1], s, 1), total, squares), None

        return jax.lax.scan(add, start, chunks)[0]


def collect(
    apply: Callable[..., PyTree] | Sequence[Callable[..., PyTree]],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    statistics: Iterable[Statistic | type[Statistic]],
) -> Mapping[type, Any]:
    """Gather statistics of all models in one pass over the data, one jitted step per batch.

    Args:
        apply: the network in evaluation mode, `apply(variables, inputs) -> outputs`. For networks with different
            numbers of outputs one for each, as for graph: `NodeMoments` and `JointMoments` measure those, of nodes with
            different widths only `JointMoments`.
        graph: its traced graph.
        models: their variables.
        batches: `(inputs, targets)` tuples; every model sees every batch. Targets are only read by statistics that need them.
        statistics: what to gather: values such as `NodeMoments()`, or classes for their defaults (a merge's `needs`).

    Returns:
        For each statistic's type, what its `finalise` returns.

    Raises:
        ValueError: no models, no statistics asked twice by different values, or no batches.
    """
    call = "collect takes (apply, graph, models, batches, [statistics])"
    check_kinds(call, (apply, Callable | Sequence), (graph, Graph | Sequence), (models, object), (batches, Iterable))
    wanted = _wanted(statistics)
    if len({type(s) for s in wanted}) < len(wanted):
        raise ValueError(f"one statistic of each type, got {wanted}")
    check_list(models)
    if not models:
        raise ValueError("collect needs at least one model, got an empty list")
    graphs = graphs_of(graph, models)
    for own, model in zip(graphs, models, strict=True):
        own.check(model)
    if not isinstance(graph, Graph) or isinstance(apply, Sequence):
        apply, graph = functions_of(apply, models), graphs
        if odd := [type(s).__name__ for s in wanted if not isinstance(s, JointMoments | NodeMoments)]:
            raise ValueError(f"{odd[0]} needs one function and one graph for all models: got one for each")
        for statistic in (s for s in wanted if isinstance(s, NodeMoments)):
            of_one_width(statistic, graph, models)
    states: tuple | None = None
    for batch in measured(batches):
        new = _measure(apply, graph, wanted, tuple(models), batch)
        states = new if states is None else _combine(wanted, states, new)
    if states is None:
        raise ValueError("collect needs data: got no batches")
    return {type(s): value for s, value in zip(wanted, _finalised(wanted, states), strict=True)}


def _wanted(statistics: Iterable[Statistic | type[Statistic]]) -> tuple[Statistic, ...]:
    """Each once; classes stand for their defaults."""
    if not isinstance(statistics, Iterable) or isinstance(statistics, str):
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(statistics)}")
    values = [s() if isinstance(s, type) and issubclass(s, Statistic) else s for s in statistics]
    if odd := [s for s in values if not isinstance(s, Statistic)]:
        raise ValueError(f"collect takes a list of statistics such as [NodeMoments()], got {kind_of(odd[0])} in it")
    return tuple(dict.fromkeys(values))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _measure(apply: Any, graph: Any, statistics: tuple[Statistic, ...], models: tuple, batch: tuple) -> tuple:
    return tuple(s.measure(apply, graph, models, batch) for s in statistics)


@functools.partial(jax.jit, static_argnums=0)
def _combine(statistics: tuple[Statistic, ...], states: tuple, new: tuple) -> tuple:
    return tuple(s.combine(a, b) for s, a, b in zip(statistics, states, new, strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _finalised(statistics: tuple[Statistic, ...], states: tuple) -> tuple:
    return tuple(s.finalise(state) for s, state in zip(statistics, states, strict=True))
