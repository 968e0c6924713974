"""What is known of a least-squares merge before its data are looked at."""

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from alignment.entangled import Entangled, entangled
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree, Signature, as_shapes, flatten, signature
from alignment.maps import Maps, NodeMap, identity, is_permutation, transport
from alignment.own_leaves import own_leaves, without
from alignment.per_model import functions_of, graphs_of
from alignment.resizing.resize import resize
from alignment.site_maps import SIDES, FeatureMaps, arranged, moved, picked
from alignment.sites import Site
from alignment.tracing.trace import trace
from npmerge.arithmetic import mean_of
from npmerge.heads.multi_head import Headed, multi_head
from npmerge.least_squares.targets import Apply, Networks, Targets
from npmerge.linear_layers import Layers, layers_of
from npmerge.normalisation import TrainApply, reset_some


class Prepared(NamedTuple):
    """A merge before its layers are solved.

    Attributes:
        targets: what its sites should make, as a function of `networks`.
        networks: the originals.
        start: the merged network to start from.
        support: positive where a leaf of it may be other than zero.
        left: sites that cannot be solved for, with the reason.
        train_apply: the merged network in training mode, None where its statistics are not re-estimated.
        headed: the merged network with the heads of all originals, where they have their own: all else is then the network that
            has the first head.
    """

    targets: Targets
    networks: Networks
    start: PyTree
    support: PyTree
    left: dict[str, str]
    train_apply: TrainApply | None
    headed: Headed | None

    @property
    def layers(self) -> Layers:
        """Those of the merged network."""
        return self.targets.layers

    @property
    def names(self) -> tuple[str, ...]:
        """The sites to solve for, in the order of the network."""
        return tuple(name for name in self.layers.sites if name not in self.left)

    def allowed(self, name: str) -> Bool[np.ndarray, "*copies rows columns"]:
        """The blocks of a site: entry (i, j) may move where some model has units in row i and in column j."""
        site = self.layers.sites[name]
        leaf = np.asarray(flatten(self.support)[site.path])
        return leaf.ravel()[np.asarray(site.places(leaf.shape))] > 0

    def renewed(self, variables: PyTree, batches: Iterable[tuple], wanted: Collection[str] | None = None) -> PyTree:
        """A merged network with statistics that belong to its weights, where they are re-estimated: those wanted, or all."""
        return variables if self.train_apply is None else reset_some(self.train_apply, variables, batches, wanted)


def prepared(
    apply: Apply | Sequence[Apply],
    graph: Graph | Sequence[Graph],
    models: Sequence[PyTree],
    maps: Sequence[Maps],
    inputs: PyTree,
    *,
    merged: PyTree | None = None,
    own_inputs: bool = False,
    train_apply: TrainApply | Sequence[TrainApply] | None = None,
    heads: bool = False,
) -> Prepared:
    """Everything that is known before the data are looked at. Raises ValueError for what does not belong together."""
    if not models:
        raise ValueError("least squares needs the models that are merged, got none")
    for k, model in enumerate(models):
        check_finite(model, f"model {k}")
    graphs = graphs_of(graph, models)
    applies = (apply,) * len(models) if callable(apply) else tuple(apply)
    if len(maps) != len(models) or len(applies) != len(models):
        raise ValueError(f"expected maps and a function for each of {len(models)} models: got {len(maps)} and {len(applies)}")
    moved_models = [transport(g, m, v) for g, m, v in zip(graphs, maps, models, strict=True)]
    widths = _widths(graphs, maps)
    own = own_leaves(graphs[0], moved_models, heads=heads)
    headed = _headed(applies, graphs, models, maps, train_apply) if own else None
    average = mean_of(moved_models) if headed is None else headed.apply.networks(headed.variables)[0]
    start = average if merged is None else merged
    if headed is not None and merged is not None:
        start, headed = headed.apply.networks(merged)[0], headed._replace(variables=merged)
    support = mean_of(without([_support(g, dict(m), v) for g, m, v in zip(graphs, maps, models, strict=True)], own))
    other = resize(applies[0], graphs[0], average, widths)
    same = not other.widths
    run: Apply = applies[0] if same else other
    new = graphs[0] if same else _traced(run, signature(average), signature(inputs))
    new.check(start)
    training = None if train_apply is None else functions_of(train_apply, models)[0]
    if training is not None and not same:
        training = replace(other, apply=training)
    layers = layers_of(run, new, average, inputs)
    shifts = {name: bias for name in layers.biases if (bias := layers.layer(name, average).bias) is not None}
    placed = [_placed(*each) for each in zip(models, moved_models, maps, strict=True)]
    targets = Targets(applies, graphs, run, layers)
    networks = Networks(tuple(model for model, _ in placed), tuple(m for _, m in placed), shifts)
    bound = _entangled(applies[0], signature(models[0]), signature(inputs))
    mapped = {name for m in maps for name in m}
    left = {}
    for name, site in layers.sites.items():
        reason = _reason(site, own, mapped, bound.get(name), own_inputs) or _unreached(targets, networks, name)
        if reason is not None:
            left[name] = reason
    return Prepared(targets, networks, start, support, left, training, headed)


def _placed(model: PyTree, transported: PyTree, maps: Maps) -> tuple[PyTree, FeatureMaps]:
    """An original and how its features come into the merged network.

    One whose units are only permuted is moved itself, once: then its features are in their places.
    """
    return (transported, {}) if all(map(is_permutation, maps.values())) else (model, picked(maps))


def _headed(
    applies: Sequence[Apply],
    graphs: Sequence[Graph],
    models: Sequence[PyTree],
    maps: Sequence[Maps],
    train_apply: TrainApply | Sequence[TrainApply] | None,
) -> Headed:
    """The average with the heads of all models; what has no map stays in its place."""
    still = [{n.name: identity(n.size, n.copies) for n in graph.nodes.values()} for graph in graphs]
    whole = [{**every, **m} for every, m in zip(still, maps, strict=True)]
    return multi_head(applies, graphs, models, whole, train_apply=train_apply)


def _widths(graphs: Sequence[Graph], maps: Sequence[Maps]) -> dict[str, int]:
    """The units of each node of the merged network."""
    each = [
        {name: m[name].push.shape[-2] if name in m else node.size for name, node in graph.nodes.items()}
        for graph, m in zip(graphs, maps, strict=True)
    ]
    for name, width in each[0].items():
        if odd := [found for found in each if found.get(name) != width]:
            raise ValueError(
                f"the maps bring the models to different widths: {name!r} has {width} and {odd[0].get(name)} units"
            )
    return each[0]


@functools.lru_cache(maxsize=32)
def _traced(run: Apply, variables: Signature, inputs: Signature) -> Graph:
    """The graph of the merged network, remembered: with the same graph nothing is compiled anew."""
    return trace(run, as_shapes(variables), as_shapes(inputs))


@functools.lru_cache(maxsize=32)
def _entangled(apply: Apply, variables: Signature, inputs: Signature) -> dict[str, Entangled]:
    return entangled(apply, as_shapes(variables), as_shapes(inputs))


@functools.partial(jax.jit, static_argnums=0)
def _support(graph: Graph, maps: Maps, variables: PyTree) -> PyTree:
    """Positive where the transported leaves can be other than zero."""
    within = {name: NodeMap(jnp.abs(jnp.asarray(m.push)), jnp.abs(jnp.asarray(m.pull))) for name, m in maps.items()}
    return transport(graph, within, jax.tree.map(lambda x: jnp.ones(np.shape(x), jnp.float32), variables))


def _reason(site: Site, own: Collection[str], mapped: Collection[str], bound: Entangled | None, own_inputs: bool) -> str | None:
    """Why a site cannot be solved for, whatever the original networks are, or None."""
    if site.path in own:
        return "the networks have outputs of their own"
    if bound is not None and bound.elsewhere:
        return "its weight is read elsewhere too"
    if bound is not None and (reordered := [node for node in bound.nodes if node in mapped]):
        return f"its samples run over the units of {reordered[0]!r}"
    if own_inputs and site.stacked:
        return "it is inside a loop, where what it reads depends on itself"
    return None


def _unreached(targets: Targets, networks: Networks, name: str) -> str | None:
    """Why the features of an original cannot be brought to a site, or None."""
    for graph, maps in zip(targets.graphs, networks.maps, strict=True):
        site = next((s for s in graph.sites if s.name == name), None)
        if site is None:
            return "the original network has no such site"
        try:
            for side in SIDES:
                *copies, features = arranged(graph, name, side).places.shape
                one = jax.ShapeDtypeStruct((*copies, 1, features), jnp.float32)
                jax.eval_shape(moved(graph, maps, site, side, targets.layers.graph), one)
        except ValueError as error:
            return str(error)
    return None
