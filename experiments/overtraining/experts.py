"""A base, and experts of it at moments of their training: all tasks in one compiled run, full or as adapters."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Bool, Float

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.data import Examples, joined
from experiments.overtraining.settings import LORA, PLATEAU, Settings, Setup
from experiments.tasks import Task, Tasks
from npmerge.lora import adapter_tuning, init_adapter, merge_adapter
from npmerge.models import build, example

LARGE = 250
"""Examples of a batch that is measured."""

Moment = int | str
"""Steps of training, or `PLATEAU`."""


class Experts(NamedTuple):
    """The experts of all tasks at one moment.

    Attributes:
        models: one for each task, with full weights.
        steps: of training that each had.
    """

    models: list[PyTree]
    steps: tuple[int, ...]


class Family:
    """A base and its experts, of one setup and seed."""

    def __init__(self, settings: Settings, setup: Setup, tasks: Tasks, seed: int):
        self.settings, self.setup, self.tasks, self.seed = settings, setup, tasks, seed
        network = build(setup.config, seed=1000 * seed)
        self.apply, self.start, self.objective = network.apply, network.variables, nm.CrossEntropy()
        self.full, self.adapters = nm.fine_tuning(self.apply, self.objective), adapter_tuning(self.apply, self.objective)
        self.learning = joined([task.learning for task in tasks.each])
        self.selections = [measured(task.selection) for task in tasks.each]
        self.tests = [measured(task.test) for task in tasks.each]

    @functools.cached_property
    def base(self) -> PyTree:
        """Trained on what no task has, the best on its own selection data."""
        s, t = self.settings, self.setup
        batches = nm.shuffled(*self.tasks.base, s.batch, seed=self.seed)
        learn = functools.partial(nm.fit, steps=t.base_steps, every=max(1, t.base_steps // 8))
        held_out = measured(self.tasks.base_selection)
        return learn(self.start, self.full, None, batches, adam(t.rate), held_out=held_out).theta

    @functools.cached_property
    def graph(self) -> Graph:
        """For statistics."""
        return nm.trace(self.apply, self.base, example(self.setup.config))

    @functools.cache  # noqa: B019 (a family lives as long as its rows)
    def experts(self, training: str) -> Mapping[Moment, Experts]:
        """At every moment, of one run at a constant rate: each is what training of so many steps gives; and at `PLATEAU`."""
        s, seen = self.settings, dict[Moment, Experts]()

        def keep(step: int, theta: PyTree) -> None:
            if step in s.moments:
                models = [self.whole(training, x) for x in nm.Stack(theta).models()]
                seen[step] = Experts(models, (step,) * len(models))

        self._train(training, max(s.moments), every=int(np.gcd.reduce(s.moments)), seen=keep)
        return {**seen, PLATEAU: self._stopped(training)}

    def scoring(self, training: str) -> list[PyTree]:
        """Experts that see other batches, after so many steps that EL2N is measured."""
        theta = self._train(training, self.settings.scored, run=1).theta
        return [self.whole(training, x) for x in nm.Stack(theta).models()]

    def _train(self, training: str, steps: int, *, run: int = 0, **options: Any) -> Any:
        """All tasks in one compiled run, as of `nm.fit_many`."""
        count = len(self.tasks.each)
        starts = nm.stack_models([self.first(training, k) for k in range(count)]).params
        streams = [self.batches(k, run) for k in range(count)]
        rate, stack = adam(self.rate(training)), self.stack(training)
        return nm.fit_many(starts, self.loss(training), streams, rate, steps=steps, stack=stack, **options)

    def _stopped(self, training: str) -> Experts:
        """Each until its own selection loss has come to a plateau, twice: with a smaller rate behind the first."""
        s, rule = self.settings, nm.Plateau(self.settings.patience, cuts=1)
        found = [
            nm.fit(
                self.first(training, k), self.loss(training), self.stack(training), self.batches(k), adam(self.rate(training)),
                steps=max(s.moments), held_out=self.selections[k], every=s.judged, patience=rule,
            )
            for k in range(len(self.tasks.each))
        ]  # fmt: skip
        return Experts([self.whole(training, f.theta) for f in found], tuple(int(f.best_step or 0) for f in found))

    # ------------------------------------------------------------------------------------------ of one way of training

    def first(self, training: str, k: int) -> PyTree:
        """What training starts from."""
        if training != LORA:
            return self.base
        return init_adapter(self.base, self.setup.adapted, self.settings.rank, key=jax.random.key(100 * self.seed + k))

    def loss(self, training: str) -> Any:
        """What an expert minimises."""
        return self.adapters if training == LORA else self.full

    def stack(self, training: str) -> PyTree:
        """What the loss takes besides."""
        return self.base if training == LORA else None

    def rate(self, training: str) -> float:
        """Of Adam."""
        return self.setup.adapter_rate if training == LORA else self.setup.rate

    def whole(self, training: str, theta: PyTree) -> PyTree:
        """An expert with full weights."""
        return merge_adapter(self.base, theta) if training == LORA else theta

    def batches(self, k: int, run: int = 0) -> Iterator[tuple]:
        """What expert k sees, the same in every way of training; another run has another order."""
        return nm.shuffled(*self.tasks.each[k].train, self.settings.batch, seed=100 * self.seed + 50 * run + k)

    # ---------------------------------------------------------------------------------------------------------- measuring

    def selected(self, variables: PyTree, apply: Any = None) -> float:
        """The loss on selection data, the mean over tasks."""
        return float(np.mean([nm.evaluate(apply or self.apply, variables, part).loss for part in self.selections]))

    def tested(self, variables: PyTree, apply: Any = None) -> list[nm.Metrics]:
        """On the test data of each task."""
        return [nm.evaluate(apply or self.apply, variables, part) for part in self.tests]

    def right(self, variables: PyTree, task: Task) -> Bool[np.ndarray, "n ..."]:
        """Which training examples of a task a network has right, or which characters of them."""
        predicted = ((_classes(self.apply, variables, x), y) for x, y in measured(task.train))
        return np.concatenate([np.asarray(classes) == labels for classes, labels in predicted])

    def difficulty(self, variables: PyTree, task: Task) -> Float[np.ndarray, " n"]:
        """EL2N of each training example: |p - one-hot|, the mean over characters (Paul et al. 2021, arXiv 2107.07075)."""
        scores = [_errors(self.apply, variables, x, y) for x, y in measured(task.train)]
        return np.concatenate([np.asarray(score).reshape(len(score), -1).mean(1) for score in scores])


@functools.lru_cache(maxsize=16)
def adam(rate: float) -> optax.GradientTransformation:
    """At a constant rate; one object for each, by which a compiled step is found again."""
    return optax.adam(rate)


def measured(examples: Examples) -> Sequence[tuple]:
    """In batches of one size but for the last."""
    return nm.in_order(*examples, min(LARGE, len(examples.labels)))


@functools.partial(jax.jit, static_argnums=0)
def _classes(apply: Any, variables: PyTree, inputs: jax.Array) -> jax.Array:
    return apply(variables, inputs).argmax(-1)


@functools.partial(jax.jit, static_argnums=0)
def _errors(apply: Any, variables: PyTree, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    found = jax.nn.softmax(apply(variables, inputs))
    return jax.numpy.linalg.norm(found - jax.nn.one_hot(labels, found.shape[-1], dtype=found.dtype), axis=-1)
