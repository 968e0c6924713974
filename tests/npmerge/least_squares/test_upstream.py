"""Before a site those statistics are re-estimated that it reads, whatever is compiled together."""

import functools

import chex
import numpy as np
import pytest

import alignment as al
import npmerge as nm
from alignment.graph import flatten
from npmerge.least_squares import upstream
from npmerge.least_squares.targets import Targets
from npmerge.linear_layers import layers_of
from npmerge.models import ResNetCifar, build
from npmerge.normalisation import reset_some

NETWORK = build(ResNetCifar(1, 4, "B", side=8))
BATCHES = [(x, None) for x in np.random.default_rng(0).standard_normal((2, 8, 8, 8, 3), np.float32)]
LEAVES = list(flatten(NETWORK.variables))
STATISTICS = {path for path in LEAVES if path.startswith("batch_stats")}


@pytest.fixture(scope="module")
def graph():
    return nm.trace(NETWORK.apply, NETWORK.variables, BATCHES[0][0])


@pytest.fixture
def before(graph, monkeypatch):
    monkeypatch.setattr(upstream, "GROUP", 1)
    targets = Targets((), (), NETWORK.apply, layers_of(NETWORK.apply, graph, NETWORK.variables, BATCHES[0][0]))
    return upstream.upstream(targets, NETWORK.variables, [site.name for site in graph.sites], BATCHES[0][0])


def test_a_site_reads_what_is_before_it(graph, before):
    first, second, *_, last = (before[site.name] for site in graph.sites)
    assert first == frozenset()
    assert second == {"params/conv/kernel", *(path for path in LEAVES if "/norm/" in path)}
    assert last == {path for path in LEAVES if "/head/" not in path}


def test_branches_do_not_read_each_other(graph, before):
    shortcut, other = (next(s.name for s in graph.sites if s.path.endswith(f"1/{x}/kernel")) for x in ("conv3", "conv2"))
    assert before[shortcut] < before[other]


@pytest.fixture(scope="module")
def solve(graph):
    models = [NETWORK.variables, build(ResNetCifar(1, 4, "B", side=8), seed=1).variables]
    maps = [{n.name: al.identity(n.size, n.copies) for n in graph.nodes.values()}] * 2
    given = NETWORK.apply, graph, models, maps, BATCHES
    return functools.partial(nm.LeastSquares(sequential=True), *given, train_apply=NETWORK.train_apply)


def test_it_is_the_same_as_with_all_statistics(solve, monkeypatch):
    """And the pass that estimates them is cut off where the group of a site ends."""

    def solved(group):
        seen = []

        def noted(train_apply, variables, batches, wanted=None):
            seen.append(wanted)
            return reset_some(train_apply, variables, batches, wanted)

        monkeypatch.setattr(upstream, "GROUP", group)
        monkeypatch.setattr("npmerge.least_squares.prepared.reset_some", noted)
        return solve(), [len(STATISTICS if some is None else STATISTICS & some) for some in seen]

    whole, every = solved(100)
    found, some = solved(3)
    assert every == [len(STATISTICS)] * (1 + len(whole.after))
    assert some == [4] * 3 + [8] * 3 + [14] * 3 + [18] + [18]  # the last time for the network that is returned
    chex.assert_trees_all_close(found.variables, whole.variables, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(found.after, whole.after, rtol=1e-3, atol=1e-5)


def test_some_statistics_are_those_of_all():
    """Also where what is wanted is no statistic, and where nothing is."""
    every = flatten(nm.reset_statistics(NETWORK.train_apply, NETWORK.variables, BATCHES))
    mean = "batch_stats/norm/mean"
    some = flatten(reset_some(NETWORK.train_apply, NETWORK.variables, BATCHES, {mean, "params/conv/kernel"}))
    before = flatten(NETWORK.variables)
    for path, x in some.items():
        np.testing.assert_allclose(x, every[path] if path == mean else before[path], rtol=1e-5)
    assert np.abs(every[mean] - before[mean]).max() > 0.01
    assert reset_some(NETWORK.train_apply, NETWORK.variables, BATCHES, ()) is NETWORK.variables
