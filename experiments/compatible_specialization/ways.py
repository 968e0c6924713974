"""Ways to make one network of two experts: as what is learned or swept, from which start, by which loss."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import npmerge as nm
from alignment.graph import PyTree
from experiments.compatible_specialization.networks import BLOCKS, Networks
from experiments.compatible_specialization.pool import aligned_pool
from experiments.compatible_specialization.settings import (
    ALIGNED,
    FEATURES,
    LAYERS,
    NP,
    OUTPUTS,
    ROUTED,
    SINGLE,
    TUNED_BASE,
    WEIGHTS,
    routing,
)

BY_LAYER = r"blocks/(\d+)/"


class Case(NamedTuple):
    """What is learned.

    Attributes:
        theta: before the first step.
        loss: of it.
        stack: what is merged; None for a network as it is.
        apply: of the network that comes of it.
        network: its variables, of theta.
        learned: how many numbers.
    """

    theta: PyTree
    loss: Any
    stack: nm.Stack | None
    apply: Callable[..., Any]
    network: Callable[[PyTree], PyTree]
    learned: int


def case_of(networks: Networks, way: str, experts: Sequence[PyTree], measuring: Sequence[tuple]) -> Case:
    """A way that learns; `measuring` are batches of the target's training part, for the aligned pool."""
    if way in ROUTED:
        pool = aligned_pool(networks.apply, experts, measuring) if way == ALIGNED else experts
        routed = nm.route(networks.apply, pool, BLOCKS, measuring[0][0], _router(way), trunk=networks.base)
        loss = nm.fine_tuning(routed.apply, networks.objective)
        return Case(routed.variables, loss, None, routed.apply, _itself, nm.parameters(routed.variables["router"]))
    if way in (LAYERS, NP):
        merge = nm.np_merge() if way == NP else nm.Learned(nm.Average(), nm.PerLayer(BY_LAYER), nm.Simplex())
        stack = nm.stack_models(list(experts))
        theta, learned = merge.init(stack), nm.weight_space(merge, networks.apply, networks.objective)
        return Case(theta, learned, stack, networks.apply, lambda theta: merge.apply(theta, stack), nm.parameters(theta))
    start = networks.base if way == TUNED_BASE else nm.Average()(nm.stack_models(list(experts)))
    loss = nm.fine_tuning(networks.apply, networks.objective)
    return Case(start, loss, None, networks.apply, _itself, nm.parameters(start))


def _router(way: str) -> nm.Router:
    if way == SINGLE:
        return nm.Router(shared=True)
    return nm.Router(layers=next((k for k in (1, 2, 3, 4) if way == routing(k)), 1))


def _itself(theta: PyTree) -> PyTree:
    return theta


class Sweep(NamedTuple):
    """A way that has the share of the second expert for its only number.

    Attributes:
        apply: of the network.
        at: its variables, of the share.
    """

    apply: Callable[..., Any]
    at: Callable[[float], PyTree]


def sweep_of(networks: Networks, way: str, experts: Sequence[PyTree], inputs: np.ndarray) -> Sweep:
    """Weights, features of blocks, or outputs, mixed by one share."""
    if way == WEIGHTS:
        stack = nm.stack_models(list(experts))
        return Sweep(networks.apply, lambda share: nm.WeightedAverage((1 - share, share))(stack))
    pattern = {FEATURES: BLOCKS, OUTPUTS: "()"}[way]
    routed = nm.route(networks.apply, list(experts), pattern, inputs, nm.FeatureAveraging())

    def at(share: float) -> PyTree:
        return {**routed.variables, "router": {"weights": jnp.array([1 - share, share], jnp.float32)}}

    return Sweep(routed.apply, at)
