"""What an alignment is, and `align`, which applies one."""

import abc
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from jaxtyping import Array

from alignment.checks import check_key, check_kinds, check_list
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree
from alignment.labels import node_axes
from alignment.maps import Maps, NodeMap, permutation, transport
from alignment.names import is_statistic
from alignment.per_model import Graphs, graphs_of

Stats = Mapping[type, Any]
Theta = list[dict[str, NodeMap]]


class Alignment(abc.ABC):
    """How the units of several networks correspond. Model 0 is the reference.

    A value with two functions: `init` computes the alignment's parameters theta in closed form (host code allowed), `maps`
    turns theta into one `NodeMap` per node and model (pure and traceable). Subclasses are frozen dataclasses whose fields
    are the hyper-parameters.

    Example:
        >>> class Reversing(alignment.Alignment):
        ...     def init(self, graph, models, *, stats=None, key=None):
        ...         return [{n.name: jnp.arange(n.size)[::-1] for n in graph.nodes.values()} for _ in models]
        ...     def maps(self, theta, graph):
        ...         return [{name: alignment.permutation(index) for name, index in model.items()} for model in theta]
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.ones((3, 1))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 1)))
        >>> [model["up"].tolist() for model in alignment.align(Reversing(), graph, [v, v])]
        [[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]]
    """

    resizes: ClassVar[bool] = False
    """Whether its maps may change the widths of nodes. Then the reference is mapped too."""

    @property
    def needs(self) -> tuple[type, ...]:
        """The statistics that `init` looks up in `stats`, by type."""
        return ()

    @abc.abstractmethod
    def init(self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The parameters of the alignment for these models."""

    @abc.abstractmethod
    def maps(self, theta: PyTree, graph: Graph) -> Sequence[Maps]:
        """One map per node for each model; a node that is absent stays as it is."""

    def rounded(self, theta: PyTree) -> PyTree:
        """Theta with what it relaxes made exact (soft permutations hard). Host code; theta itself where nothing is relaxed."""
        return theta


class PermutationAlignment(Alignment):
    """An alignment whose theta holds, for each model, a permutation of each node's units."""

    def maps(self, theta: PyTree, graph: Graph) -> Sequence[Maps]:
        """Permutation matrices of theta's indices."""
        return [{name: permutation(index) for name, index in model.items()} for model in theta]


class MapAlignment(Alignment):
    """An alignment whose theta holds the maps themselves: for each model, node -> `NodeMap`. They may be of other widths."""

    resizes = True

    @abc.abstractmethod
    def init(self, graph: Graphs, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> Theta:
        """The maps, of networks that share a graph or have one each."""

    def maps(self, theta: Theta, graph: Graph) -> Sequence[Maps]:
        """Theta as it is."""
        return [{name: NodeMap(*m) for name, m in model.items()} for model in theta]


def align(
    alignment: Alignment,
    graph: Graphs,
    models: Sequence[PyTree],
    *,
    stats: Stats | None = None,
    key: Array | None = None,
) -> list[PyTree]:
    """Bring every model into the units of model 0, or all into units that they share.

    Args:
        alignment: one of ALIGNMENTS.
        graph: the traced graph of the architecture that the models share. For networks of one architecture whose nodes have
            different widths, one graph for each; only alignments that change widths take those.
        models: their variables; the first one is the reference. It comes back unchanged, unless the alignment `resizes`: then
            all models come back with the new widths, for `resize(apply, graph, variables)` to run.
        stats: what `npmerge.collect` returned for `alignment.needs`, if it needs any.
        key: randomness, for alignments that use it; None means none.

    Returns:
        The transformed variables, in the order of `models`.

    Raises:
        ValueError: no models, variables that do not fit the graph, a non-finite leaf (path and model named), missing
            statistics, or a call under `jit`.

    Warns:
        UserWarning: if approximate maps act on running statistics, which are then no longer those of the network.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 2.0, 3.0]]), "down": jnp.array([[1.0], [2.0], [3.0]])}
        >>> b = {"up": jnp.array([[3.0, 1.1, 2.0]]), "down": jnp.array([[3.0], [1.0], [2.1]])}  # nearly a, in another order
        >>> graph = alignment.trace(apply, a, jnp.ones((1, 1)))
        >>> aligned = alignment.align(alignment.WeightMatching(), graph, [a, b])
        >>> print(aligned[1]["up"].round(2), nm.Average()(nm.stack_models(aligned))["up"].round(2))
        [[1.1 2.  3. ]] [[1.05 2.   3.  ]]
    """
    check_kinds("align takes (alignment, graph, models)", (alignment, Alignment), (graph, Graph | Sequence), (models, object))
    check_list(models)
    check_key(key)
    if not models:
        raise ValueError("align needs at least one model, got an empty list")
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(models)):
        raise ValueError("align runs on the host: call it outside jit")
    graphs = graphs_of(graph, models)
    for k, (own, model) in enumerate(zip(graphs, models, strict=True)):
        try:
            own.check(model)
        except ValueError as error:
            raise ValueError(f"model {k}: {error}") from None
        check_finite(model, f"model {k}")
    if not alignment.resizes:
        if len({id(own) for own in graphs}) > 1:
            raise ValueError(f"{type(alignment).__name__} needs networks of one width: got several graphs")
        if len(models) == 1:
            return list(models)
    given: Any = graphs[0] if isinstance(graph, Graph) else graphs
    theta = alignment.rounded(alignment.init(given, models, stats=stats, key=key))
    if getattr(alignment, "approximate", False) and (held := _running_statistics(graphs[0])):
        warnings.warn(
            f"approximate maps leave running statistics such as {held[0]!r} wrong, variances even negative: "
            "re-estimate them by npmerge.reset_statistics",
            stacklevel=2,
        )
    return [*models[: _still(alignment)], *_transported(alignment, graphs, theta, tuple(models))]


def _still(alignment: Alignment) -> int:
    """How many models stay as they are: the reference, unless it gets a new width too."""
    return 0 if alignment.resizes else 1


def _running_statistics(graph: Graph) -> list[str]:
    """The paths of those that carry a node."""
    return [path for path, labels in graph.axes.items() if is_statistic(path) and any(any(node_axes(x)) for x in labels)]


def _transported(alignment: Alignment, graphs: tuple[Graph, ...], theta: PyTree, models: tuple) -> list[PyTree]:
    """The models that move, each in its new units."""
    ready = all(isinstance(value, NodeMap) for value in _values(theta))  # nothing to compute: `transport` is compiled by graph
    return (_moved if ready else _moved_at_once)(alignment, graphs, theta, models)


def _values(theta: PyTree) -> list:
    """What theta holds, its maps as they are."""
    return jax.tree.leaves(theta, is_leaf=lambda x: isinstance(x, NodeMap))


def _moved(alignment: Alignment, graphs: tuple[Graph, ...], theta: PyTree, models: tuple) -> list[PyTree]:
    maps = maps_of(alignment, graphs[0], theta, len(models))
    every = list(zip(graphs, maps, models, strict=True))
    return [transport(graph, m, model) for graph, m, model in every[_still(alignment) :]]


_moved_at_once = jax.jit(_moved, static_argnums=(0, 1))  # matrices that are made of theta live no longer than their use


def maps_of(alignment: Alignment, graph: Graph, theta: PyTree, count: int) -> Sequence[Maps]:
    """The maps of so many models. Raises ValueError if theta is of another number."""
    maps = alignment.maps(theta, graph)
    if len(maps) != count:
        raise ValueError(f"theta of {type(alignment).__name__} must be of {count} models: got one of {len(maps)}")
    return maps
