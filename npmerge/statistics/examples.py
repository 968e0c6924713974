"""Data as a statistic: for merges that run the network while they merge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import jax
from jaxtyping import Array, Bool

from alignment.activations.moments import Statistic
from alignment.graph import Graph, PyTree
from npmerge.base import Merge, Stats
from npmerge.masks import counted
from npmerge.stack import Stack
from npmerge.statistics.collected import collected_for

Batch = tuple[PyTree, Bool[Array, "examples ..."]]
"""Inputs, and which of the examples or of their positions are no padding."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Run:
    """A network, and for each model the batches to run it on; merges that do may hold `memory_limit` bytes."""

    tasks: tuple[tuple[Batch, ...], ...]
    apply: Callable[..., PyTree] = field(metadata={"static": True})
    graph: Graph = field(metadata={"static": True})
    memory_limit: float = field(default=16e9, metadata={"static": True})


@dataclass(frozen=True)
class Examples(Statistic):
    """The data themselves, with the network: `collect` keeps every batch, as a `Run`. Take few: some hundred examples do.

    For merges that run the network while they merge, layer by layer, such as `RegMeanPlusPlus` and `ChainOfMerges`.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 2))}, jnp.ones((4, 2))
        >>> batches = nm.in_order(x, jnp.zeros(4), 2)
        >>> stats = nm.collect(apply, nm.trace(apply, v, x), [v, v], batches, [nm.Examples()])
        >>> print([[inputs.shape for inputs, mask in task] for task in stats[nm.Examples].tasks])  # of each model, by batch
        [[(2, 2), (2, 2)], [(2, 2), (2, 2)]]
    """

    reads = frozenset({"activations"})

    def measure(self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple) -> Run:
        """One batch, for all models."""
        return Run((((batch[0], counted(batch)),),) * len(models), apply, graph)

    def combine(self, a: Run, b: Run) -> Run:
        """The batches of both."""
        return Run(tuple(x + y for x, y in zip(a.tasks, b.tasks, strict=True)), a.apply, a.graph, a.memory_limit)


def run_of(merge: Merge, stack: Stack, stats: Stats | None) -> Run:
    """The data among all that was collected; `merge` is named in messages.

    Raises:
        ValueError: none, for another number of models, or for a network that the models do not fit.
    """
    run: Run = collected_for(merge, stats, Examples)
    if len(run.tasks) != stack.size:
        name = type(merge).__name__
        raise ValueError(f"{name} needs data for each model: got them for {len(run.tasks)} of {stack.size} models")
    run.graph.check(jax.tree.map(lambda x: x[0], stack.params))
    return run
