"""What sites read and write, moved: it is what the sites of the transported network read and write."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
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


def wrong_sites(apply: Any, graph: Graph, variables: Any, x: Any, maps: Any, *, fast: bool) -> list[str]:
    """Sites whose moved features are not those of the transported network, but for the heads of tied embeddings."""
    new = jax.eval_shape(lambda v: transport(graph, maps, v), variables)
    same = {p: np.shape(a) for p, a in alignment.graph.flatten(new).items()} == dict(graph.shapes)
    other = apply if same else resize(apply, graph, new, {name: np.shape(m.push)[-2] for name, m in maps.items()})
    resized = graph if same else trace(other, new, x)
    bound = entangled(apply, variables, x)
    assert not any(b.nodes for b in bound.values())
    names = [site.name for site in graph.sites if same or not (site.name in bound and bound[site.name].elsewhere)]
    acting = picked(maps) if fast else maps

    @jax.jit  # one compilation for all sites
    def features(variables: Any, x: Any) -> dict[str, list]:
        before = capture(apply, graph, variables, x, nodes=(), sites=names).sites
        after = capture(other, resized, transport(graph, maps, variables), x, nodes=(), sites=names).sites
        pairs: dict[str, list] = {}
        for site in (site for site in graph.sites if site.name in names):
            read = inputs_moved(graph, acting, site, before[site.name].inputs, resized=resized)
            made = outputs_moved(graph, acting, site, before[site.name].outputs, resized=resized)
            pairs[site.name] = [(read, after[site.name].inputs), (made, after[site.name].outputs)]
        return pairs

    return [name for name, pairs in features(variables, x).items() if not all(close(*pair) for pair in pairs)]


def close(ours: jax.Array, theirs: jax.Array) -> bool:
    a, b = np.asarray(ours), np.asarray(theirs)
    return a.shape == b.shape and bool(np.abs(a - b).max() <= 1e-4 * np.abs(b).max())


@pytest.mark.parametrize("maps", [shuffled, shuffled_and_doubled])
@pytest.mark.parametrize("name", BUILDERS)
def test_moved_features_are_those_of_the_transported_network(name, maps):
    if maps is shuffled_and_doubled and name in UNEQUAL:
        pytest.skip("doubling changes this function")
    net = network(name)
    fast = maps is shuffled
    assert wrong_sites(net.apply, net.graph, net.variables, net.inputs, maps(net.graph), fast=fast) == []


@pytest.mark.parametrize("config", ALL)
def test_of_every_architecture(config):
    apply, variables, x = abstract(config).apply, generic(abstract(config).variables), inputs(config)
    graph = trace(apply, variables, example(config, 4))
    for make, fast in ((shuffled, True), (shuffled_and_doubled, False)):
        assert wrong_sites(apply, graph, variables, x, make(graph), fast=fast) == []


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
    assert wrong_sites(net.apply, net.graph, net.variables, net.inputs, maps, fast=True) == []


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
