"""REPAIR: the pre-activations of a merged network get back the means and deviations that its parents have."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.base import check_finite
from alignment.biases import channel_biases, made_nodes
from alignment.checks import check_list
from alignment.graph import Graph, PyTree, flatten, path_name
from alignment.sites import Site
from alignment.taps import capture
from npmerge.batches import measured

DEAD = 1e-5
"""A channel is dead if its deviation is below this share of the largest that its site has in the parents."""


class Repaired(NamedTuple):
    """What `repair` returns, sites by name.

    Attributes:
        variables: the repaired network.
        corrected: sites whose outputs now have the means and deviations asked for.
        scaled: sites without a bias: the deviations are those asked for, the means could not be corrected.
        left: sites that stayed as they were, with the reason: also those whose channels are all dead.
    """

    variables: PyTree
    corrected: tuple[str, ...]
    scaled: tuple[str, ...]
    left: dict[str, str]


class _Moments(NamedTuple):
    """Of the outputs of a site: samples, mean and sum of squared deviations of each channel (*copies, columns)."""

    samples: Array
    mean: Array
    squares: Array


def repair(
    apply: Callable[..., PyTree],
    graph: Graph,
    merged: PyTree,
    models: Sequence[PyTree],
    batches: Iterable[tuple],
    *,
    weights: Sequence[float] | None = None,
) -> Repaired:
    """Rescale each channel of a merged network as its parents have it (Jordan et al. 2023, "REPAIR").

    The average of networks has channels that vary less than theirs, more so with every layer. At every linear site, before
    the nonlinearity and with the bias, each channel gets the mean sum_k w_k mean_k and the deviation sum_k w_k std_k of the
    parents: its column of the weight is scaled by r = std* / std and the bias becomes mean* - r mean(inputs @ column). One site
    after the other, in the network's order, so that each is measured behind those that were corrected: exact, for one pass
    over the batches for each site and one for each parent. Channels that do not vary are left alone, and so is what only
    makes the network's outputs.

    Networks with BatchNorm hold their statistics themselves: there `reset_statistics` does this better, alone or afterwards.

    Args:
        apply: the network in evaluation mode, which the graph was traced from.
        graph: its graph.
        merged: the variables of the merged network.
        models: its parents, aligned.
        batches: `(inputs, targets)`; targets are not read. They are gone through several times.
        weights: the share of each parent, 1 / len(models) by default.

    Raises:
        ValueError: no batches, no models, variables of another structure, another number of weights, NaN or infinity.
    """
    check_list(models)
    for name, variables in (("the merged network", merged), *((f"model {k}", model) for k, model in enumerate(models))):
        graph.check(variables)
        check_finite(variables, name)
    shares = _shares(weights, len(models))
    inputs = [x for x, *_ in measured(batches)]
    if not inputs:
        raise ValueError("repair needs data: got no batches")
    left = _left_alone(graph)
    sites = {site.name: site for site in graph.sites if site.name not in left}
    added = {name: path for name, path in channel_biases(apply, graph, merged, inputs[0]).items() if name in sites}
    moments = functools.partial(_moments, apply, graph, tuple(sites), inputs)
    parents = [(moments(model), flatten(model)) for model in models]
    for name, site in sites.items():
        now, target = moments(merged)[name], _target(name, added.get(name), parents, shares)
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


def _target(name: str, bias: str | None, parents: Sequence[tuple], shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, with the bias, and deviation of each channel (*copies, columns) over the parents."""
    means, deviations = [], []
    for moments, leaves in parents:
        mean = np.asarray(moments[name].mean, np.float64)
        means.append(mean if bias is None else mean + np.asarray(leaves[bias], np.float64).reshape(mean.shape))
        deviations.append(_deviation(moments[name]))
    return np.tensordot(shares, means, 1), np.tensordot(shares, deviations, 1)


def _unmeasured(now: _Moments, target: tuple[np.ndarray, np.ndarray]) -> str | None:
    """Why a site cannot be corrected, if it cannot."""
    before = _deviation(now)
    if not all(np.isfinite(x).all() for x in (now.mean, before, *target)):
        return "its outputs are not finite"
    return None if _alive(before, target[1]).any() else "none of its channels varies"


def _alive(
    now: Float[np.ndarray, "*copies columns"], wanted: Float[np.ndarray, "*copies columns"]
) -> Bool[np.ndarray, "*copies columns"]:
    return now > DEAD * wanted.max(initial=0)


def _corrected(site: Site, bias: str | None, variables: PyTree, now: _Moments, target: tuple[np.ndarray, np.ndarray]) -> PyTree:
    mean, deviation = target
    before = _deviation(now)
    alive = _alive(before, deviation)
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
