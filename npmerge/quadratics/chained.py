"""Merges that go through a network in its order: what a layer reads is measured behind layers that are merged already."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from alignment.activations.taps import capture
from alignment.graph import Graph, PyTree, flatten, path_name, signature
from alignment.sites import Site, Use
from npmerge.arithmetic import wide
from npmerge.base import Merge, Stats
from npmerge.memory import bytes_of, peak_bytes
from npmerge.quadratics.gram_shares import gram_shares, warn_of_open
from npmerge.quadratics.operators import by_path, on_leaves, weigh
from npmerge.stack import Stack
from npmerge.statistics.examples import Run, run_of
from npmerge.statistics.input_grams import SiteGram, added_by_part
from npmerge.statistics.one_by_one import Alone, alone, of_models, one_by_one, per_sample, product, samples_of
from npmerge.telling import tell_of

EXAMPLES = 8  # whose features exist at once


class Chain(NamedTuple):
    """How to go through a network.

    Attributes:
        pattern: leaves with the same first group (or whole match) are one block, one that does not match is a block.
        scale: of off-diagonal elements.
        ridge: see `gram_shares`.
        own: whether models should make of what they read behind merged layers what they make of what they read themselves.
    """

    pattern: str
    scale: float
    ridge: float
    own: bool

    def block(self, path: str) -> str:
        """The block of a leaf."""
        found = re.search(self.pattern, path)
        return path if found is None else found.group(1 if found.re.groups else 0)


class Reading(NamedTuple):
    """What is read of a block, static where functions are compiled.

    Attributes:
        apply: the network.
        graph: of it, for a batch of one example.
        sites: the block's, whose inputs are read.
        own: see `Chain`; if so, their inputs in the models themselves are read, too.
    """

    apply: Callable[..., PyTree]
    graph: Graph
    sites: tuple[Site, ...]
    own: bool


class Found(NamedTuple):
    """What was solved: for each part of a leaf its matrices, and the sites whose inputs leave directions open."""

    shares: list[tuple[Use, Array]]
    corrections: list[tuple[Use, Array]]
    singular: list[str]


def chained(merge: Merge, chain: Chain, stack: Stack, stats: Stats | None) -> dict[str, PyTree]:
    """Shares and, with `own`, corrections, as `weigh` takes them, of one block after the other in the order of the network.

    A block is measured in each model with the blocks before it merged, its own weights in it, and the model's data. What is
    not solved is the mean. The network is run in float32, which the graph must have been traced in.

    Raises:
        ValueError: no data, those of another number of models, or of a network that these models do not fit; passes that would
            hold more bytes than the limit of the data.
    """
    run = run_of(merge, stack, stats)
    wide_stack = Stack(jax.tree.map(wide, stack.params))
    models, leaves = wide_stack.models(), flatten(wide_stack.params)
    merged = jax.tree.map(lambda x: x.mean(0), wide_stack.params)
    one = one_by_one(run.apply, run.graph, models[0], run.tasks[0][0][0])
    readings = _readings(run, one, chain)
    _check_memory(merge, run, list(readings.values()), models)
    found = Found([], [], [])
    for block, reading in readings.items():
        inside = {path for path in leaves if chain.block(path) == block}
        behind = [_replaced(merged, {path: x for path, x in flatten(m).items() if path in inside}) for m in models]
        new = _solved(chain, _read(run, reading, list(zip(behind, models, strict=True))))
        shares, corrections = by_path(new.shares), by_path(new.corrections)
        merged = _replaced(merged, _weighed(shares, Stack({path: leaves[path] for path in shares}), corrections or None))
        found.shares.extend(new.shares)
        found.corrections.extend(new.corrections)
        found.singular.extend(new.singular)
    warn_of_open(merge, found.singular, len(found.shares))
    return {"shares": on_leaves(stack.params, found.shares), "corrections": on_leaves(stack.params, found.corrections)}


def _solved(chain: Chain, read: list[list[SiteGram]]) -> Found:
    found = Found([], [], [])
    solutions = gram_shares([[g.gram for g in kinds] for kinds in read], chain.ridge, chain.scale)
    for (g, *_), ((share, *correction), is_open) in zip(read, solutions, strict=True):
        found.shares.append((g.site, share))
        found.corrections.extend((g.site, c) for c in correction)
        found.singular.extend([g.site.name] * is_open)
    return found


_weighed = jax.jit(weigh)


def _replaced(variables: PyTree, new: Mapping[str, Array]) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, x: new.get(path_name(path), x), variables)


def _readings(run: Run, one: Alone, chain: Chain) -> dict[str, Reading]:
    """The blocks to solve, in the order of the network."""
    blocks: dict[str, list[Site]] = {}
    for site in one.sites.values():
        blocks.setdefault(chain.block(site.path), []).append(site)
    return {block: Reading(run.apply, one.graph, tuple(sites), chain.own) for block, sites in blocks.items()}


def _check_memory(merge: Merge, run: Run, readings: Sequence[Reading], models: Sequence[PyTree]) -> None:
    """Raise ValueError, before the first pass, if one of them would hold more bytes than the run may."""
    pair, shapes = (models[0], models[0]), {signature(batch): batch for task in run.tasks for batch in task}
    sums, steps = [], [0]
    for reading in readings:
        for batch in shapes.values():
            traced = _sums.trace(reading, pair, *batch)
            steps.append(peak_bytes(traced.jaxpr.jaxpr) + 2 * bytes_of(traced.out_info))
        sums.append(len(models) * bytes_of(traced.out_info))
    matrices, data = 2 * sum(sums), bytes_of({id(x): x for x in jax.tree.leaves(run.tasks)})  # sums, and what they solve to
    total = bytes_of(models) + data + matrices + max(steps)
    if total > run.memory_limit:
        raise ValueError(
            f"{type(merge).__name__} would hold {total / 1e9:.3g} GB, {matrices / 1e9:.3g} GB of matrices and {data / 1e9:.3g} "
            f"GB of data among them, more than memory_limit={run.memory_limit:g} bytes: use fewer models or examples, or raise "
            "memory_limit of collect"
        )


def _read(run: Run, reading: Reading, networks: Sequence[tuple[PyTree, PyTree]]) -> list[list[SiteGram]]:
    """X^T X / n of what each part of the block's leaves reads, and, if asked for, X^T (Y - X) / n with the model's own Y."""
    totals = []
    for pair, batches in zip(networks, run.tasks, strict=True):
        calls = [(reading, pair, *batch) for batch in batches]
        for call in calls:
            tell_of(_sums, *call)
        totals.append(functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), (_sums(*call) for call in calls)))
    total = jax.tree.map(lambda *x: jnp.concatenate(x), *totals)
    shapes = {path: np.shape(x) for path, x in flatten(networks[0][1]).items()}
    kinds = [
        [SiteGram(total[s.name][0], per_sample(total[s.name][k], total[s.name][0]), s) for s in reading.sites]
        for k in range(1, 2 + reading.own)
    ]
    return [list(each) for each in zip(*(added_by_part(grams, shapes) for grams in kinds), strict=True)]


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    reading: Reading, pair: tuple[PyTree, PyTree], x: PyTree, mask: Bool[Array, "examples ..."]
) -> dict[str, tuple[Array, ...]]:
    """Of one batch, with an axis of one model: the number of samples and the sums of products of each site."""
    apply, graph, sites, own = reading
    names = [site.name for site in sites]

    def read(variables: PyTree, x: PyTree) -> dict[str, Array]:
        found = jax.vmap(lambda one: capture(apply, graph, variables, *alone(one), nodes=(), sites=names).sites)(x)
        return {name: found[name].inputs.astype(jnp.float32) for name in names}

    def sums(pair: tuple[PyTree, PyTree], x: PyTree, mask: Bool[Array, "examples ..."]) -> dict[str, tuple[Array, ...]]:
        behind, itself = (read(variables, x) for variables in pair)
        made: dict[str, tuple[Array, ...]] = {}
        for site in sites:
            z = behind[site.name]
            w = samples_of(site, mask, z.shape[-2])
            more = (product(z, w, itself[site.name] - z),) if own else ()
            made[site.name] = (w.sum(dtype=jnp.float32), product(z, w), *more)
        return made

    return of_models(sums, EXAMPLES, [pair], x, mask)
