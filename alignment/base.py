"""What an alignment is, and `align`, which applies one."""

import abc
import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.graph import Graph, GroupName, Node, PyTree, flatten
from alignment.maps import Maps, permutation, transport
from alignment.moments import Joint, JointMoments, Moments, NodeMoments, Statistic

Stats = Mapping[type, Any]


class Alignment(abc.ABC):
    """How the units of several networks correspond. Model 0 is the reference.

    A value with two functions: `init` computes the alignment's parameters theta in closed form (host code allowed), `maps`
    turns theta into one `NodeMap` per node and model (pure and traceable). Subclasses are frozen dataclasses whose fields
    are the hyper-parameters.
    """

    needs: ClassVar[tuple[type, ...]] = ()
    """The statistics that `init` looks up in `stats`, by type."""

    resizes: ClassVar[bool] = False
    """Whether its maps may change the widths of nodes. Then the reference is mapped too."""

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


def align(
    alignment: Alignment,
    graph: Graph | Sequence[Graph],
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
        ValueError: no models, variables that do not fit the graph, a non-finite leaf (path and model named), or missing
            statistics.
    """
    if not isinstance(alignment, Alignment):
        raise ValueError(f"align takes (alignment, graph, models), got {alignment!r} and {type(graph).__name__}")
    if not models:
        raise ValueError("align needs at least one model, got an empty list")
    graphs = graphs_of(graph, models)
    for k, (own, model) in enumerate(zip(graphs, models, strict=True)):
        own.check(model)
        check_finite(model, f"model {k}")
    if not alignment.resizes:
        if len({id(own) for own in graphs}) > 1:
            raise ValueError(f"{type(alignment).__name__} needs networks of one width: got several graphs")
        if len(models) == 1:
            return list(models)
    given: Any = graphs[0] if isinstance(graph, Graph) else graphs
    theta = alignment.rounded(alignment.init(given, models, stats=stats, key=key))
    moved = _transported(alignment, graphs, theta, tuple(models))
    return moved if alignment.resizes else [models[0], *moved[1:]]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _transported(alignment: Alignment, graphs: tuple[Graph, ...], theta: PyTree, models: tuple) -> list[PyTree]:
    maps = alignment.maps(theta, graphs[0])
    return [transport(graph, m, model) for graph, m, model in zip(graphs, maps, models, strict=True)]


def graphs_of(graph: Graph | Sequence[Graph], models: Sequence[PyTree]) -> tuple[Graph, ...]:
    """One graph for each model. Raises ValueError for another number of them, or graphs that do not have the same nodes."""
    graphs = (graph,) * len(models) if isinstance(graph, Graph) else tuple(graph)
    if not all(isinstance(own, Graph) for own in graphs) or len(graphs) != len(models):
        raise ValueError(
            f"expected a graph, or one for each of {len(models)} models: got {graph if not graphs else len(graphs)}"
        )
    for k, own in enumerate(graphs):
        if own.nodes.keys() != graphs[0].nodes.keys():
            odd = sorted(own.nodes.keys() ^ graphs[0].nodes.keys())
            raise ValueError(f"model {k} is of another architecture than model 0: only one of them has the node {odd[0]!r}")
    return graphs


def of_one_width(alignment: Alignment, graph: Graph | Sequence[Graph], models: Sequence[PyTree]) -> Graph:
    """The graph of all models. Raises ValueError for graphs whose nodes have different widths."""
    first, *others = graphs_of(graph, models)
    for k, other in enumerate(others, 1):
        for name, node in first.nodes.items():
            if other.nodes[name].size != node.size:
                raise ValueError(
                    f"{type(alignment).__name__} needs models of one width: node {name!r} has {node.size} units in model 0 and "
                    f"{other.nodes[name].size} in model {k}"
                )
    return first


_LARGER: Mapping[GroupName, tuple[GroupName, ...]] = {
    "permutation": ("permutation", "scale", "orthogonal", "linear"),
    "scale": ("scale", "linear"),
    "orthogonal": ("orthogonal", "linear"),
    "linear": ("linear",),
}
"""For each group those that contain it."""


def admits(node: Node, group: GroupName) -> bool:
    """Whether every element of `group` leaves the function unchanged at this node."""
    return node.group in _LARGER[group]


def check_groups(alignment: Alignment, graph: Graph, nodes: Iterable[str], group: GroupName) -> None:
    """Raise ValueError naming the nodes whose own group does not hold all of `group`, which the alignment's maps are of."""
    outside = [f"{name!r} ({graph.nodes[name].group})" for name in nodes if not admits(graph.nodes[name], group)]
    if outside:
        some = ", ".join(outside[:5]) + (f" and {len(outside) - 5} more" if len(outside) > 5 else "")
        raise ValueError(
            f"{type(alignment).__name__} takes its maps from the {group} group, which changes the function at {some}: "
            "pass approximate=True if that is meant, and verify and re-estimate statistics afterwards"
        )


def check_finite(tree: PyTree, name: str) -> None:
    """Raise ValueError naming the first leaf that holds NaN or infinity. Traced and abstract leaves are passed over."""
    leaves = {path: leaf for path, leaf in flatten(tree).items() if _can_be_checked(leaf)}
    for path, bad in jax.device_get(_count_bad(leaves)).items():
        if bad:
            raise ValueError(f"{name} has {bad} non-finite values of {np.size(leaves[path])} in {path!r}")


def _can_be_checked(leaf: Any) -> bool:
    return not isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


@jax.jit
def _count_bad(leaves: dict[str, Array]) -> dict[str, Array]:
    return {path: jnp.sum(~jnp.isfinite(leaf)) for path, leaf in leaves.items()}


def node_moments(stats: Stats | None, alignment: Alignment, graph: Graph, models: Sequence[PyTree]) -> Mapping[str, Moments]:
    """The NodeMoments in `stats`. Raises ValueError if they are missing or were taken of another number of models.

    Warns:
        UserWarning: if the graph has nodes without a tap (only ever seen inside products): they stay as they are.
    """
    moments: Mapping[str, Moments] = _activations(stats, alignment, NodeMoments)
    _check_moments(alignment, moments, {m.mean.shape[0] for m in moments.values()}, len(models))
    _warn_of_untapped(alignment, graph, graph.nodes)
    return moments


def joint_moments(stats: Stats | None, alignment: Alignment, graphs: Sequence[Graph], nodes: Iterable[str]) -> dict[str, Joint]:
    """The JointMoments in `stats` of some nodes, one graph for each model. Raises and warns as `node_moments` does."""
    every: Mapping[str, Joint] = _activations(stats, alignment, JointMoments)
    moments = {name: every[name] for name in nodes if name in every}
    taken = set()
    for name, m in moments.items():
        units, got = [joint_units(graph, name) for graph in graphs], m.mean.shape[-1]
        if len(set(units)) == 1:
            taken.add(got / units[0])
        elif got != sum(units):
            expected = f"{' + '.join(map(str, units))} units at node {name!r}"
            raise ValueError(f"{type(alignment).__name__} got models with {expected}, but the statistics are of {got}")
    _check_moments(alignment, moments, taken, len(graphs))
    _warn_of_untapped(alignment, graphs[0], nodes)
    return moments


def joint_units(graph: Graph, name: str) -> int:
    """How many units of a node in one model are laid end to end in its moments: those of all copies along other nodes."""
    node = graph.nodes[name]
    return node.size * math.prod(n for i, n in zip(node.index, node.copies, strict=True) if i in graph.nodes)


def _activations(stats: Stats | None, alignment: Alignment, kind: type[Statistic]) -> Any:
    if stats is None or kind not in stats:
        raise ValueError(
            f"{type(alignment).__name__} needs activations: pass stats=npmerge.collect(apply, graph, models, batches, "
            f"[{kind.__name__}()])"
        )
    return stats[kind]


def _check_moments(alignment: Alignment, moments: Mapping[str, Moments | Joint], taken: set, models: int) -> None:
    name = type(alignment).__name__
    if wrong := taken - {models}:
        raise ValueError(f"{name} got {models} models, but the statistics are of {min(wrong):g}")
    for node, m in moments.items():
        if not all(np.isfinite(np.asarray(x)).all() for x in m):
            raise ValueError(f"{name} got non-finite moments of node {node!r}: is there a NaN in the data?")


def _warn_of_untapped(alignment: Alignment, graph: Graph, nodes: Iterable[str]) -> None:
    matched = {index for node in graph.taps for index in graph.nodes[node].index}  # through what is inside them
    if missing := [node for node in nodes if node not in graph.taps and node not in matched]:
        name = type(alignment).__name__
        warnings.warn(f"{name} leaves nodes without activations as they are: {', '.join(missing)}", stacklevel=5)
