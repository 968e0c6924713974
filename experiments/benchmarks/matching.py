"""Rows of the benchmarks: matching weights, and linear assignment."""

import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import npmerge as nm
from alignment import WeightMatching
from alignment.assignment import assign_in_jit
from alignment.graph import PyTree, flatten
from alignment.names import STATISTICS
from alignment.permutations import unmoved
from alignment.sinkhorn import sinkhorn
from experiments.benchmarks import git_rebasin
from experiments.benchmarks.git_rebasin import Tensors
from experiments.benchmarks.timing import Row, interleaved
from npmerge.models import Config, ResNet, ResNetCifar, abstract, example

UNITS = (64, 256, 1024, 4096)


def rows(*, quick: bool, repeats: int) -> list[Row]:
    """All of them; quick ones are of tiny networks."""
    resnet_50 = ResNet(block="bottleneck", stages=(3, 4, 6, 3))
    large, sizes = (ResNetCifar(width=2), UNITS[:1]) if quick else (resnet_50, UNITS)
    pair = weight_matching(large, "2 x ResNet-20 of width 2" if quick else "2 x ResNet-50", 2, repeats=min(repeats, 3))
    width, many = (2, 3) if quick else (16, 8)
    joint = weight_matching(ResNetCifar(width=width), f"{many} x ResNet-20 of width {width}", many, repeats=min(repeats, 3))
    assignments = [assignment(n, repeats=min(repeats, 5 if n < 4096 else 1)) for n in sizes]
    return [pair, joint, *assignments, sinkhorn_compilation(sizes[-1] // 4)]


def weight_matching(config: Config, name: str, models: int, repeats: int) -> Row:
    """Random networks (for which no good order exists, so that it takes the most sweeps) against the algorithm as published."""
    network = abstract(config)
    graph = nm.trace(network.apply, network.variables, example(config))
    trees = [_random(network.variables, k) for k in range(models)]
    kept = [{p: x for p, x in flatten(t).items() if not re.search(STATISTICS, p)} for t in trees]
    found: dict[str, list] = {}

    def ours() -> None:
        found["ours"] = WeightMatching().init(graph, trees)

    def peer() -> None:
        rng, tensors = np.random.default_rng(0), [git_rebasin.tensors(graph, weights) for weights in kept]
        if models > 2:
            found["peer"] = git_rebasin.merge_many(graph, tensors, rng)
        else:
            orders = git_rebasin.weight_matching(graph, tensors[0], tensors[1], rng)
            found["peer"] = _moved(tensors, [unmoved(graph), orders])

    times = interleaved(ours, peer, repeats=repeats, warm=False)
    tensors = [git_rebasin.tensors(graph, weights) for weights in kept]
    quality = agreement(_moved(tensors, found["ours"])) / agreement(found["peer"])
    return f"weight matching, {name} (objective {quality:.3f} of the other's)", "Git Re-Basin written plainly", *times


def _random(variables: PyTree, seed: int) -> PyTree:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), variables)


def _moved(models: Sequence[Tensors], theta: Sequence[git_rebasin.Orders]) -> list[Tensors]:
    pairs = zip(models, theta, strict=True)
    return [[(nodes, git_rebasin.permuted(nodes, x, orders)) for nodes, x in model] for model, orders in pairs]


def agreement(models: Sequence[Tensors]) -> float:
    """The sum over all pairs of models of the inner product of their weights."""
    same = [[x for _, x in each] for each in zip(*models, strict=True)]
    return sum(float(np.vdot(sum(xs), sum(xs)) - sum(np.vdot(x, x) for x in xs)) / 2 for xs in same)


def assignment(units: int, repeats: int) -> Row:
    """On the host against on the device, from inside a jitted function; the scores are random."""
    scores = jnp.asarray(np.random.default_rng(0).standard_normal((units, units), np.float32))
    host, device = (jax.jit(lambda s, on=on: assign_in_jit(s, device=on)) for on in (False, True))
    times = interleaved(lambda: host(scores), lambda: device(scores), repeats=repeats)
    return f"assignment of {units} units on the host", "on the device", *times


def sinkhorn_compilation(units: int) -> Row:
    """How long the gradient of 30 iterations takes to compile, against the five seconds that it may."""
    gradient = jax.jit(jax.grad(lambda x: jnp.vdot(sinkhorn(x, iterations=30), x)))
    lowered = gradient.lower(jnp.zeros((units, units)))
    began = time.perf_counter()
    lowered.compile()
    return f"compile the gradient of a 30-step Sinkhorn of {units} units", "five seconds", time.perf_counter() - began, 5.0
