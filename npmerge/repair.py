"""REPAIR: the pre-activations of a merged network get back the means and deviations that its parents have."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.activations.taps import capture
from alignment.biases import channel_biases, made_nodes
from alignment.checks import check_kinds, check_list
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree, flatten, path_name
from alignment.maps import Maps, check_maps
from alignment.per_model import functions_of, graphs_of
from alignment.resizing.resize import resize, widths_of
from alignment.site_maps import outputs_moved
from alignment.sites import Site
from alignment.tracing.trace import trace
from npmerge.batches import measured

Apply = Callable[..., PyTree]

DEAD = 1e-5
"""A channel is dead if its deviation is below this share of the largest that its site has in the parents."""
ROUNDING = 1e-6
"""And if it is below this share of the largest mean: so much a constant seems to vary in float32."""


class Repaired(NamedTuple):
    """What `repair` returns, sites by name.

    Attributes:
        variables: the repaired network.
        corrected: sites whose outputs now have the means and deviations asked for.
        scaled: sites without a bias: the deviations are those asked for, the means could not be corrected.
        left: sites that stayed as they were, with the reason: also those whose channels are all dead.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> model = {"w": jnp.eye(2), "u": jnp.eye(2)}
        >>> found = nm.repair(apply, nm.trace(apply, model, jnp.eye(2)), model, [model], [(jnp.eye(2), None)])
        >>> found.corrected, found.scaled, sorted(found.left)  # without a bias only deviations are corrected
        ((), ('w',), ['u'])
    """

    variables: PyTree
    corrected: tuple[str, ...]
    scaled: tuple[str, ...]
    left: dict[str, str]


class _Parent(NamedTuple):
    """What is known of a parent's sites, and how their outputs come into the units of the merged network."""

    moments: "dict[str, _Moments]"
    leaves: dict[str, Array]
    pushed: Callable[[str, np.ndarray], np.ndarray]


class _Moments(NamedTuple):
    """Of the outputs of a site: samples, mean and sum of squared deviations of each channel (*copies, columns)."""

    samples: Array
    mean: Array
    squares: Array


def repair(
    apply: Apply | Sequence[Apply],
    graph: Graph | Sequence[Graph],
    merged: PyTree,
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    *,
    weights: Sequence[float] | None = None,
    maps: Sequence[Maps] | None = None,
) -> Repaired:
    """Rescale each channel of a merged network as its parents have it (Jordan et al. 2023, "REPAIR").

    The average of networks has channels that vary less than theirs, more so with every layer. At every linear site, before
    the nonlinearity and with the bias, each channel gets the mean sum_k w_k mean_k and the deviation sum_k w_k std_k of the
    parents: its column of the weight is scaled by r = std* / std and the bias becomes mean* - r mean(inputs @ column). One site
    after the other, in the network's order, so that each is measured behind those that were corrected: exact, for one pass
    over the batches for each site and one for each parent. Channels that do not vary are left alone, and so is what only
    makes the network's outputs.

    A merged network of other widths is given with the maps that made it, and `models` are its parents as they were before:
    the targets are then mean_k push_k mean_k and mean_k push_k std_k. So a merged unit gets the mean of the units that came
    into it, and one that was kept separate what it has in its own network.

    Networks with BatchNorm hold their statistics themselves: there `reset_statistics` does this better, alone or afterwards.

    Args:
        apply: the network in evaluation mode, which the graph was traced from. For parents of different widths one for each,
            as for graph.
        graph: its graph.
        merged: the variables of the merged network.
        models: its parents, aligned; with `maps`, as they were before.
        batches: `(inputs, targets)`; targets are not read. They are gone through several times.
        weights: the share of each parent, 1 / len(models) by default.
        maps: for each model those that brought it into the units of the merged network, as an `Alignment` returns them, where
            that has other widths. Its shares are in the maps, so there are no weights.

    Raises:
        ValueError: no batches, no models, variables of another structure, another number of weights or maps, weights and maps,
            maps with negative entries (a deviation does not follow those), NaN or infinity.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"] + v["b"], 0) @ v["u"]
        >>> models = [{"w": jnp.eye(2), "b": k * jnp.ones((1, 2)), "u": jnp.eye(2)} for k in (0.0, 2.0)]
        >>> graph, x = nm.trace(apply, models[0], jnp.eye(2)), jnp.array([[1.0, 0.0], [3.0, 4.0]])
        >>> shrunk = {"w": 0.5 * jnp.eye(2), "b": jnp.zeros((1, 2)), "u": jnp.eye(2)}  # half of the deviation
        >>> found = nm.repair(apply, graph, shrunk, models, [(x, None)])
        >>> print(found.variables["w"].diagonal().round(2), found.variables["b"].round(2))
        [1. 1.] [[1. 1.]]
    """
    check_list(models)
    shares = _shares(weights, len(models))
    graphs, applies = graphs_of(graph, models), functions_of(apply, models)
    for name, variables in (("the merged network", merged), *((f"model {k}", model) for k, model in enumerate(models))):
        check_finite(variables, name)
    for own, model in zip(graphs, models, strict=True):
        own.check(model)
    inputs = [x for x, *_ in measured(batches)]
    if not inputs:
        raise ValueError("repair needs data: got no batches")
    run, graph = applies[0], graphs[0]
    if maps is not None:
        run = resize(applies[0], graphs[0], merged, _widths(graphs, maps, merged, weights))
        graph = trace(run, merged, inputs[0])
    graph.check(merged)
    left = _left_alone(graph)
    sites = {site.name: site for site in graph.sites if site.name not in left}
    added = {name: path for name, path in channel_biases(run, graph, merged, inputs[0]).items() if name in sites}
    parents = [
        _Parent(
            _moments(applies[k], graphs[k], tuple(sites), inputs, model),
            flatten(model),
            (lambda name, x: x) if maps is None else functools.partial(_pushed, graphs[k], maps[k], graph),
        )
        for k, model in enumerate(models)
    ]
    for name, site in sites.items():
        try:
            target = _target(name, added.get(name), parents, shares)
        except ValueError as error:  # maps do not reach what this site makes
            left[name] = str(error)
            continue
        now = _moments(run, graph, tuple(sites), inputs, merged)[name]
        if reason := _unmeasured(now, target):
            left[name] = reason
        else:
            merged = _corrected(site, added.get(name), merged, now, target)
    done = [name for name in sites if name not in left]
    return Repaired(merged, tuple(n for n in done if n in added), tuple(n for n in done if n not in added), left)


def _shares(weights: Sequence[float] | None, count: int) -> np.ndarray:
    if not count:
        raise ValueError("repair needs the models that were merged, got none")
    shares = np.full(count, 1 / count) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (count,) or not np.isfinite(shares).all():
        raise ValueError(f"expected {count} finite weights, one for each model, got {weights}")
    return shares


def _widths(graphs: Sequence[Graph], maps: Sequence[Maps], merged: PyTree, weights: Sequence[float] | None) -> dict[str, int]:
    """The widths that maps lead to. Raises ValueError for maps that do not fit."""
    check_list(maps, "maps")
    if weights is not None:
        raise ValueError("repair takes weights or maps, not both: the shares of the parents are in the maps")
    if len(maps) != len(graphs):
        raise ValueError(f"expected maps for each of {len(graphs)} models, got {len(maps)}")
    for k, (graph, own) in enumerate(zip(graphs, maps, strict=True)):
        check_kinds(f"the maps of model {k} must be node -> NodeMap", (own, Mapping))
        check_finite({name: (m.push, m.pull) for name, m in own.items()}, f"the maps of model {k}")
        check_maps(graph, own)
        if negative := [name for name, m in own.items() if (np.asarray(m.push) < 0).any()]:
            raise ValueError(
                f"the map of {negative[0]!r} in model {k} has negative entries: the deviations of what it mixes are unknown. "
                "Transport the models and repair without maps"
            )
    widths = {name: m.push.shape[-2] for name, m in maps[0].items()}
    for name, width in widths_of(graphs[0], merged, widths).items():
        if width != widths.get(name, graphs[0].nodes[name].size):
            raise ValueError(f"the merged network has {width} units of {name!r}, the maps lead to {widths.get(name)}")
    return widths


def _pushed(graph: Graph, maps: Maps, new: Graph, name: str, x: np.ndarray) -> np.ndarray:
    """Rows (*copies, rows, columns) of a site's outputs in a parent, in the units of the merged network."""
    site = next(site for site in graph.sites if site.name == name)
    return np.asarray(outputs_moved(graph, maps, site, jnp.asarray(x, jnp.float32), resized=new), np.float64)


def _left_alone(graph: Graph) -> dict[str, str]:
    uses = Counter(site.path for site in graph.sites)
    reasons = {}
    for site in graph.sites:
        if uses[site.path] > 1:
            reasons[site.name] = "its weight is used at several sites"
        elif site.stacked:
            reasons[site.name] = "it is inside a loop"
        elif not made_nodes(graph, site):
            reasons[site.name] = "it makes no node's features: the network's outputs, or what a symmetry does not reach"
    return reasons


def _moments(
    apply: Callable, graph: Graph, sites: tuple[str, ...], inputs: Sequence[Array], variables: PyTree
) -> dict[str, _Moments]:
    """Over all batches, combined pairwise (Chan, Golub and LeVeque 1979)."""
    return functools.reduce(_combined, (_of_batch(apply, graph, sites, variables, x) for x in inputs))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _of_batch(apply: Callable, graph: Graph, sites: tuple[str, ...], variables: PyTree, inputs: Array) -> dict[str, _Moments]:
    found = capture(apply, graph, variables, inputs, nodes=(), sites=sites).sites
    outputs = {name: features.outputs.astype(jnp.float32) for name, features in found.items()}
    return {name: _Moments(jnp.float32(y.shape[-2]), y.mean(-2), y.var(-2) * y.shape[-2]) for name, y in outputs.items()}


@jax.jit
def _combined(a: dict[str, _Moments], b: dict[str, _Moments]) -> dict[str, _Moments]:
    return {name: _pair(a[name], b[name]) for name in a}


def _pair(a: _Moments, b: _Moments) -> _Moments:
    count, shift = a.samples + b.samples, b.mean - a.mean
    squares = a.squares + b.squares + jnp.square(shift) * (a.samples * b.samples / count)
    return _Moments(count, a.mean + shift * (b.samples / count), squares)


def _deviation(m: _Moments) -> Float[np.ndarray, "*copies columns"]:
    return np.sqrt(np.asarray(m.squares, np.float64) / float(m.samples))


def _target(name: str, bias: str | None, parents: Sequence[_Parent], shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, with the bias, and deviation of each channel (*copies, columns) over the parents."""
    found = []
    for parent in parents:
        mean = np.asarray(parent.moments[name].mean, np.float64)
        if bias is not None:
            mean = mean + np.asarray(parent.leaves[bias], np.float64).reshape(mean.shape)
        found.append(parent.pushed(name, np.stack([mean, _deviation(parent.moments[name])], -2)))
    both = np.tensordot(shares, found, 1)
    return both[..., 0, :], both[..., 1, :]


def _unmeasured(now: _Moments, target: tuple[np.ndarray, np.ndarray]) -> str | None:
    """Why a site cannot be corrected, if it cannot."""
    before = _deviation(now)
    if not all(np.isfinite(x).all() for x in (now.mean, before, *target)):
        return "its outputs are not finite"
    return None if _alive(now, target[1]).any() else "none of its channels varies"


def _alive(now: _Moments, wanted: Float[np.ndarray, "*copies columns"]) -> Bool[np.ndarray, "*copies columns"]:
    least = max(DEAD * wanted.max(initial=0), ROUNDING * np.abs(now.mean).max(initial=0))
    return _deviation(now) > least


def _corrected(site: Site, bias: str | None, variables: PyTree, now: _Moments, target: tuple[np.ndarray, np.ndarray]) -> PyTree:
    mean, deviation = target
    before = _deviation(now)
    alive = _alive(now, deviation)
    ratio = np.where(alive, deviation / np.where(alive, before, 1.0), 1.0)
    leaves = flatten(variables)
    new = {site.path: _scaled(site, leaves[site.path], jnp.asarray(ratio, jnp.float32))}
    if bias is not None:
        shift = np.where(alive, mean - ratio * np.asarray(now.mean), np.asarray(leaves[bias], np.float64).reshape(mean.shape))
        new[bias] = jnp.asarray(shift.reshape(np.shape(leaves[bias])), leaves[bias].dtype)
    return jax.tree_util.tree_map_with_path(lambda path, x: new.get(path_name(path), x), variables)


@functools.partial(jax.jit, static_argnums=0)
def _scaled(site: Site, leaf: Array, ratio: Float[Array, "*copies columns"]) -> Array:
    return site.replaced(leaf, site.matrix(leaf).astype(jnp.float32) * ratio[..., None, :])
