"""A merged network and its originals layer by layer: what each linear site should make of what it reads."""

import functools
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.activations.taps import SiteFeatures, capture
from alignment.biases import channel_biases
from alignment.entangled import Entangled, entangled
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree, Signature, as_shapes, flatten, path_name, signature
from alignment.maps import Maps, NodeMap, identity, is_permutation, transport
from alignment.own_leaves import own_leaves, without
from alignment.per_model import functions_of, graphs_of
from alignment.resizing.resize import resize
from alignment.site_maps import SIDES, FeatureMaps, Side, arranged, moved, picked
from alignment.sites import Site
from alignment.tracing.trace import trace
from npmerge.arithmetic import mean_of
from npmerge.heads.multi_head import Headed, multi_head
from npmerge.normalisation import TrainApply, reset_statistics

Apply = Callable[..., PyTree]


class Layer(NamedTuple):
    """The weight of a site as a matrix, float32, and the bias that is added to what it makes, if there is one."""

    matrix: Float[Array, "*copies rows columns"]
    bias: Float[Array, "*copies columns"] | None


class Originals(NamedTuple):
    """The networks that were merged, how their units come into the merged one, and the biases that their targets have."""

    models: tuple[PyTree, ...]
    maps: tuple[FeatureMaps, ...]
    shifts: dict[str, Float[Array, "*copies columns"]]


@dataclass(frozen=True)
class Layers:
    """The layers of a merged network and those that they are merged from.

    Attributes:
        applies: the function of each original; `graphs` theirs.
        apply: the function of the merged network, `resize`d; `graph` its own.
        added: the sites with a bias, and its path.
        own_inputs: whether the merged network's sites read what it computes itself, or the originals' inputs, averaged.
    """

    applies: tuple[Apply, ...]
    graphs: tuple[Graph, ...]
    apply: Apply
    graph: Graph
    added: tuple[tuple[str, str], ...]
    own_inputs: bool

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """The sites of the merged network in its order."""
        return {site.name: site for site in self.graph.sites}

    @functools.cached_property
    def biases(self) -> dict[str, str]:
        """For each site with a bias the path of that."""
        return dict(self.added)

    def pairs(self, names: Iterable[str], originals: Originals, merged: PyTree, inputs: PyTree) -> dict[str, SiteFeatures]:
        """What sites of the merged network read and what they should make of it, in float32; pure and traceable.

        Targets are Z_out = mean_k push_k (y_k + b_k), the outputs of the originals with their biases. Inputs are Z_in =
        mean_k push_k x_k, or, with `own_inputs`, those of the network `merged`.
        """
        names = tuple(names)
        sums: dict[Side, dict[str, Array]] = {"outputs": {}} if self.own_inputs else {"inputs": {}, "outputs": {}}
        for apply, graph, model, maps in zip(self.applies, self.graphs, originals.models, originals.maps, strict=True):
            found = capture(apply, graph, model, inputs, nodes=(), sites=names).sites
            for site in (s for s in graph.sites if s.name in found):
                for side, total in sums.items():
                    x = moved(graph, maps, site, side, self.graph)(getattr(found[site.name], side)).astype(jnp.float32)
                    total[site.name] = total[site.name] + x if site.name in total else x
        mean = {side: {name: x / len(originals.models) for name, x in total.items()} for side, total in sums.items()}
        if self.own_inputs:
            own = capture(self.apply, self.graph, merged, inputs, nodes=(), sites=names).sites
            mean["inputs"] = {name: own[name].inputs.astype(jnp.float32) for name in names}
        for name, shift in originals.shifts.items():
            if name in names:
                y = mean["outputs"][name]
                mean["outputs"][name] = y + jnp.broadcast_to(shift[..., None, :], y.shape)
        return {name: SiteFeatures(mean["inputs"][name], mean["outputs"][name]) for name in names}

    def layer(self, name: str, variables: PyTree) -> Layer:
        """The layer of a site in a merged network."""
        site, leaves = self.sites[name], flatten(variables)
        matrix = site.matrix(leaves[site.path]).astype(jnp.float32)
        if name not in self.biases:
            return Layer(matrix, None)
        bias = jnp.asarray(leaves[self.biases[name]]).astype(jnp.float32)
        return Layer(matrix, bias.reshape(*matrix.shape[:-2], matrix.shape[-1]))

    def several(self, names: tuple[str, ...], variables: PyTree) -> dict[str, Layer]:
        """The layers of these sites in a merged network."""
        found = _taken(self, names, self._leaves(names, variables))
        return {name: found[name] for name in names}  # jit sorts them

    def replaced(self, layers: Mapping[str, Layer], variables: PyTree) -> PyTree:
        """A merged network with these layers, rounded once to its dtypes."""
        new = _replaced(self, dict(layers), self._leaves(layers, variables))
        return jax.tree_util.tree_map_with_path(lambda path, x: new.get(path_name(path), x), variables)

    def _leaves(self, names: Iterable[str], variables: PyTree) -> dict[str, Array]:
        """What these layers are made of."""
        leaves = flatten(variables)
        return {path: leaves[path] for name in names for path in (self.sites[name].path, self.biases.get(name)) if path}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _taken(layers: Layers, names: tuple[str, ...], leaves: Mapping[str, Array]) -> dict[str, Layer]:
    """Compiled once, like `_replaced`."""
    return {name: layers.layer(name, leaves) for name in names}


@functools.partial(jax.jit, static_argnums=0)
def _replaced(layers: Layers, new: Mapping[str, Layer], leaves: Mapping[str, Array]) -> dict[str, Array]:
    """The leaves that these layers are in, with them: compiled once, where every step of it would be by itself."""
    found = dict(leaves)
    for name, layer in new.items():
        site = layers.sites[name]
        found[site.path] = site.replaced(leaves[site.path], layer.matrix)
        if layer.bias is not None:
            old = leaves[layers.biases[name]]
            found[layers.biases[name]] = jnp.asarray(layer.bias).reshape(old.shape).astype(old.dtype)
    return found


class Prepared(NamedTuple):
    """Layers with their originals, the merged network to start from, and where each of its leaves may be other than zero.

    `train_apply` is the merged network in training mode, None where its statistics are not re-estimated. `headed` is the merged
    network with the heads of all originals, where they have their own: all else is then the network that has the first head.
    """

    layers: Layers
    originals: Originals
    start: PyTree
    support: PyTree
    left: dict[str, str]
    train_apply: TrainApply | None
    headed: Headed | None

    @property
    def names(self) -> tuple[str, ...]:
        """The sites to solve for, in the order of the network."""
        return tuple(name for name in self.layers.sites if name not in self.left)

    def allowed(self, name: str) -> Bool[np.ndarray, "*copies rows columns"]:
        """The blocks of a site: entry (i, j) may move where some model has units in row i and in column j."""
        site = self.layers.sites[name]
        leaf = np.asarray(flatten(self.support)[site.path])
        return leaf.ravel()[np.asarray(site.places(leaf.shape))] > 0

    def renewed(self, variables: PyTree, batches: Iterable[tuple]) -> PyTree:
        """A merged network with statistics that belong to its weights, where they are re-estimated."""
        return variables if self.train_apply is None else reset_statistics(self.train_apply, variables, batches)


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
    new, biases = _traced(run, graphs[0] if same else None, signature(average), signature(inputs))
    new.check(start)
    training = None if train_apply is None else functions_of(train_apply, models)[0]
    if training is not None and not same:
        training = replace(other, apply=training)
    layers = Layers(applies, graphs, run, new, biases, own_inputs)
    shifts = {name: bias for name in layers.biases if (bias := layers.layer(name, average).bias) is not None}
    placed = [_placed(*each) for each in zip(models, moved_models, maps, strict=True)]
    originals = Originals(tuple(model for model, _ in placed), tuple(m for _, m in placed), shifts)
    bound = _entangled(applies[0], signature(models[0]), signature(inputs))
    mapped = {name for m in maps for name in m}
    left = {name: reason for name in layers.sites if (reason := _reason(layers, originals, name, bound, mapped, own))}
    return Prepared(layers, originals, start, support, left, training, headed)


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
def _traced(
    run: Apply, graph: Graph | None, variables: Signature, inputs: Signature
) -> tuple[Graph, tuple[tuple[str, str], ...]]:
    """The graph of the merged network and its sites with a bias, remembered: with the same graph nothing is compiled anew."""
    shapes, x = as_shapes(variables), as_shapes(inputs)
    found = trace(run, shapes, x) if graph is None else graph
    return found, tuple(channel_biases(run, found, shapes, x).items())


@functools.lru_cache(maxsize=32)
def _entangled(apply: Apply, variables: Signature, inputs: Signature) -> dict[str, Entangled]:
    return entangled(apply, as_shapes(variables), as_shapes(inputs))


@functools.partial(jax.jit, static_argnums=0)
def _support(graph: Graph, maps: Maps, variables: PyTree) -> PyTree:
    """Positive where the transported leaves can be other than zero."""
    within = {name: NodeMap(jnp.abs(jnp.asarray(m.push)), jnp.abs(jnp.asarray(m.pull))) for name, m in maps.items()}
    return transport(graph, within, jax.tree.map(lambda x: jnp.ones(np.shape(x), jnp.float32), variables))


def _reason(
    layers: Layers, originals: Originals, name: str, bound: Mapping[str, Entangled], mapped: set[str], own: Collection[str]
) -> str | None:
    """Why a site cannot be solved for, or None."""
    site = layers.sites[name]
    if site.path in own:
        return "the networks have outputs of their own"
    if name in bound and bound[name].elsewhere:
        return "its weight is read elsewhere too"
    if name in bound and (reordered := [node for node in bound[name].nodes if node in mapped]):
        return f"its samples run over the units of {reordered[0]!r}"
    if layers.own_inputs and site.stacked:
        return "it is inside a loop, where what it reads depends on itself"
    for graph, maps in zip(layers.graphs, originals.maps, strict=True):
        mine = next((s for s in graph.sites if s.name == name), None)
        try:
            if mine is None:
                raise ValueError("the original network has no such site")
            for side in SIDES:
                *copies, features = arranged(graph, name, side).places.shape
                one = jax.ShapeDtypeStruct((*copies, 1, features), jnp.float32)
                jax.eval_shape(moved(graph, maps, mine, side, layers.graph), one)
        except ValueError as error:
            return str(error)
    return None


def pieces(batches: Sequence[PyTree], examples: int) -> Iterator[PyTree]:
    """The batches in pieces of at most so many examples, all of one batch of nearly the same size."""
    for batch in batches:
        count = len(jax.tree.leaves(batch)[0])
        ends = np.linspace(0, count, -(-count // examples) + 1).round().astype(int)
        for a, b in itertools.pairwise(ends):
            yield jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
