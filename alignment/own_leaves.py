"""What networks of one body keep to themselves when their outputs are not of one kind: heads."""

from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.graph import Graph, PyTree, flatten, path_name
from alignment.labels import node_axes


def own_leaves(graph: Graph, models: Sequence[PyTree], *, heads: bool = False) -> tuple[str, ...]:
    """The leaves that make no unit of any node, by path, where the networks have them in several shapes: their heads.

    Args:
        graph: of any of the networks, which have the same nodes.
        models: their variables.
        heads: whether networks keep them whatever their shapes.

    Returns:
        Their paths; none for networks whose leaves have the same shapes, unless `heads`.

    Raises:
        ValueError: variables of several structures, or a leaf of several shapes that makes units.
    """
    every = [{path: np.shape(x) for path, x in flatten(model).items()} for model in models]
    for k, shapes in enumerate(every):
        if odd := sorted(shapes.keys() ^ every[0].keys()):
            raise ValueError(f"model {k} is of another structure than model 0: only one of them has the leaf {odd[0]!r}")
    different = [path for path in every[0] if len({shapes[path] for shapes in every}) > 1]
    own = tuple(path for path in every[0] if not _made(graph, path))
    for path in different:
        if path not in own:
            found = ", ".join(str(shapes[path]) for shapes in every)
            raise ValueError(
                f"{path!r}, which makes units of {_made(graph, path)[0]!r}, has shapes {found}: only heads may differ"
            )
    return own if different or heads else ()


def with_leaves(tree: PyTree, leaves: Mapping[str, Array]) -> PyTree:
    """A tree with these leaves, by path, in place of its own."""
    return jax.tree_util.tree_map_with_path(lambda path, x: leaves.get(path_name(path), x), tree)


def without(models: Sequence[PyTree], paths: Collection[str]) -> list[PyTree]:
    """Networks with zeros for these leaves, in the shapes of the first: they agree with nothing and disagree with nothing."""
    zeros = {path: jnp.zeros_like(x) for path, x in flatten(models[0]).items() if path in paths}
    return [with_leaves(model, zeros) for model in models] if zeros else list(models)


def _made(graph: Graph, path: str) -> list[str]:
    return [axis.node for label in graph.axes[path] for axis in node_axes(label) if axis.role == "out"]
