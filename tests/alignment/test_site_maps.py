"""What sites read and write, moved: it is what the sites of the transported network read and write."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import Graph, NodeMap, capture, permutation, rectangular, resize, trace, transport
from alignment.entangled import Entangled, entangled
from alignment.site_maps import inputs_moved, outputs_moved, picked
from npmerge.models import abstract, example
from tests.alignment import networks
from tests.alignment.networks import data
from tests.alignment.resizing.test_resize import UNEQUAL, doubled
from tests.alignment.test_zoo import BUILDERS, network
from tests.contract.test_models import ALL, generic, inputs


def shuffled(graph: Graph, seed: int = 5) -> dict[str, NodeMap]:
    rng = np.random.default_rng(seed)
    return {node.name: permutation(np.argsort(rng.random((*node.copies, node.size)), axis=-1)) for node in graph.nodes.values()}


def shuffled_and_doubled(graph: Graph) -> dict[str, NodeMap]:
    """Every unit twice, in a random order, read by half."""
    both = {}
    for node in graph.nodes.values():
        push, pull = (np.asarray(x) for x in doubled(node))
        order = np.random.default_rng(3).permutation(2 * node.size)
        both[node.name] = rectangular(push[..., order, :], pull[..., order])
    return both


Features = dict[str, tuple[jax.Array, jax.Array]]


def wrong_sites(apply: Any, graph: Graph, variables: Any, x: Any, wide: dict[str, NodeMap] | None) -> dict[str, list[str]]:
    """Sites whose moved features are not those of the transported network: by picks, and by maps that change widths.

    The heads of tied embeddings are left out of the second.
    """
    orders, names = shuffled(graph), [site.name for site in graph.sites]
    ways: dict[str, tuple] = {"picked": (picked(orders), None, names)}
    if wide is not None:
        other, resized = widened(apply, graph, variables, x, wide)
        bound = entangled(apply, variables, x)
        assert not any(b.nodes for b in bound.values())
        alone = [name for name in names if not (name in bound and bound[name].elsewhere)]
        ways["wide"] = (wide, resized, alone)

    @jax.jit  # without the network, whose forward pass serves two sets of weights
    def moved(variables: Any, before: Features) -> tuple[list, dict[str, Features]]:
        networks = [transport(graph, maps, variables) for maps in (orders, wide) if maps is not None]
        return networks, {way: all_moved(graph, maps, before, those, new) for way, (maps, new, those) in ways.items()}

    features = features_of(apply, graph, names)
    before = features(variables, x)
    new, found = moved(variables, before)
    after = {"picked": features(new[0], x)}
    if wide is not None:
        after["wide"] = features_of(other, resized, alone)(new[1], x)
    return {way: [name for name in f if not all(map(close, f[name], after[way][name]))] for way, f in found.items()}


def widened(apply: Any, graph: Graph, variables: Any, x: Any, maps: Any) -> tuple[Any, Graph]:
    """The network of the widths that maps give, and its graph."""
    new = jax.eval_shape(lambda v: transport(graph, maps, v), variables)
    other = resize(apply, graph, new, {name: np.shape(m.push)[-2] for name, m in maps.items()})
    return other, trace(other, new, x)


def features_of(apply: Any, graph: Graph, names: list[str]) -> Callable[[Any, Any], Features]:
    """What these sites read and write, of variables and inputs; compiled once for all of them."""

    @jax.jit
    def features(variables: Any, x: Any) -> Features:
        found = capture(apply, graph, variables, x, nodes=(), sites=names).sites
        return {name: (found[name].inputs, found[name].outputs) for name in names}

    return features


def all_moved(graph: Graph, maps: Any, before: Features, names: list[str], resized: Graph | None) -> Features:
    sites = [site for site in graph.sites if site.name in names]
    return {
        site.name: (
            inputs_moved(graph, maps, site, before[site.name][0], resized=resized),
            outputs_moved(graph, maps, site, before[site.name][1], resized=resized),
        )
        for site in sites
    }


def close(ours: jax.Array, theirs: jax.Array) -> bool:
    a, b = np.asarray(ours), np.asarray(theirs)
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-4 * np.abs(b).max())


@pytest.mark.parametrize("name", BUILDERS)
def test_moved_features_are_those_of_the_transported_network(name):
    """By permutations, and by maps that double the units where that leaves the function as it is."""
    net = network(name)
    wide = None if name in UNEQUAL else shuffled_and_doubled(net.graph)
    found = wrong_sites(net.apply, net.graph, net.variables, net.inputs, wide)
    assert found == {"picked": []} | ({} if wide is None else {"wide": []})


@pytest.mark.parametrize("config", ALL)
def test_of_every_architecture(config):
    apply, variables, x = abstract(config).apply, generic(abstract(config).variables), inputs(config)
    graph = trace(apply, variables, example(config, 4))
    assert wrong_sites(apply, graph, variables, x, shuffled_and_doubled(graph)) == {"picked": [], "wide": []}


def heads(v: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(jnp.tensordot(x, v["heads"], 1))
    return jnp.tanh(h @ v["each"]).sum((1, 2)) + (x @ v["again"] @ v["again"]).sum(-1)


def test_what_stands_against_a_site_is_said():
    variables = {"heads": data(5, 3, 4), "each": data(4, 2), "again": data(5, 5)}
    assert entangled(heads, variables, data(6, 5)) == {
        "each": Entangled(("heads#1",), elsewhere=False),
        "again": Entangled((), elsewhere=True),
        "again#2": Entangled((), elsewhere=True),
    }
    tied = network("tied_embedding")
    assert entangled(tied.apply, tied.variables, tied.inputs) == {"table": Entangled((), elsewhere=True)}


def mixing(name: str) -> tuple[networks.Network, dict[str, NodeMap]]:
    """A network and maps that mix units: of any matrices."""
    net = networks.network(name)
    rng = np.random.default_rng(0)
    push = {n.name: rng.standard_normal((*n.copies, n.size + 1, n.size)).astype(np.float32) for n in net.graph.nodes.values()}
    return net, {name: rectangular(p, np.linalg.pinv(p)) for name, p in push.items()}


def test_maps_that_mix_units_move_the_features_of_a_linear_network():
    """Any map with a left inverse leaves a linear network as it is: new = push @ old, for inputs and outputs."""
    net, maps = mixing("linear_mlp")
    assert wrong_sites(net.apply, net.graph, net.variables, net.inputs, maps) == {"picked": [], "wide": []}


def test_moving_is_written_out():
    """One dense layer by hand, of rows and of columns; picked maps are the same maps."""
    net = networks.network("mlp")
    site = next(s for s in net.graph.sites if s.name == "second/kernel")
    rng = np.random.default_rng(1)
    maps = {"first": permutation(rng.permutation(8)), "second": permutation(rng.permutation(7))}
    maps["first"] = NodeMap(3 * maps["first"].push, maps["first"].pull / 3)
    x, y = data(6, 8), data(6, 7)
    for acting in (maps, picked(maps)):
        np.testing.assert_allclose(inputs_moved(net.graph, acting, site, x), x @ maps["first"].push.T, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(outputs_moved(net.graph, acting, site, y), y @ maps["second"].push.T, rtol=1e-6, atol=1e-6)


def test_errors():
    net = networks.network("mlp")
    site = net.graph.sites[0]
    with pytest.raises(ValueError, match=r"'first/kernel' have 16 features once moved, expected 8.*resized="):
        outputs_moved(net.graph, {"first": doubled(net.graph.nodes["first"])}, site, data(6, 8))
    with pytest.raises(ValueError, match="unknown node 'third'"):
        inputs_moved(net.graph, {"third": permutation(np.arange(8))}, site, data(6, 5))
