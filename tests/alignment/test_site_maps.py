"""What sites read and write, moved: it is what the sites of the transported network read and write."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import Graph, NodeMap, capture, permutation, rectangular, resize, trace, transport
from alignment.site_maps import arranged, inputs_moved, nodes_among_samples, outputs_moved, picked
from npmerge.models import build, example
from tests.alignment import networks
from tests.alignment.networks import data
from tests.alignment.test_resizing import UNEQUAL, doubled
from tests.alignment.test_zoo import BUILDERS, network
from tests.contract.test_models import ALL, generic, inputs

SHARED_OVER_UNITS: dict[str, tuple[str, ...]] = {}


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


def wrong_sites(apply: Any, graph: Graph, variables: Any, x: Any, maps: Any, *, fast: bool) -> tuple[list[str], int]:
    """Sites whose moved features are not those of the transported network, and how many sites were looked at."""
    new = jax.jit(lambda v: transport(graph, maps, v))(variables)
    same = {p: np.shape(a) for p, a in alignment.graph.flatten(new).items()} == dict(graph.shapes)
    other = apply if same else resize(apply, graph, new, {name: np.shape(m.push)[-2] for name, m in maps.items()})
    resized = graph if same else trace(other, new, x)
    left = nodes_among_samples(apply, variables, x)
    names = [site.name for site in graph.sites if site.name not in left]
    before = capture(apply, graph, variables, x, nodes=(), sites=names).sites
    after = capture(other, resized, new, x, nodes=(), sites=names).sites
    acting, wrong = picked(maps) if fast else maps, []
    for site in graph.sites:
        if site.name in names:
            read = inputs_moved(graph, acting, site, before[site.name].inputs, resized=resized)
            made = outputs_moved(graph, acting, site, before[site.name].outputs, resized=resized)
            for ours, theirs in ((read, after[site.name].inputs), (made, after[site.name].outputs)):
                scale = float(jnp.abs(theirs).max())
                if ours.shape != theirs.shape or float(jnp.abs(ours - theirs).max()) > 1e-4 * scale:
                    wrong.append(site.name)
    return wrong, len(names)


@pytest.mark.parametrize("maps", [shuffled, shuffled_and_doubled])
@pytest.mark.parametrize("name", BUILDERS)
def test_moved_features_are_those_of_the_transported_network(name, maps):
    if maps is shuffled_and_doubled and name in UNEQUAL:
        pytest.skip("doubling changes this function")
    net = network(name)
    wrong, seen = wrong_sites(net.apply, net.graph, net.variables, net.inputs, maps(net.graph), fast=maps is shuffled)
    assert wrong == []
    assert seen == len(net.graph.sites) - len(SHARED_OVER_UNITS.get(name, ()))


@pytest.mark.parametrize("config", ALL)
def test_of_every_architecture(config):
    apply, variables, x = build(config).apply, generic(build(config).variables), inputs(config)
    graph = trace(apply, variables, example(config, 4))
    for make, fast in ((shuffled, True), (shuffled_and_doubled, False)):
        assert wrong_sites(apply, graph, variables, x, make(graph), fast=fast) == ([], len(graph.sites))
