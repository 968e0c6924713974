"""Partial zip: networks merged where they have maps, with heads or stems of their own elsewhere."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.checks import check_kinds, check_list
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree, flatten, path_name
from alignment.maps import Maps, NodeMap, transport
from alignment.per_model import functions_of, graphs_of
from alignment.resizing.resize import resize
from npmerge.arithmetic import mean_of
from npmerge.heads.cut import Cut, cut_of
from npmerge.heads.functions import Function, MultiHead, MultiHeadTraining, only
from npmerge.normalisation import reset_statistics


class Headed(NamedTuple):
    """What `multi_head` returns.

    Attributes:
        apply: the merged function in evaluation mode.
        variables: of all of it.
        train_apply: training mode; None unless it was given.
        shared: the leaves that all tasks share.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> models = [{"w": jnp.eye(2), "u": jnp.ones((2, 3))}, {"w": 3 * jnp.eye(2), "u": jnp.ones((2, 5))}]
        >>> graphs = [nm.trace(apply, model, jnp.eye(2)) for model in models]
        >>> headed = nm.multi_head(apply, graphs, models, [{"w": alignment.identity(2)}] * 2)
        >>> other = headed.sharing({"w": 7 * jnp.eye(2), "u": None})  # the same heads behind another trunk
        >>> print(other.variables["shared"]["w"].diagonal(), [head["u"].shape for head in other.variables["heads"]])
        [7. 7.] [(2, 3), (2, 5)]
    """

    apply: MultiHead
    variables: dict[str, Any]
    train_apply: MultiHeadTraining | None
    shared: tuple[str, ...]

    def sharing(self, network: PyTree) -> "Headed":
        """The same heads behind the shared part of another network."""
        return self._replace(variables={**self.variables, "shared": only(network, self.variables["shared"])})

    def renewed(self, batches: Iterable[tuple]) -> "Headed":
        """With statistics re-estimated from data, by `reset_statistics`, where there is a training mode."""
        if self.train_apply is None:
            return self
        return self._replace(variables=reset_statistics(self.train_apply, self.variables, batches))


def multi_head(
    apply: Function | Sequence[Function],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    maps: Sequence[Maps],
    *,
    train_apply: Function | Sequence[Function] | None = None,
    stems: bool = False,
) -> Headed:
    """Merge networks where they have maps, and keep what comes behind once for each: partial zip (Stoica et al. 2024).

    What makes the units of a mapped node is averaged over the models. Everything else stays as it is in each, reading from the
    merged units: W_k U_k. So tasks with different labels keep their classifiers. Of a weight that makes units of mapped and of
    other nodes (a split, a norm over a concatenation) only the part of the mapped ones is averaged. Where it makes them from a
    model's own units (a residual stream that a zero-padded shortcut carries on behind the cut) it stays that model's wholly,
    U_k^+ W_k, so that U_k reads what was written. The maps are those of `ZipIt(stop=...)` or of
    any other alignment, of which only the nodes up to a place are taken.

    With `stems` layers in front of the first node with a map stay separate, too, as by `ZipIt(start=...)`: a weight that makes
    merged units from those of one model stays that model's, M_k W_k, and what all of them make is averaged where it is
    computed, before the bias and the nonlinearity. Networks that are zipped nowhere (all units kept apart, or no maps) keep
    their functions.

    Args:
        apply: the network in evaluation mode; one for each model where they have different numbers of outputs.
        graph: its graph, likewise.
        models: the variables of each model.
        maps: one map per node to merge, for each model.
        train_apply: the network in training mode, likewise, if it has statistics to re-estimate: then call
            `reset_statistics(headed.train_apply, headed.variables, batches)`.
        stems: whether layers in front of mapped nodes may stay separate.

    Raises:
        ValueError: another number of maps or functions than of models, maps of different nodes or to different widths, NaN or
            infinity in a model, without `stems` no maps at all, and what `cut_of` raises: mostly for a cut through a residual
            stream, a tensor that makes merged units from units that are not (both nodes are named).

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> a, b = {"w": jnp.eye(2), "u": jnp.ones((2, 3))}, {"w": 3 * jnp.eye(2), "u": jnp.ones((2, 5))}
        >>> graphs = [nm.trace(apply, v, jnp.eye(2)) for v in (a, b)]
        >>> maps = [{name: alignment.identity(2) for name in graph.nodes} for graph in graphs]  # aligned already
        >>> headed = nm.multi_head(apply, graphs, [a, b], maps)
        >>> print(headed.shared, headed.variables["shared"]["w"].diagonal())
        ('w',) [2. 2.]
        >>> [outputs.shape for outputs in headed.apply(headed.variables, jnp.eye(2))]  # three classes, and five
        [(2, 3), (2, 5)]
    """
    check_list(models)
    check_list(maps, "maps")
    graphs = graphs_of(graph, models)
    merged = _merged(maps, len(models))
    if not merged and not stems:
        raise ValueError(
            f"multi_head needs maps of some nodes for each of {len(models)} models: got {[sorted(m) for m in maps]}"
        )
    for k, model in enumerate(models):
        check_finite(model, f"model {k}")
    moved = [transport(g, m, model) for g, m, model in zip(graphs, maps, models, strict=True)]
    cut = cut_of(graphs[0], merged, stems=stems)
    average = mean_of([_part(model, {*cut.shared, *cut.parted}, keep=True) for model in moved])
    heads = [_own(*each, cut=cut, average=average) for each in zip(graphs, maps, models, moved, strict=True)]
    variables = {"shared": _part(average, cut.shared, keep=True), "heads": heads}

    def whole(function: Function | Sequence[Function]) -> MultiHead:
        each = zip(functions_of(function, models), graphs, moved, strict=True)
        return MultiHead(tuple(resize(f, g, v, merged) for f, g, v in each), cut.entries)

    return Headed(whole(apply), variables, None if train_apply is None else MultiHeadTraining(whole(train_apply)), cut.shared)


def _merged(maps: Sequence[Maps], count: int) -> dict[str, int]:
    """The nodes that have maps, with their new widths. Raises ValueError where models differ."""
    for k, m in enumerate(maps):
        check_kinds(f"the maps of model {k} must be node -> NodeMap", (m, Mapping))
    if len(maps) != count or any(m.keys() != maps[0].keys() for m in maps):
        raise ValueError(f"multi_head needs maps of the same nodes for each of {count} models: got {[sorted(m) for m in maps]}")
    for name in maps[0] if maps else ():
        for k, m in enumerate(maps):
            check_kinds(f"the map of {name!r} in model {k} must be a NodeMap", (m[name], NodeMap))
        widths = [m[name].push.shape[-2] for m in maps]
        if len(set(widths)) > 1:
            raise ValueError(f"the maps bring node {name!r} to different widths: {widths}, one for each model")
    return {name: m.push.shape[-2] for name, m in maps[0].items()} if maps else {}


def _own(graph: Graph, maps: Maps, model: PyTree, moved: PyTree, *, cut: Cut, average: PyTree) -> PyTree:
    """What one model keeps: all but the shared weights, and with the averaged part of those that are averaged in part.

    Merged units that the model goes on writing itself are written so that `pull` reads back what was written.
    """
    back = {name: m._replace(push=jnp.linalg.pinv(jnp.asarray(m.pull))) for name, m in maps.items()} if cut.continued else {}
    written, means = flatten(transport(graph, back, model)), flatten(average)

    def own(path: tuple, x: Array) -> Array | None:
        name = path_name(path)
        if name in cut.continued:
            return written[name]
        return jnp.where(cut.parted[name], means[name], x) if name in cut.parted else x

    return jax.tree_util.tree_map_with_path(own, _part(moved, cut.shared, keep=False))


def _part(tree: PyTree, paths: Collection[str], *, keep: bool) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, x: x if (path_name(path) in paths) == keep else None, tree)
