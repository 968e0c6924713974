"""How maps of nodes act on what a linear site reads and writes.

`transport` moves the weights of a network; the features that its sites see move with them: for every map that leaves the
function as it is, `inputs_moved` and `outputs_moved` of one network's features are the features of the transported one.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from alignment.blocks import Bare, each_block
from alignment.graph import Graph
from alignment.labels import AxisLabel, Cases, Fixed, NodeAxis, Part, Product, Segments, node_axes
from alignment.maps import HIGHEST, NodeMap, carried, check_maps, factor, replaced
from alignment.sites import Site

Side = Literal["inputs", "outputs"]
SIDES: tuple[Side, Side] = ("inputs", "outputs")
Move = Callable[[Array], Array]


class Picked(NamedTuple):
    """A map whose new units are old ones: `new[i] = weight[i] * old[units[i]]`; a weight of None is one everywhere."""

    units: Int[Array | np.ndarray, " new"]
    weight: Float[Array | np.ndarray, " new"] | None


class PickedMap(NamedTuple):
    """A `NodeMap` as two picks: of features with `push`, of their duals with `pull` transposed."""

    push: Picked
    pull: Picked


FeatureMaps = Mapping[str, NodeMap | PickedMap]


def inputs_moved(
    graph: Graph, maps: FeatureMaps, site: Site, x: Float[Array, "*copies samples rows"], *, resized: Graph | None = None
) -> Float[Array, "*new_copies samples new_rows"]:
    """The inputs that a site has in the transported network, from those that it has in the network.

    Rows of a weight that read a node (role `in`, contracted with `pull`) meet features, which are contracted with `push`.

    Args:
        graph: the graph that the features were captured with.
        maps: a map for each node that moves, as for `transport`; `picked` makes the usual ones fast.
        site: one of its sites.
        x: features as `capture` returns them, of any number of samples.
        resized: the graph of the network with the new widths, where they differ.

    Raises:
        ValueError: for maps that do not fit the graph, a site whose features cannot be told from its weight, or maps that
            change the widths without `resized`.
    """
    return moved(graph, maps, site, "inputs", resized)(x)


def outputs_moved(
    graph: Graph, maps: FeatureMaps, site: Site, y: Float[Array, "*copies samples columns"], *, resized: Graph | None = None
) -> Float[Array, "*new_copies samples new_columns"]:
    """The outputs that a site has in the transported network: its columns move as the features that they are.

    Arguments and errors are those of `inputs_moved`.
    """
    return moved(graph, maps, site, "outputs", resized)(y)


def moved(graph: Graph, maps: FeatureMaps, site: Site, side: Side, resized: Graph | None = None) -> Move:
    """`inputs_moved` or `outputs_moved` of one site as a function of the features. Raises ValueError as they do."""
    check_maps(graph, {name: m for name, m in maps.items() if not isinstance(m, PickedMap)})
    old = arranged(graph, site.name, side)
    new = old if resized is None else arranged(resized, site.name, side)
    if old is new and not any(axis.node in maps for label in old.labels for axis in node_axes(label)):
        return lambda x: x

    def move(maps: FeatureMaps, x: Array) -> Array:
        found = each_block([Fixed(len(x)), *old.labels], old.spread(x), functools.partial(_act, graph, maps))
        got, expected = math.prod(found.shape[1:]), math.prod(new.shape)
        if got != expected:  # the axes may differ: other labels may open others, in the same order
            raise ValueError(
                f"the {side} of site {site.name!r} have {got} features once moved, expected {expected}: "
                "maps that change widths need resized=, the graph of the resized network"
            )
        return new.gathered(found)

    here = {axis.node: maps[axis.node] for label in old.labels for axis in node_axes(label) if axis.node in maps}
    picks = {name: m for name, m in here.items() if isinstance(m, PickedMap)}
    if len(picks) == len(here):
        return lambda x: _at_once(move, picks, x.astype(jnp.float32))
    return lambda x: jnp.moveaxis(move(maps, jnp.moveaxis(x.astype(jnp.float32), -2, 0)), 0, -2)


def _at_once(move: Callable[[FeatureMaps, Array], Array], maps: Mapping[str, PickedMap], x: Array) -> Array:
    """Where every new feature is an old one: the numbers of the features are moved, then all features with one gather."""
    shape, samples = (*x.shape[:-2], x.shape[-1]), x.shape[-2]
    bare = {name: PickedMap(*(pick._replace(weight=None) for pick in m)) for name, m in maps.items()}
    (places,) = move(bare, jnp.arange(math.prod(shape)).reshape(1, *shape))
    weight = move(maps, jnp.ones((1, *shape), jnp.float32)).reshape(1, -1)
    flat = jnp.moveaxis(x, -2, 0).reshape(samples, -1)
    taken = flat.at[:, places.ravel()].get(mode="promise_in_bounds") * weight
    return jnp.moveaxis(taken.reshape(samples, *places.shape), 0, -2)


def picked(maps: Mapping[str, NodeMap]) -> dict[str, NodeMap | PickedMap]:
    """The same maps, those as `PickedMap` whose new units are old ones (permutations, partial matchings). Host code."""
    found: dict[str, NodeMap | PickedMap] = {}
    for name, m in maps.items():
        push, pull = _picked(np.asarray(m.push)), _picked(np.asarray(m.pull).swapaxes(-1, -2))
        found[name] = m if push is None or pull is None else PickedMap(push, pull)
    return found


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The features of a site on the axes of its weight's leaf: those axes that tell features, or copies, apart.

    Attributes:
        labels: one for each axis; products are opened. The nodes of rows have the role of the features that they meet.
        shape: the sizes of the axes.
        places: where each feature stands, raveled.
    """

    labels: tuple[AxisLabel, ...]
    shape: tuple[int, ...]
    places: Int[np.ndarray, "*copies features"]

    def spread(self, x: Float[Array, "samples *copies features"]) -> Float[Array, "samples ..."]:
        """Features on these axes; zero where the site has none (a leaf of which it reads a slice)."""
        flat, places = x.reshape(len(x), -1), self.places.ravel()
        size = math.prod(self.shape)
        if len(places) < size:
            flat = jnp.zeros((len(x), size), x.dtype).at[:, places].set(flat)
        elif not np.array_equal(places, np.arange(size)):
            flat = flat[:, np.argsort(places)]
        return flat.reshape(len(x), *self.shape)

    def gathered(self, x: Float[Array, "samples ..."]) -> Float[Array, "samples *copies features"]:
        """Back from these axes, in the order of the site's matrix."""
        flat, places = x.reshape(len(x), -1), self.places.ravel()
        if len(places) < flat.shape[1] or not np.array_equal(places, np.arange(len(places))):
            flat = flat[:, places]
        return flat.reshape(len(x), *self.places.shape)


@functools.lru_cache(maxsize=4096)
def arranged(graph: Graph, name: str, side: Side) -> Arrangement:
    """How the features of a site stand on the axes of its leaf. Raises ValueError where rows and columns share an axis."""
    site = next(site for site in graph.sites if site.name == name)
    with jax.ensure_compile_time_eval():
        numbers = np.asarray(site.places(graph.shapes[site.path]))
    labels = _opened(graph.axes[site.path])
    sizes = tuple(label.size for label in labels)
    corner = numbers[(0,) * (numbers.ndim - 2)]
    kept, others, copies = numbers[..., 0], corner[0], numbers[..., 0, 0]
    if side == "outputs":
        kept, others = numbers[..., 0, :], corner[:, 0]
    found = []
    for d, label in enumerate(labels):
        mine, theirs, copied = (np.unravel_index(n, sizes)[d] for n in (kept, others, copies))
        if _varies(mine) and _varies(theirs) and list(node_axes(label)):
            raise ValueError(f"axis {label} of {site.path!r} holds both rows and columns of site {name!r}")
        dual = side == "inputs" and not _varies(copied)
        found.append(_axis(_dual(label) if dual else label, mine, seen=not _varies(theirs)))
    shape = tuple(label.size for label, _ in found)
    places = np.ravel_multi_index([np.broadcast_to(at, kept.shape) for _, at in found], shape)
    return Arrangement(tuple(label for label, _ in found), shape, places)


def _axis(label: AxisLabel, at: np.ndarray, *, seen: bool) -> tuple[AxisLabel, np.ndarray]:
    """An axis of the leaf as the features see it, and where each of them stands on it."""
    if isinstance(label, Fixed):
        there, places = np.unique(at, return_inverse=True)
        return replace(label, size=len(there)), places.reshape(at.shape)
    return (label, at) if _varies(at) and seen else (Fixed(1), np.zeros_like(at))


def _varies(at: np.ndarray) -> bool:
    return bool(np.any(at != at.flat[0]))


def _opened(labels: Sequence[AxisLabel]) -> list[AxisLabel]:
    """Labels with the factors of products in their places."""
    return [x for label in labels for x in (_opened(label.factors) if isinstance(label, Product) else [label])]


def _dual(label: AxisLabel) -> AxisLabel:
    """The label of what a weight with this label is contracted with."""
    match label:
        case NodeAxis(node, size, role):
            return NodeAxis(node, size, "in" if role == "out" else "out")
        case Product(factors):
            return Product(tuple(map(_dual, factors)))
        case Segments(parts):
            return Segments(tuple(Part(_dual(part.label), part.intervals) for part in parts))
        case Cases(index, options):
            return Cases(index, tuple(map(_dual, options)))
    return label


def _act(graph: Graph, maps: FeatureMaps, labels: Sequence[Bare], x: Array) -> Array:
    """As `transport` acts on a block of a weight."""
    for d, label in carried(graph, labels, maps):
        m = maps[label.node]
        if isinstance(m, PickedMap):
            x = _pick(m.push if label.role == "out" else m.pull, x, d)
        else:
            matrix, axes = factor(graph, m, labels, d)
            matrix = jnp.asarray(matrix).astype(jnp.float32)
            x = jnp.einsum(matrix, axes, x, [*range(x.ndim)], replaced(d, x.ndim), precision=HIGHEST)
    return x


def _pick(which: Picked, x: Array, d: int) -> Array:
    taken = jnp.take(x, which.units, axis=d)
    if which.weight is None:
        return taken
    return taken * which.weight.reshape([-1 if k == d else 1 for k in range(x.ndim)])


def _picked(matrix: np.ndarray) -> Picked | None:
    """A matrix (new, old) without two entries in one row; None for another, or one with copies."""
    if matrix.ndim > 2 or (np.count_nonzero(matrix, axis=1) > 1).any():
        return None
    index = np.abs(matrix).argmax(1)
    weight = matrix[np.arange(len(matrix)), index].astype(np.float32)
    return Picked(index, None if (weight == 1).all() else weight)
