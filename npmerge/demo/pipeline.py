"""`npmerge demo`: the whole pipeline on real data, with what each step is worth and the controls beside it."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from alignment import CCA, ActivationMatching, Graph, Procrustes, WeightMatching, align, trace, verify
from alignment.base import Alignment
from npmerge.batches import shuffled
from npmerge.constraints import Simplex
from npmerge.demo.digits import Digits, Examples, Split, load_digits
from npmerge.evaluate import LogitEnsemble, Metrics, evaluate
from npmerge.fitting.fit import Loss, fit
from npmerge.granularity import PerChannel, PerParameter, PerTensor
from npmerge.learned import Learned
from npmerge.methods import Average, Fisher
from npmerge.models import Mlp, build, example
from npmerge.objectives import Apply, CrossEntropy, fine_tuning, weight_space
from npmerge.paths import Path, path_between
from npmerge.stack import Stack, stack_models
from npmerge.statistics.collect import DiagonalFisher, NodeMoments, collect

PyTree = Any


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Both grids of rates are of one length: learned merges and controls are tuned alike."""

    hidden: tuple[int, ...] = (128, 128)
    training_rate: float = 1e-3
    training_steps: int = 600
    learning_steps: int = 300
    batch: int = 64
    fractions: tuple[float, ...] = (0.01, 0.05, 0.2, 1.0)
    gammas: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    learned_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    control_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)
    path_points: int = 11


QUICK = Settings(
    hidden=(64, 64),
    training_steps=300,
    learning_steps=100,
    fractions=(0.05, 1.0),
    gammas=(1e-2, 1.0),
    learned_rates=(0.1,),
    control_rates=(1e-3,),
    path_points=5,
)


class Row(NamedTuple):
    """One line of the table."""

    name: str
    kind: str
    fraction: float | None
    validation_accuracy: float
    test_accuracy: float
    test_loss: float
    seconds: float


class Case(NamedTuple):
    """What is learned from labelled examples: the coefficients of a merge, or as a control the weights of a network.

    Attributes:
        name: in the table.
        kind: "learned" or "control".
        start: theta before the first step.
        loss: of theta.
        stack: what is merged; None for weights.
        network: what makes the variables of a network of theta.
    """

    name: str
    kind: str
    start: PyTree
    loss: Loss
    stack: Stack | None
    network: Callable[[PyTree], PyTree]


@dataclass
class Run:
    """What one seed gave."""

    seed: int
    rows: list[Row] = field(default_factory=list)
    paths: dict[str, Path] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)  # on validation data: the alignment, gamma
    rates: dict[str, dict[str, float]] = field(default_factory=dict)  # learning rate by name and labelled fraction
    kept: dict[str, dict[str, int]] = field(default_factory=dict)  # the step whose theta was kept: 0 is the start
    graph: str = ""
    verified: float = 0.0


def fits_per_seed(settings: Settings) -> int:
    """How many networks and merges one seed trains: the length of the progress bar."""
    kinds = 4 * len(settings.learned_rates) + 2 * len(settings.control_rates)
    return 2 + kinds * len(settings.fractions)


def run_seed(split: Split, seed: int, settings: Settings, advance: Callable[[str], None]) -> Run:
    """Train two networks, merge them in every way, learn from there, and measure everything.

    Args:
        split: how the training data are divided between the networks.
        seed: decides data, initialisations and order.
        settings: how much work to do.
        advance: called with a description after each training run.
    """
    return _Demo(load_digits(split, seed=seed), seed, settings, advance).run()


class _Demo:
    """One seed: the data, the shared functions, and the rows so far."""

    def __init__(self, data: Digits, seed: int, settings: Settings, advance: Callable[[str], None]):
        self.data, self.settings, self.advance = data, settings, advance
        self.config = Mlp(64, settings.hidden, 10)
        self.result = Run(seed)

    @property
    def apply(self) -> Apply:
        return build(self.config).apply

    def run(self) -> Run:
        parents = [self.train(k) for k in range(2)]
        graph = trace(self.apply, parents[0], example(self.config))
        key = jax.random.key(self.result.seed)
        self.result.graph = str(graph)
        self.result.verified = verify(self.apply, graph, parents[0], self.data.train.inputs[:64], key=key)
        self.row("logit ensemble", "ensemble", tuple(parents), 0.0, apply=LogitEnsemble(self.apply))
        self.row("average, unaligned", "closed_form", _average(parents), 0.0)
        self.path("unaligned", parents)
        best, aligned = self.align(graph, parents)
        self.fisher(best, graph, aligned)
        self.learn(best, aligned, parents)
        return self.result

    def train(self, k: int) -> PyTree:
        """A parent network from its own initialisation, on its own part of the data."""
        seed, part = 2 * self.result.seed + k, self.data.parts[k]
        began = time.perf_counter()
        result = fit(
            build(self.config, seed=seed).variables,
            fine_tuning(self.apply, CrossEntropy()),
            None,
            shuffled(*part.train, self.settings.batch, seed=seed),
            _adam(self.settings.training_rate),
            steps=self.settings.training_steps,
            held_out=[part.validation],
        )
        self.advance(f"network {k + 1}")
        self.row(f"network {k + 1}", "parent", result.theta, time.perf_counter() - began)
        return result.theta

    def align(self, graph: Graph, parents: list[PyTree]) -> tuple[str, list[PyTree]]:
        """Every alignment, averaged; returns the one with the lowest validation loss."""
        began = time.perf_counter()
        stats = collect(self.apply, graph, parents, [self.data.train], [NodeMoments()])
        taken = time.perf_counter() - began
        candidates: list[tuple[str, Sequence[Alignment], float]] = [
            ("weight matching", [WeightMatching()], 0.0),
            ("activation matching", [ActivationMatching()], taken),
            ("CCA", [CCA(gamma, approximate=True) for gamma in self.settings.gammas], taken),
            ("Procrustes", [Procrustes(approximate=True)], taken),
        ]
        found: dict[str, tuple[float, list[PyTree]]] = {}
        for name, grid, before in candidates:
            began = time.perf_counter()
            tried = [align(alignment, graph, parents, stats=stats) for alignment in grid]
            losses = [self.validate(_average(models)).loss for models in tried]
            k = int(np.argmin(losses))
            found[name] = losses[k], tried[k]
            seconds = before + time.perf_counter() - began
            self.row(f"{name} + average", "closed_form", _average(tried[k]), seconds)
            self.path(name, tried[k])
            if len(grid) > 1:
                self.result.chosen[f"{name} gamma (relative)"] = self.settings.gammas[k]
        best = min(found, key=lambda name: found[name][0])
        self.result.chosen["best alignment"] = best
        return best, found[best][1]

    def fisher(self, best: str, graph: Graph, aligned: list[PyTree]) -> None:
        began = time.perf_counter()
        stats = collect(self.apply, graph, aligned, [self.data.train], [DiagonalFisher()])
        merged = Fisher()(stack_models(aligned), stats=stats)
        self.row(f"{best} + Fisher", "closed_form", merged, time.perf_counter() - began)

    def learn(self, best: str, aligned: list[PyTree], parents: list[PyTree]) -> None:
        """Learned merges and their controls at every labelled fraction, on the same examples in the same order."""
        stack, unaligned = stack_models(aligned), stack_models(parents)
        scratch = build(self.config, seed=10_000 + self.result.seed).variables
        per_parameter = Learned(Average(), PerParameter(), Simplex())
        cases = [
            self.learned(f"NP Merge per tensor, {best}", Learned(Average(), PerTensor(), Simplex()), stack),
            self.learned(f"NP Merge per channel, {best}", Learned(Average(), PerChannel(), Simplex()), stack),
            self.learned(f"NP Merge per parameter, {best}", per_parameter, stack),
            self.learned("NP Merge per parameter, unaligned", per_parameter, unaligned),
            self.control(f"fine-tuned average, {best}", _average(aligned)),
            self.control("trained from scratch", scratch),
        ]
        for fraction in self.settings.fractions:
            for case in cases:
                self.descend(case, fraction)

    def learned(self, name: str, merge: Learned, stack: Stack) -> Case:
        """The coefficients of a merge."""
        loss, built = weight_space(merge, self.apply, CrossEntropy()), functools.partial(jax.jit(merge.apply), stack=stack)
        return Case(name, "learned", merge.init(stack), loss, stack, built)

    def control(self, name: str, weights: PyTree) -> Case:
        """The weights of a network."""
        return Case(name, "control", weights, fine_tuning(self.apply, CrossEntropy()), None, _same)

    def descend(self, case: Case, fraction: float) -> None:
        """Learn at each rate of the grid and keep the one with the lowest validation loss."""
        began = time.perf_counter()
        labelled = self.labelled(fraction)
        rates = self.settings.learned_rates if case.kind == "learned" else self.settings.control_rates
        results = []
        for rate in rates:
            batches, steps = shuffled(*labelled, self.settings.batch, seed=self.result.seed), self.settings.learning_steps
            held_out = [self.data.validation]
            results.append(fit(case.start, case.loss, case.stack, batches, _adam(rate), steps=steps, held_out=held_out))
            self.advance(f"{case.name}, {fraction:.0%} labelled")
        k = int(np.argmin([r.history.held_out_loss.min() for r in results]))
        history, share = results[k].history, f"{fraction:.0%}"
        self.result.rates.setdefault(case.name, {})[share] = rates[k]
        self.result.kept.setdefault(case.name, {})[share] = int(history.held_out_step[history.held_out_loss.argmin()])
        seconds = (time.perf_counter() - began) / len(rates)
        self.row(case.name, case.kind, case.network(results[k].theta), seconds, fraction=fraction)

    def labelled(self, fraction: float) -> Examples:
        """The first examples of the (shuffled) training data: smaller fractions are parts of larger ones."""
        return self.data.train.take(np.arange(max(1, round(fraction * len(self.data.train.labels)))))

    def validate(self, variables: PyTree, apply: Callable | None = None) -> Metrics:
        return evaluate(apply or self.apply, variables, [self.data.validation])

    def row(
        self,
        name: str,
        kind: str,
        variables: PyTree,
        seconds: float,
        *,
        apply: Callable | None = None,
        fraction: float | None = None,
    ) -> None:
        validation = self.validate(variables, apply)
        test = evaluate(apply or self.apply, variables, [self.data.test])
        self.result.rows.append(Row(name, kind, fraction, validation.accuracy, test.accuracy, test.loss, seconds))

    def path(self, name: str, models: list[PyTree]) -> None:
        self.result.paths[name] = path_between(
            self.apply, models[0], models[1], [self.data.test], points=self.settings.path_points
        )


def _average(models: Sequence[PyTree]) -> PyTree:
    stack = stack_models(models)
    return _combined(Average().init(stack), stack)


_combined = jax.jit(Average().apply)


def _same(theta: PyTree) -> PyTree:
    return theta


@functools.lru_cache(maxsize=64)
def _adam(rate: float) -> optax.GradientTransformation:
    """One object per rate: the compiled step is found again by the optimiser's identity."""
    return optax.adam(rate)
