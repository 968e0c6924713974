"""Networks that share their first part and keep heads of their own: a merge of functions, not of one parameter tree."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.base import graphs_of
from alignment.graph import Graph, PyTree, path_name
from alignment.labels import node_axes
from alignment.maps import Maps, transport
from alignment.resizing import resize

Function = Callable[..., Any]


@dataclass(frozen=True)
class MultiHead:
    """`multi_head(variables, inputs) -> [outputs of every head]`, under `jax.jit` the shared part computed once.

    The variables are `{"shared": tree, "heads": [tree, ...]}`, where what a tree does not hold is None. XLA sees that all heads
    begin with the same computation and does it once.

    Attributes:
        functions: for each head the function of one network, with the widths of the merged one.
    """

    functions: tuple[Function, ...]

    def __call__(self, variables: dict[str, Any], inputs: Array) -> list[Any]:
        """What the functions return."""
        return [self.head(k)(variables, inputs) for k in range(len(self.functions))]

    def head(self, number: int) -> "OneHead":
        """The network of one task: `(variables, inputs) -> outputs`, for `evaluate` and losses."""
        return OneHead(self.functions[number], number)


@dataclass(frozen=True)
class OneHead:
    """The shared part and one of the heads, as a function of the variables of all."""

    function: Function
    number: int

    def __call__(self, variables: dict[str, Any], inputs: Array) -> Any:
        """What the function returns."""
        return self.function(_joined(variables["shared"], variables["heads"][self.number]), inputs)


@dataclass(frozen=True)
class MultiHeadTraining:
    """A `MultiHead` in training mode: `(variables, inputs) -> (outputs, variables with new statistics)`.

    Attributes:
        functions: for each head the training mode of one network, with the widths of the merged one.
    """

    functions: tuple[Function, ...]

    def __call__(self, variables: dict[str, Any], inputs: Array) -> tuple[list[Any], dict[str, Any]]:
        """Outputs of every head; the shared statistics are those that all heads saw."""
        made = [OneHead(f, k)(variables, inputs) for k, f in enumerate(self.functions)]
        shared = _only(made[0][1], variables["shared"])
        heads = [_only(new, head) for (_, new), head in zip(made, variables["heads"], strict=True)]
        return [outputs for outputs, _ in made], {"shared": shared, "heads": heads}


class Headed(NamedTuple):
    """What `multi_head` returns.

    Attributes:
        apply: the merged function in evaluation mode.
        variables: of all of it.
        train_apply: training mode; None unless it was given.
        shared: the leaves that all tasks share.
    """

    apply: MultiHead
    variables: dict[str, Any]
    train_apply: MultiHeadTraining | None
    shared: tuple[str, ...]


def multi_head(
    apply: Function | Sequence[Function],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    maps: Sequence[Maps],
    *,
    train_apply: Function | Sequence[Function] | None = None,
) -> Headed:
    """Merge networks up to where their maps end, and keep what comes behind once for each: partial zip (Stoica et al. 2024).

    What makes the units of a mapped node is averaged over the models. Everything else stays as it is in each, reading from the
    merged units: W_k U_k. So tasks with different labels keep their classifiers. The maps are those of `ZipIt(stop=...)` or of
    any other alignment, of which only the nodes up to a place are taken.

    Args:
        apply: the network in evaluation mode; one for each model where they have different numbers of outputs.
        graph: its graph, likewise.
        models: the variables of each model.
        maps: one map per node to merge, for each model.
        train_apply: the network in training mode, likewise, if it has statistics to re-estimate: then call
            `reset_statistics(headed.train_apply, headed.variables, batches)`.

    Raises:
        ValueError: another number of maps than of models, maps of different nodes, or no maps at all; a cut through a residual
            stream: a tensor that makes merged units from units that are not (both nodes are named).
    """
    graphs, merged = graphs_of(graph, models), {name for m in maps for name in m}
    if len(maps) != len(models) or not merged or any(m.keys() != merged for m in maps):
        raise ValueError(
            f"multi_head needs maps of the same nodes for each of {len(models)} models: got {[sorted(m) for m in maps]}"
        )
    moved = [transport(g, m, model) for g, m, model in zip(graphs, maps, models, strict=True)]
    shared = _made(graphs[0], merged)
    average = jax.tree.map(lambda *leaves: _mean(leaves), *(_part(model, shared, keep=True) for model in moved))
    variables = {"shared": average, "heads": [_part(model, shared, keep=False) for model in moved]}
    widths = {name: m.push.shape[-2] for name, m in maps[0].items()}

    def resized(function: Function | Sequence[Function]) -> tuple[Function, ...]:
        each = (function,) * len(models) if callable(function) else function
        return tuple(resize(f, g, v, widths) for f, g, v in zip(each, graphs, moved, strict=True))

    training = None if train_apply is None else MultiHeadTraining(resized(train_apply))
    return Headed(MultiHead(resized(apply)), variables, training, shared)


def _made(graph: Graph, merged: set[str]) -> tuple[str, ...]:
    """The tensors that make units of merged nodes and nothing else."""
    found = []
    for path, labels in graph.axes.items():
        axes = [axis for label in labels for axis in node_axes(label)]
        made, read = ({axis.node for axis in axes if axis.role == role} for role in ("out", "in"))
        if made and made <= merged:
            if own := sorted(read - merged):
                raise ValueError(
                    f"{path!r} makes units of {min(made)!r}, which is merged, from {own[0]!r}, which is not: cut elsewhere"
                )
            found.append(path)
    return tuple(sorted(found))


def _mean(leaves: Sequence[Array]) -> Array:
    total = sum((x.astype(jnp.float32) for x in leaves[1:]), leaves[0].astype(jnp.float32))
    return (total / len(leaves)).astype(leaves[0].dtype)


def _part(tree: PyTree, paths: Sequence[str], *, keep: bool) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, x: x if (path_name(path) in paths) == keep else None, tree)


def _joined(shared: PyTree, head: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: b if a is None else a, shared, head, is_leaf=_is_none)


def _only(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, old: None if old is None else x, tree, like, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None
