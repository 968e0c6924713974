"""The networks that are merged: trained once and kept beside the rows, aligned in every way that is asked for."""

import functools
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import alignment as al
import npmerge as nm
from alignment import Alignment
from alignment.graph import PyTree
from experiments.data import Examples, split
from experiments.np_merge.settings import ACTIVATIONS, CCA, COMMON, PLAIN, WEIGHTS
from experiments.parents import kept
from experiments.problem import Problem


class Group(NamedTuple):
    """Networks that are merged with each other: how they start, who sees which images, and how many there are."""

    initialisation: str
    split: str
    models: int

    @property
    def trained(self) -> "Group":
        """The group by whose images they are trained: where all see the same, two are the first of eight."""
        return self._replace(models=0) if self.split == "same" else self


class Networks:
    """The networks of a group and their alignments.

    Args:
        problem: what they are trained on.
        group: which.
        folder: where trained networks are kept.
        gammas: for CCA to choose from.
    """

    def __init__(self, problem: Problem, group: Group, folder: Path, gammas: tuple[float, ...]):
        self.problem, self.group, self.folder, self.gammas = problem, group, folder, gammas
        self.seconds = 0.0  # spent on training, which no row is to blame for
        self.aligned, self.fisher = functools.cache(self._aligned), functools.cache(self._fisher)

    @functools.cached_property
    def models(self) -> list[PyTree]:
        """Trained, with statistics of BatchNorm from the measured images."""
        return [self.problem.renewed(self._parent(k)) for k in range(self.group.models)]

    @functools.cached_property
    def stats(self) -> Any:
        """Moments of activations on the measured images."""
        p, wanted = self.problem, [nm.NodeMoments(), nm.JointMoments()]
        return nm.collect(p.network.apply, p.graph, self.models, p.measuring, wanted)

    def _fisher(self, start: str, labelled: int) -> Any:
        """Diagonal Fisher information of the aligned networks on the first of the labelled images, whose labels it leaves."""
        p = self.problem
        few = p.labelled(min(labelled, p.task.fisher))
        batches = nm.in_order(*few, min(128, len(few.labels)))
        return nm.collect(p.network.apply, p.graph, self.aligned(start)[0], batches, [nm.DiagonalFisher("sampled")])

    def _aligned(self, start: str) -> tuple[list[PyTree], str]:
        """The networks in the units of the first, and what was chosen for that on validation data."""
        if start == PLAIN:
            return self.models, ""
        found = [(self._by(alignment), said) for alignment, said in _alignments(start, self.gammas)]
        if len(found) == 1:
            return found[0]
        p = self.problem
        losses = [p.judged(p.renewed(nm.Average()(nm.stack_models(models)))).loss for models, _ in found]
        return found[int(np.argmin(losses))]

    def _by(self, alignment: Alignment) -> list[PyTree]:
        p = self.problem
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "approximate maps leave running statistics")  # re-estimated after the merge
            return nm.align(alignment, p.graph, self.models, stats=self.stats if alignment.needs else None)

    def _parent(self, k: int) -> PyTree:
        """Train one network on its images, or read the one that was trained before."""
        p, group = self.problem, self.group.trained
        name = f"{p.task.name}-{group.initialisation}-{group.split}-{group.models or 'any'}-{p.seed}-{k}.safetensors"
        seed, began = 1000 * p.seed + (0 if group.initialisation == COMMON else k), time.perf_counter()
        network = kept(p, self.part(k), self.folder / name, seed=seed, order=k)
        self.seconds += time.perf_counter() - began
        return network

    def part(self, k: int) -> Examples:
        """The training images of one network."""
        train, group = self.problem.images.train, self.group
        if group.split == "same":
            return train
        return train.take(split(group.split, train.labels, group.models, seed=self.problem.seed)[k])


def _alignments(start: str, gammas: tuple[float, ...]) -> list[tuple[Alignment, str]]:
    if start == CCA:
        return [(al.CCA(gamma, approximate=True), f"gamma {gamma:g}") for gamma in gammas]
    return [({WEIGHTS: al.WeightMatching(), ACTIVATIONS: al.ActivationMatching()}.get(start) or al.ZipIt(), "")]
