"""Which leaf is added to what a weight makes: the bias of each linear site."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Var

from alignment.graph import Graph, PyTree, flatten
from alignment.labels import AxisLabel, node_axes
from alignment.program import nested
from alignment.sites import Site

SHAPES = {"transpose", "reshape", "squeeze", "broadcast_in_dim", "convert_element_type", "copy", "stop_gradient"}


class _Leaf(NamedTuple):
    path: str


class _Made(NamedTuple):
    site: str


def biases(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree) -> dict[str, str]:
    """For each site whose outputs, before anything else is done with them, have a leaf added: the path of that leaf.

    It is read off the jaxpr, whatever the leaf is called. A leaf added at several sites is the bias of none.

    Args:
        apply: the function that the graph was traced from.
        graph: its graph.
        variables: parameters and statistics with the structure that was traced; shapes will do.
        inputs: a batch.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    known = [*map(_Leaf, flatten(variables)), *(None for _ in jax.tree.leaves(inputs))]
    found: list[tuple[str, str]] = []
    _follow(closed.jaxpr, known, (), {site.location: site.name for site in graph.sites}, found)
    first = dict(reversed(found))
    sites, leaves = Counter(site for site, _ in set(found)), Counter(first.values())
    return {site: leaf for site, leaf in first.items() if sites[site] == 1 and leaves[leaf] == 1}


def channel_biases(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree) -> dict[str, str]:
    """Those of `biases` with one number for each channel, in the order of the channels; no table of positions."""
    sites = {site.name: site for site in graph.sites}
    found = biases(apply, graph, variables, *inputs)
    return {name: path for name, path in found.items() if _fits(graph, sites[name], path)}


def made_nodes(graph: Graph, site: Site) -> list[str]:
    """The nodes that a site makes: those on the axes of its weight that become columns or copies."""
    shape, found = graph.shapes[site.path], []
    for d, label in enumerate(graph.axes[site.path]):
        place = np.arange(shape[d]).reshape(-1, *[1] * (len(shape) - d - 1))
        matrix = np.broadcast_to(place, shape).ravel()[np.asarray(site.places(shape))]
        if np.any(matrix != matrix[(0,) * (matrix.ndim - 2)][:, :1]):
            found += _out(label)
    return found


def _fits(graph: Graph, site: Site, path: str) -> bool:
    matrix = jax.eval_shape(site.matrix, jax.ShapeDtypeStruct(graph.shapes[site.path], jnp.float32))
    made = [node for label in graph.axes[path] for node in _out(label)]
    return math.prod(graph.shapes[path]) * matrix.shape[-2] == matrix.size and made == made_nodes(graph, site)


def _out(label: AxisLabel) -> list[str]:
    return [axis.node for axis in node_axes(label) if axis.role == "out"]


def _follow(jaxpr: Jaxpr, known: Sequence, prefix: tuple[int, ...], sites: dict, found: list) -> list:
    """What the outputs of a jaxpr are: a leaf, what a site makes, or None. Loops are not looked into."""
    env = dict(zip(jaxpr.invars, known, strict=True))

    def read(v: object) -> _Leaf | _Made | None:
        return env.get(v) if isinstance(v, Var) else None

    for index, eqn in enumerate(jaxpr.eqns):
        here, name = (*prefix, index), eqn.primitive.name
        ins = [read(v) for v in eqn.invars]
        outs: list = [None] * len(eqn.outvars)
        if here in sites:
            outs = [_Made(sites[here])]
        elif (inner := nested(eqn)) is not None:
            outs = _follow(inner.jaxpr, ins, here, sites, found)
        elif name in SHAPES:
            outs = ins[:1]
        else:
            match name, ins:
                case "add", ([_Made(site), _Leaf(path)] | [_Leaf(path), _Made(site)]):
                    found.append((site, path))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]
