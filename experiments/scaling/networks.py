"""The networks of a group: trained together in one compiled run, aligned in every way, measured each on its own images."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import optax
from jaxtyping import Float

import npmerge as nm
from alignment import CycleConsistent, WeightMatching
from alignment.graph import Graph, PyTree, flatten
from experiments.data import Examples, Images, labelled, split
from experiments.problem import alike, batched, first
from experiments.scaling.settings import MEAN, NONE, REFERENCE, SUCCESSIVE, UNIVERSE, Block, Settings
from npmerge.models import Mlp, build, example
from npmerge.statistics.collect import Statistic

T = TypeVar("T")

TOGETHER = {MEAN: WeightMatching(), UNIVERSE: CycleConsistent()}
"""Alignments of all networks at once."""


class Networks:
    """Networks that are merged with each other.

    Args:
        settings: how much work.
        block: which networks.
        images: what they are trained on; flattened here.
        seed: of everything that is drawn.
        folder: where trained networks are kept.
    """

    def __init__(self, settings: Settings, block: Block, images: Images, seed: int, folder: Path):
        self.settings, self.block, self.seed = settings, block, seed
        self.path = folder / f"{block.name.replace(', ', '-').replace(' ', '-')}-{seed}.npz"
        train, validation, test = map(_flat, first(images, settings.images)[1:])
        chosen = labelled(train.labels, settings.labelled, seed=seed)
        self.labelled, self.pool = train.take(chosen), train.take(np.setdiff1d(np.arange(len(train.labels)), chosen))
        self.config = Mlp(train.inputs.shape[1], settings.hidden, int(train.labels.max()) + 1)
        self.network = build(self.config, seed=1000 * seed)
        self.apply, self.objective = self.network.apply, nm.CrossEntropy()
        self.loss = nm.fine_tuning(self.apply, self.objective)
        self.validation, self.test = batched(validation, settings.judged), alike(test, settings.tested)
        self._aligned: dict[tuple[str, int], tuple[list[PyTree], float]] = {}

    # -------------------------------------------------------------------------------------------------------- as they are

    @functools.cached_property
    def starts(self) -> list[PyTree]:
        """Before training."""
        own = range(self.count) if self.block.start == "own" else [0] * self.count
        return [build(self.config, seed=1000 * self.seed + k).variables for k in own]

    @property
    def count(self) -> int:
        """Of all networks."""
        return max(self.block.counts)

    @functools.cached_property
    def parts(self) -> list[Examples]:
        """What each learns from."""
        places = split(self.block.split, self.pool.labels, self.count, seed=self.seed)
        return [self.pool if self.block.split == "same" else self.pool.take(part) for part in places]

    @functools.cached_property
    def models(self) -> list[PyTree]:
        """Trained, all of them in one compiled run; read where they were trained before."""
        s, start = self.settings, nm.stack_models(self.starts).params
        if self.path.is_file():
            with np.load(self.path) as file:
                leaves = [file[path] for path in flatten(start)]
            return nm.Stack(jax.tree.unflatten(jax.tree.structure(start), leaves)).models()
        began = time.perf_counter()
        batches = [nm.shuffled(*part, s.batch, seed=1000 * self.seed + k) for k, part in enumerate(self.parts)]
        found = nm.fit_many(start, self.loss, batches, optax.adam(s.rate), steps=s.training_steps).theta
        self.path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {path: np.asarray(x) for path, x in flatten(found).items()}
        np.savez(self.path, **arrays, seconds=time.perf_counter() - began)
        return nm.Stack(found).models()

    @functools.cached_property
    def graph(self) -> Graph:
        """Which units are alike."""
        return nm.trace(self.apply, self.network.variables, example(self.config))

    @functools.cached_property
    def logits(self) -> Float[np.ndarray, "models images classes"]:
        """Of each network on the test set."""
        apply = jax.jit(jax.vmap(self.apply, (0, None)))
        theta = nm.stack_models(self.models).params
        return np.concatenate([np.asarray(apply(theta, x)) for x, _ in self.test], 1)

    # ------------------------------------------------------------------------------------------------ brought together

    def aligned(self, alignment: str, count: int) -> tuple[list[PyTree], float]:
        """The first so many networks brought together, and the CPU seconds of that, after a call that compiled everything."""
        if (found := self._aligned.get((alignment, count))) is None:
            self._bring(alignment, self.models[: count if alignment in TOGETHER else 2])  # those are compiled for a number
            found = self._aligned[alignment, count] = spent(lambda: self._bring(alignment, self.models[:count]))
        return found

    def _bring(self, alignment: str, models: Sequence[PyTree]) -> list[PyTree]:
        if alignment in TOGETHER:
            return nm.align(TOGETHER[alignment], self.graph, models)
        if alignment == REFERENCE:
            return [models[0], *(self.matched(models[0], model) for model in models[1:])]
        if alignment == SUCCESSIVE:
            return list(self._one_by_one(models))
        assert alignment == NONE
        return list(models)

    def matched(self, fixed: PyTree, model: PyTree) -> PyTree:
        """A network in the units of another."""
        return nm.align(TOGETHER[MEAN], self.graph, [fixed, model])[1]

    def _one_by_one(self, models: Sequence[PyTree]) -> Iterator[PyTree]:
        """Each in the units of the average of those before it."""
        average = models[0]
        yield average
        for k, model in enumerate(models[1:], 1):
            moved = self.matched(average, model)
            average = jax.tree.map(lambda a, b, k=k: a + (b - a) / np.float32(k + 1), average, moved)
            yield moved

    def stats(self, models: Sequence[PyTree], statistics: Sequence[Statistic]) -> Mapping[type, Any]:
        """Of each network on as many images of its own; of few it has some are drawn again."""
        rng, own = np.random.default_rng(self.seed), []
        for part in self.parts[: len(models)]:
            size, wanted = len(part.labels), self.settings.measured
            own.append([tuple(part.take(rng.choice(size, wanted, replace=size < wanted)))])
        return nm.collect_each(self.apply, self.graph, models, own, statistics)

    def measuring(self, count: int) -> list[tuple]:
        """Images that all channels are measured on, as many in all as each network has for itself: from each in turn.

        None is there twice where all networks have the same ones.
        """
        wanted = self.settings.measured
        few = [part.take(np.arange(k, wanted, count) % len(part.labels)) for k, part in enumerate(self.parts[:count])]
        return [tuple(np.concatenate(x) for x in zip(*few, strict=True))]

    def judged(self, variables: PyTree) -> nm.Metrics:
        """Accuracy and loss on validation data."""
        return nm.evaluate(self.apply, variables, self.validation)

    def tested(self, variables: PyTree) -> nm.Metrics:
        """Accuracy and loss on the test set."""
        return nm.evaluate(self.apply, variables, self.test)


def spent(function: Callable[[], T]) -> tuple[T, float]:
    """What a function returns, and the CPU seconds of all threads: other work of the machine does not count."""
    began = time.process_time()
    found = jax.block_until_ready(function())
    return found, time.process_time() - began


def _flat(examples: Examples) -> Examples:
    return Examples(examples.inputs.reshape(len(examples.labels), -1), examples.labels)


def seconds_of(folder: Path) -> float:
    """How long all networks that are kept in a folder were trained."""
    return round(sum(float(np.load(path)["seconds"]) for path in sorted(folder.glob("*.npz"))), 1)
