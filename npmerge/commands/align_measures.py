"""What `npmerge align` measures of networks before and after."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from alignment import Graph, NodeMoments, matched_correlation
from alignment.graph import PyTree, flatten
from alignment.names import is_statistic
from alignment.weight_distance import weights
from npmerge.commands.align_inputs import Data
from npmerge.paths import Path, path_between, resetting
from npmerge.statistics.collect import collect

T = TypeVar("T")


class Runs(Protocol):
    """A network as functions."""

    @property
    def apply(self) -> Callable[..., Any]:
        """`(variables, inputs) -> outputs` in evaluation mode."""

    @property
    def train_apply(self) -> Callable[..., Any] | None:
        """`(variables, inputs) -> (outputs, variables with new statistics)`; None for networks without."""


class Change(NamedTuple, Generic[T]):
    """Something before alignment and after it."""

    before: T
    after: T


class Measured(NamedTuple):
    """Lists have one entry for each network but the reference.

    Attributes:
        verified: what `verify` found: how far random symmetries move the reference's outputs, relative to the largest.
        moved: how far the alignment moved the outputs of each network, relative to the largest.
        distances: squared distance of the weights to the reference.
        correlations: node -> matched correlation of each network; None without data.
        paths: loss on the way from the reference to each network; None without labels.
    """

    verified: float
    moved: list[float]
    distances: Change[list[float]]
    correlations: Change[dict[str, np.ndarray]] | None
    paths: Change[list[Path]] | None


def output_change(network: Runs, before: PyTree, after: PyTree, inputs: np.ndarray) -> float:
    """Largest |f(after) - f(before)| / largest |f(before)| on some inputs."""
    apply = jax.jit(network.apply)
    old, new = (np.asarray(apply(variables, inputs), np.float64) for variables in (before, after))
    return float(np.abs(new - old).max() / max(np.abs(old).max(), np.finfo(np.float32).tiny))


def squared_distance(reference: PyTree, other: PyTree) -> float:
    """Sum over all weights of (A - B)^2; running statistics are no weights."""
    ours, theirs = weights(reference), weights(other)
    return sum(float(np.square(np.asarray(ours[path], np.float64) - np.asarray(theirs[path])).sum()) for path in ours)


def correlations(
    network: Runs, graph: Graph, models: Sequence[PyTree], data: Data, progress: Callable[[int], Any]
) -> dict[str, np.ndarray]:
    """Matched correlation of every node that has a tap, in the order of the network; progress is told of batches."""
    moments = collect(network.apply, graph, models, data.batches(), [NodeMoments], progress=progress)[NodeMoments]
    found = matched_correlation(moments)
    return {node: found[node] for node in graph.nodes if node in found}


def path_to(network: Runs, ends: tuple[PyTree, PyTree], data: Data, points: int, tell: Callable[[], None]) -> Path:
    """Loss from one network to another, statistics of BatchNorm re-estimated at every point, each of which is told of."""
    train_apply = network.train_apply if has_statistics(ends[0]) else None
    estimated = resetting(train_apply, data.even_batches()) if train_apply else lambda variables: variables

    def reset(variables: PyTree) -> PyTree:
        tell()
        return estimated(variables)

    return path_between(network.apply, *ends, data.batches(), points=points, reset=reset)


def has_statistics(variables: PyTree) -> bool:
    """Whether there are running statistics."""
    return any(map(is_statistic, flatten(variables)))
