"""What an alignment is, and `align`, which applies one."""

import abc
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments, Statistic, check_moments, laid_out
from alignment.checks import check_key, check_kinds, check_list, kind_of
from alignment.graph import STATISTICS, Graph, GroupName, Node, PyTree, flatten
from alignment.labels import node_axes
from alignment.maps import Maps, NodeMap, permutation, transport

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
        ValueError: no models, variables that do not fit the graph, a non-finite leaf (path and model named), missing
            statistics, or a call under `jit`.

    Warns:
        UserWarning: if approximate maps act on running statistics, which are then no longer those of the network.
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
        own.check(model)
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
    return [path for path in graph.axes if re.search(STATISTICS, path) and any(any(node_axes(x)) for x in graph.axes[path])]


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


def graphs_of(graph: Graph | Sequence[Graph], models: Sequence[PyTree]) -> tuple[Graph, ...]:
    """One graph for each model. Raises ValueError for another number of them, or graphs that do not have the same nodes."""
    graphs = (graph,) * len(models) if isinstance(graph, Graph) else tuple(graph)
    for own in graphs:
        if not isinstance(own, Graph):
            raise ValueError(f"expected a graph, or one for each model: got {kind_of(own)}")
    if len(graphs) != len(models):
        raise ValueError(f"expected a graph, or one for each of {len(models)} models: got {len(graphs)}")
    for k, own in enumerate(graphs):
        if own.nodes.keys() != graphs[0].nodes.keys():
            odd = sorted(own.nodes.keys() ^ graphs[0].nodes.keys())
            raise ValueError(f"model {k} is of another architecture than model 0: only one of them has the node {odd[0]!r}")
    return graphs


def functions_of(apply: Callable | Sequence[Callable], models: Sequence[PyTree]) -> tuple[Callable, ...]:
    """One function for each model. Raises ValueError for another number of them, or what is no function."""
    functions = tuple(apply) if isinstance(apply, Sequence) else (apply,) * len(models)
    if odd := [f for f in functions if not callable(f)]:
        raise ValueError(f"expected a function, or one for each model: got {kind_of(odd[0])}")
    if len(functions) != len(models):
        raise ValueError(f"expected a function, or one for each of {len(models)} models: got {len(functions)}")
    return functions


def of_one_width(asking: Any, graph: Graph | Sequence[Graph], models: Sequence[PyTree]) -> Graph:
    """The graph of all models. Raises ValueError, with the kind of who asks, for graphs whose nodes have different widths."""
    first, *others = graphs_of(graph, models)
    for k, other in enumerate(others, 1):
        for name, node in first.nodes.items():
            if other.nodes[name].size != node.size:
                raise ValueError(
                    f"{type(asking).__name__} needs models of one width: node {name!r} has {node.size} units in model 0 and "
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
    with jax.ensure_compile_time_eval():  # known values are checked while others are traced
        squares = jax.device_get(_squares(leaves))
        bad = jax.device_get(_count_bad({path: leaves[path] for path, s in squares.items() if not np.isfinite(s)}))
    for path, count in bad.items():
        if count:
            raise ValueError(f"{name} has {count} non-finite values of {np.size(leaves[path])} in {path!r}")


def _can_be_checked(leaf: Any) -> bool:
    return not isinstance(leaf, jax.core.Tracer) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


@jax.jit
def _squares(leaves: dict[str, Array]) -> dict[str, Array]:
    """Sums of squares, which are finite for finite leaves unless these are huge; on CPUs ten times as fast as a count."""
    wide = {path: jnp.float32 if x.dtype.itemsize < 4 else x.dtype for path, x in leaves.items()}
    return {path: jnp.vdot(x, x, preferred_element_type=wide[path]) for path, x in leaves.items()}


@jax.jit
def _count_bad(leaves: dict[str, Array]) -> dict[str, Array]:
    return {path: jnp.sum(~jnp.isfinite(leaf)) for path, leaf in leaves.items()}


def node_moments(stats: Stats | None, alignment: Alignment, graph: Graph, models: Sequence[PyTree]) -> Mapping[str, Moments]:
    """The NodeMoments in `stats`. Raises ValueError if they are missing, not finite, or of other models than these.

    Warns:
        UserWarning: if the graph has nodes without a tap (only ever seen inside products): they stay as they are.
    """
    name, moments = type(alignment).__name__, _activations(stats, alignment, NodeMoments)
    check_moments(moments, name)
    for node in dict.fromkeys([*graph.taps, *moments]):
        if node not in moments or node not in graph.nodes:
            raise ValueError(f"{name} got statistics of another graph: only one of them has the node {node!r}")
        shape, expected = moments[node].mean.shape, laid_out(graph, graph.nodes[node])
        if shape[0] != len(models):
            raise ValueError(f"{name} got {len(models)} models, but the statistics are of {shape[0]}")
        if shape[1:] != expected:
            raise ValueError(f"{name} got statistics of other networks: {node!r} has {shape[1:]} units, the graph {expected}")
    _warn_of_untapped(alignment, graph, graph.nodes)
    return moments


def joint_moments(stats: Stats | None, alignment: Alignment, graphs: Sequence[Graph], nodes: Iterable[str]) -> dict[str, Joint]:
    """The JointMoments in `stats` of some nodes, one graph for each model. Raises and warns as `node_moments` does."""
    every: Mapping[str, Joint] = _activations(stats, alignment, JointMoments)
    moments = {name: every[name] for name in nodes if name in every}
    check_moments(moments, type(alignment).__name__, Joint)
    taken = set()
    for name, m in moments.items():
        units, got = [joint_units(graph, name) for graph in graphs], m.mean.shape[-1]
        if len(set(units)) == 1:
            taken.add(got / units[0])
        elif got != sum(units):
            expected = f"{' + '.join(map(str, units))} units at node {name!r}"
            raise ValueError(f"{type(alignment).__name__} got models with {expected}, but the statistics are of {got}")
    if wrong := taken - {len(graphs)}:
        raise ValueError(f"{type(alignment).__name__} got {len(graphs)} models, but the statistics are of {min(wrong):g}")
    _warn_of_untapped(alignment, graphs[0], nodes)
    return moments


def joint_units(graph: Graph, name: str) -> int:
    """How many units of a node in one model are laid end to end in its moments: those of all copies along other nodes."""
    node = graph.nodes[name]
    return node.size * math.prod(n for i, n in zip(node.index, node.copies, strict=True) if i in graph.nodes)


def _activations(stats: Stats | None, alignment: Alignment, kind: type[Statistic]) -> Any:
    """The moments of some kind."""
    name = type(alignment).__name__
    if stats is None or kind not in stats:
        raise ValueError(
            f"{name} needs activations: pass stats=npmerge.collect(apply, graph, models, batches, [{kind.__name__}()])"
        )
    return stats[kind]


def _warn_of_untapped(alignment: Alignment, graph: Graph, nodes: Iterable[str]) -> None:
    matched = {index for node in graph.taps for index in graph.nodes[node].index}  # through what is inside them
    if missing := [node for node in nodes if node not in graph.taps and node not in matched]:
        name = type(alignment).__name__
        warnings.warn(f"{name} leaves nodes without activations as they are: {', '.join(missing)}", stacklevel=5)
