"""Reading features out of a forward pass, without touching the user's model: the jaxpr is run with taps."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignment.activations.probes import LostError, Probe, run_with
from alignment.graph import Graph, Place, PyTree, Tap
from alignment.sites import Site, Use, over


class SiteFeatures(NamedTuple):
    """What a weight meets and what it makes of it: `outputs = inputs @ site.matrix(weight)`.

    Attributes:
        inputs: what the weight is multiplied with, patches in a convolution.
        outputs: the result, before a bias is added.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.array([[3.0], [1.0]])}, jnp.array([[1.0], [-2.0]])
        >>> graph = alignment.trace(apply, v, x)
        >>> features = alignment.capture(apply, graph, v, x, nodes=(), sites=["down"]).sites["down"]
        >>> features.inputs.tolist(), features.outputs.tolist()
        ([[1.0, 0.0], [0.0, 2.0]], [[3.0], [2.0]])
        >>> (features.inputs @ graph.sites[1].matrix(v["down"])).tolist()
        [[3.0], [2.0]]
    """

    inputs: Float[Array, "*copies samples rows"]
    outputs: Float[Array, "*copies samples columns"]


class Captured(NamedTuple):
    """Features by the name of their node, by the name of their site, and rows that are read by the name of their lookup.

    Attributes:
        nodes: features (*copies, samples, units) by node.
        sites: what was asked of sites, by name.
        lookups: the rows read, as numbers, by lookup.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.array([[3.0], [1.0]])}, jnp.array([[1.0], [-2.0]])
        >>> found = alignment.capture(apply, alignment.trace(apply, v, x), v, x, sites=["down"])
        >>> list(found.nodes), list(found.sites), list(found.lookups)
        (['up'], ['down'], [])
        >>> found.sites["down"].outputs.tolist()
        [[3.0], [2.0]]
    """

    nodes: dict[str, Float[Array, "*copies samples units"]]
    sites: dict[str, SiteFeatures]
    lookups: dict[str, Int[Array, "*copies samples"]]


def capture(
    apply: Callable[..., PyTree],
    graph: Graph,
    variables: PyTree,
    *inputs: PyTree,
    nodes: Iterable[str] | str | None = None,
    sites: Iterable[str] | str = (),
    lookups: Iterable[str] | str = (),
) -> Captured:
    """The features of nodes, inputs and outputs of sites, and rows that lookups read, in one jitted forward pass.

    Every position of an image or a sequence counts as a sample. Only what is asked for is computed: the rest of the network is
    cut away. The batch size may differ from the one that was traced; the function must be the same.

    Args:
        apply: the function that the graph was traced from.
        graph: its graph.
        variables: parameters and statistics with the structure that was traced.
        inputs: a batch.
        nodes: names of nodes; None means all that have a tap.
        sites: names of sites, none unless asked for.
        lookups: names of lookups, none unless asked for.

    Raises:
        ValueError: for a name that the graph does not have or a node without a tap, variables of another structure, or if what
            is asked for is not found in the function; another function with the same equations cannot be told from it.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v, x = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.array([[3.0], [1.0]])}, jnp.array([[1.0], [-2.0]])
        >>> graph = alignment.trace(apply, v, x)
        >>> alignment.capture(apply, graph, v, x).nodes["up"].tolist()  # (samples, units), behind the ReLU
        [[1.0, 0.0], [0.0, 2.0]]
    """
    graph.check(variables)
    names = tuple(graph.taps if nodes is None else [nodes] if isinstance(nodes, str) else nodes)
    for name in names:
        if name not in graph.taps:
            known = "has no tap" if name in graph.nodes else "is not in the graph"
            raise ValueError(f"node {name!r} {known}; there are taps for {', '.join(graph.taps)}")
    asked = _Asked(names, _known("site", graph.sites, sites), _known("lookup", graph.lookups, lookups))
    with _dtypes_told(graph, inputs):
        return _captured(apply, graph, asked, variables, inputs)


@contextlib.contextmanager
def _dtypes_told(graph: Graph, inputs: tuple) -> Iterator[None]:
    """Where what was traced is not found, and inputs are of other dtypes than were traced, that is the cause."""
    try:
        yield
    except LostError as error:
        got = tuple(str(jnp.result_type(x)) for x in jax.tree.leaves(inputs))
        if got == tuple(graph.dtypes):
            raise
        traced, found = (", ".join(dtypes) for dtypes in (graph.dtypes, got))
        raise ValueError(
            f"the graph was traced with inputs of {traced}, got {found}: cast them, or trace with such inputs"
        ) from error


class _Asked(NamedTuple):
    """Names of what to capture."""

    nodes: tuple[str, ...]
    sites: tuple[str, ...]
    lookups: tuple[str, ...]


def _known(kind: str, uses: Sequence[Use], names: Iterable[str] | str) -> tuple[str, ...]:
    known = [use.name for use in uses]
    wanted = (names,) if isinstance(names, str) else tuple(names)
    if missing := [name for name in wanted if name not in known]:
        raise ValueError(f"no {kind} named {missing[0]!r}; the graph has {', '.join(known)}")
    return wanted


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _captured(apply: Callable[..., PyTree], graph: Graph, asked: _Asked, variables: PyTree, inputs: tuple) -> Captured:
    taps = {name: graph.taps[name] for name in asked.nodes}
    wanted = {site.name: site for site in graph.sites if site.name in asked.sites}
    looked_up = {lookup.name: lookup for lookup in graph.lookups if lookup.name in asked.lookups}
    probes = [Probe((name,), t.location, True, t.output, functools.partial(_features, t)) for name, t in taps.items()]
    probes += [probe for s in wanted.values() for probe in (_inputs(s), _outputs(s, s.outputs))]
    probes += [_inputs(lookup) for lookup in looked_up.values()]
    _, found = run_with(probes, jax.make_jaxpr(apply)(variables, *inputs), jax.tree.leaves((variables, *inputs)))
    features = {}
    for name, tap in taps.items():
        order = [k if isinstance(k, int) else tap.loops + sum(isinstance(i, Place) for i in tap.index[:j])
                 for j, k in enumerate(tap.index)]  # fmt: skip
        features[name] = _gathered(found[name,], order)
        if features[name].shape[:-2] + features[name].shape[-1:] != (*graph.nodes[name].copies, graph.nodes[name].size):
            raise LostError(f"the tap of node {name!r}")
    pairs = {}
    for name, site in wanted.items():
        pairs[name] = SiteFeatures(*(_by_copy(site, found[name, which]) for which in ("inputs", "outputs")))
    rows = {name: _by_copy(lookup, found[name, "inputs"])[..., 0] for name, lookup in looked_up.items()}
    return Captured(features, pairs, rows)


class Gradients(NamedTuple):
    """A forward pass that can be gone back through to the sites.

    Attributes:
        outputs: of the network.
        inputs: what each site reads, by its name.
        pull: from a cotangent of the outputs to that of what each site makes, by its name.
    """

    outputs: PyTree
    inputs: dict[str, Float[Array, "*copies samples rows"]]
    pull: Callable[[PyTree], dict[str, Float[Array, "*copies samples columns"]]]


def gradients(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, *inputs: PyTree, sites: Iterable[str]
) -> Gradients:
    """What sites read, and the way back to what they make: zeros are added there, and differentiated. Traceable.

    Arguments and errors are those of `capture`.
    """
    names = set(sites)
    wanted = [site for site in graph.sites if site.name in names]
    closed, returned = jax.make_jaxpr(apply, return_shape=True)(variables, *inputs)
    leaves = jax.tree.leaves((variables, *inputs))

    def run(nudges: Mapping[str, Array]) -> tuple[PyTree, dict]:
        probes = [p for s in wanted for p in (_inputs(s), _outputs(s, lambda y: y, nudges.get(s.name)))]
        outs, found = run_with(probes, closed, leaves)
        return jax.tree.unflatten(jax.tree.structure(returned), outs), found

    with _dtypes_told(graph, inputs):
        shapes = jax.eval_shape(run, {})[1]
    zeros = {s.name: jnp.zeros(shapes[s.name, "outputs"].shape, shapes[s.name, "outputs"].dtype) for s in wanted}
    outputs, back, found = jax.vjp(run, zeros, has_aux=True)

    def pull(cotangent: PyTree) -> dict[str, Array]:
        (nudges,) = back(cotangent)
        return {s.name: _by_copy(s, over(len(s.stacked), s.outputs)(nudges[s.name])) for s in wanted}

    return Gradients(outputs, {s.name: _by_copy(s, found[s.name, "inputs"]) for s in wanted}, pull)


def _inputs(site: Use) -> Probe:
    return Probe((site.name, "inputs"), site.location, False, 1 - site.weight, site.inputs, site)


def _outputs(site: Site, arrange: Callable[[Array], Array], nudge: Array | None = None) -> Probe:
    return Probe((site.name, "outputs"), site.location, True, 0, arrange, site, nudge)


def _features(tap: Tap, x: Array) -> Float[Array, "*places samples units"]:
    """The features that a tap sees in an array: those of its index that are places in front."""
    places = [*(i for i in tap.index if isinstance(i, Place)), tap.units]
    by_axis = {place.axis: place for place in places}
    start: dict[int, int] = {}
    opened: list[int] = []
    for d, size in enumerate(x.shape):
        place = by_axis.get(d)
        start[d] = len(opened)
        opened += [size] if place is None else place.sizes
        if place is not None and place.intervals:
            x = jnp.concatenate([jax.lax.slice_in_dim(x, a, b, axis=d) for a, b in place.intervals], axis=d)
    for d, place in sorted(by_axis.items(), reverse=True):
        x = x.reshape(*x.shape[:d], *place.sizes, *x.shape[d + 1 :])
    axes = [start[place.axis] + place.factor for place in places]
    rest = [d for d in range(x.ndim) if d not in axes]
    sizes = [x.shape[d] for d in axes]
    return x.transpose(*axes[:-1], *rest, axes[-1]).reshape(*sizes[:-1], -1, sizes[-1])


def _by_copy(site: Use, x: Array) -> Float[Array, "*copies samples units"]:
    """Loops in which the weight is the same are samples, all others copies."""
    kept = [d for d, stacked in enumerate(site.stacked) if stacked] + list(range(len(site.stacked), x.ndim - 2))
    return _gathered(x, kept)


def _gathered(x: Array, kept: Sequence[int]) -> Array:
    """Bring the axes `kept` to the front, in order; the others but the last are samples."""
    rest = [d for d in range(x.ndim - 1) if d not in kept]
    return x.transpose(*kept, *rest, x.ndim - 1).reshape(*(x.shape[d] for d in kept), -1, x.shape[-1])
