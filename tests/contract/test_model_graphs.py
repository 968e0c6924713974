"""The symmetry graph of every architecture: the nodes of theory, THE test, and planted permutations that are found again.

A new architecture needs its table in TABLES: rows (size, group, copies) for each of its CONFIGS, worked out by hand.
"""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

import npmerge as nm
from alignment import (
    ActivationMatching,
    Graph,
    WeightMatching,
    align,
    capture,
    permutation,
    trace,
    transport,
    verify,
    verify_each,
)
from alignment.graph import flatten
from npmerge.models import MODELS, Bert, Config, Gpt2, Llama, Mlp, ResNet, ResNetCifar, Vgg, Vit, WithWidths, abstract, example
from tests.contract.test_models import ALL, CONFIGS, generic, inputs

KEY = jax.random.key(0)
Row = tuple[int, str, int]
P, S, L = "permutation", "scale", "linear"

STREAM: list[Row] = [(8, P, 1)]  # LayerNorm, or RMSNorm with a scale
BLOCK: list[Row] = [(2, P, 1), (4, L, 2), (4, L, 2), (6, P, 1)]  # heads; queries with keys, values, in each; hidden units
TABLES: dict[type[Config], tuple[list[Row], ...]] = {
    Mlp: ([(6, S, 1), (5, S, 1)],),
    Vgg: (
        [(3, S, 1), (4, S, 1), (5, S, 1), (6, S, 1)],
        [(3, P, 1), (4, P, 1), (5, P, 1), (6, S, 1)],  # BatchNorm behind the convolutions, not the dense layer
        [(3, S, 1), (4, S, 1), (5, S, 1), (6, S, 1)],  # averages of parts of the image
    ),
    ResNetCifar: (
        [(4, P, 1), (4, P, 1), (8, P, 1), (4, P, 1), (16, P, 1), (8, P, 1)],  # stream, hidden; hidden, padded channels; ...
        [(4, P, 1), (4, P, 1), (8, P, 1), (8, P, 1), (16, P, 1), (16, P, 1)],  # stream and hidden of each stage
    ),
    ResNet: (
        [(3, P, 1), (3, P, 1), (6, P, 1), (6, P, 1)],
        [(2, P, 1), (8, P, 1), (2, P, 1), (2, P, 1), (2, P, 1), (2, P, 1)],  # stem; stream; two inside each bottleneck
    ),
    Vit: ([*STREAM, *BLOCK],),
    Bert: (BLOCK, [*STREAM, *BLOCK, (8, P, 1)]),  # the stream is the output; classified: the pooler's tanh
    Gpt2: ([*STREAM, *BLOCK, *BLOCK],),
    Llama: (  # rotary embedding holds queries and keys
        [*STREAM, (2, P, 1), (4, L, 1), (6, P, 1)],  # queries of the only key, its values, hidden units
        [*STREAM, (2, P, 1), (2, P, 2), (2, L, 2), (6, P, 1)],  # keys; queries, values of each; hidden units
        [*STREAM, *2 * [(2, P, 1), (4, L, 1), (6, P, 1)]],
    ),
    WithWidths: ([(7, P, 1), (5, P, 1), (8, P, 1), (4, P, 1), (16, P, 1), (6, P, 1)], [*STREAM, *BLOCK[:3], (9, P, 1)]),
}
tabled = [pytest.param(c, TABLES[m][k], id=f"{m.__name__}-{k}") for m in MODELS for k, c in enumerate(CONFIGS[m])]


@functools.cache
def traced(config: Config) -> tuple[Any, Graph]:
    """Generic variables and their graph; an abstract input is enough, and any warning an error."""
    network = abstract(config)
    variables = generic(network.variables)
    return variables, trace(network.apply, variables, example(config))


@pytest.mark.parametrize(("config", "rows"), tabled)
def test_nodes_sizes_groups_and_copies_are_those_of_theory(config, rows):
    nodes = traced(config)[1].nodes.values()
    assert sorted((node.size, node.group, math.prod(node.copies)) for node in nodes) == sorted(rows)


@pytest.mark.parametrize("config", ALL)
def test_group_elements_leave_the_function_unchanged(config):
    apply, (variables, graph), x = abstract(config).apply, traced(config), inputs(config)
    assert verify(apply, graph, variables, x, key=KEY) < 1e-5
    alone = verify_each(apply, graph, variables, x, key=KEY)
    assert {node: change for node, change in alone.items() if change > 1e-5} == {}


@pytest.mark.parametrize("config", ALL)
def test_planted_permutations_of_all_nodes_are_found_again(config):
    """By both matchings, exactly; of every node, also those whose group is larger."""
    apply, (variables, graph), x = abstract(config).apply, traced(config), inputs(config, n=32)
    rng = np.random.default_rng(5)
    maps = {}
    for node in graph.nodes.values():
        order = np.argsort(rng.random((*node.copies, node.size)), axis=-1)
        maps[node.name] = permutation(order)
    planted = transport(graph, maps, variables)
    stats = nm.collect(apply, graph, [variables, planted], [(x, None)], [nm.NodeMoments()])
    for alignment in (WeightMatching(), ActivationMatching()):
        found = flatten(align(alignment, graph, [variables, planted], stats=stats)[1])
        wrong = [path for path, leaf in flatten(variables).items() if np.abs(found[path] - leaf).max() > 1e-6]
        assert wrong == [], type(alignment).__name__


@pytest.mark.parametrize("config", ALL)
def test_every_kernel_is_a_site(config):
    """outputs = inputs @ matrix, for every kernel of every architecture, in one forward pass."""
    apply, (variables, graph), x = abstract(config).apply, traced(config), inputs(config)
    leaves = flatten(variables)
    assert {site.path for site in graph.sites} >= {path for path in leaves if path.endswith("kernel")}
    captured = capture(apply, graph, variables, x, nodes=(), sites=[site.name for site in graph.sites])
    for site in graph.sites:
        features = captured.sites[site.name]
        expected = np.asarray(features.inputs) @ np.asarray(site.matrix(leaves[site.path]))
        np.testing.assert_allclose(features.outputs, expected, rtol=1e-4, atol=1e-5, err_msg=site.name)
