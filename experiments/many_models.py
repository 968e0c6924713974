"""Up to 32 networks merged into one: jointly, in pairs one after another, and beside a fine-tuned average.

`python -m experiments.many_models --preset cpu --out experiments/results/many_models --seeds 3`
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.command import launch
from experiments.data import Examples, Images, load_images
from experiments.learning import mean_shares
from experiments.many_models_page import figure, page
from experiments.many_models_settings import (
    AVERAGE,
    CONTROL,
    ENSEMBLE,
    JOINT,
    LONG,
    PAIRS,
    PARENTS,
    PRESETS,
    REVERSED,
    SHORT,
    START,
    TENSORS,
    Settings,
)
from experiments.run import Preset, Rows, machine
from npmerge.granularity import Granularity
from npmerge.models import Mlp, build


class Found(NamedTuple):
    """A network, the share of each model in it (its mean over the parameters), and how many numbers were learned at once."""

    network: PyTree
    shares: np.ndarray
    learned: int


class Experiment:
    """One seed: networks from one start, each trained on images of its own, and a row for every merge of the first N."""

    def __init__(self, images: Images, settings: Settings, seed: int, rows: Rows):
        self.settings, self.seed, self.rows = settings, seed, rows
        network = build(Mlp(64, settings.hidden, 10), seed=seed)
        self.apply, self.start, self.objective = network.apply, network.variables, nm.CrossEntropy()
        train, self.validation, self.test = map(_flat, images[1:])
        order = np.random.default_rng(seed).permutation(len(train.labels))
        self.labelled, self.pool = (train.take(x) for x in np.split(order, [settings.labelled]))

    def run(self) -> None:
        """Every row that is not there yet."""
        jobs = {(n, name): job for n in self.settings.counts for name, job in self.jobs(n)}
        left = [key for key in jobs if not self.rows.has(seed=self.seed, models=key[0], method=key[1])]
        if not left:
            return
        self.models = [self.parent(k) for k in range(max(self.settings.counts))]
        for n, name in left:
            began = time.perf_counter()
            row = {"seed": self.seed, "models": n, "method": name, **jobs[n, name]()}
            self.rows.add(row | {"seconds": round(time.perf_counter() - began, 2)})
            typer.echo(f"seed {self.seed}, {n} models, {name}: accuracy {row['accuracy']:.4f}", err=True)

    def jobs(self, n: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """What there is to do for the first n models: a method, and the function that makes its row."""
        for name, measure in ((PARENTS, self.parents), (ENSEMBLE, self.ensemble), (AVERAGE, self.average)):
            yield name, functools.partial(measure, n)
        for name, learn, rates, steps in self.learned(n):
            yield name, functools.partial(self.tuned, rates, learn, steps)

    def learned(self, n: int) -> Iterator[tuple[str, Callable[..., Found], tuple[float, ...], int]]:
        """The rows that learn: how, at which rates, and for how many steps (of each pair)."""
        s, given = self.settings, list(range(n))
        yield JOINT, functools.partial(self.joint, n, nm.PerParameter()), s.learned_rates, s.steps
        yield TENSORS, functools.partial(self.joint, n, nm.PerTensor()), s.learned_rates, s.steps
        yield SHORT, functools.partial(self.pairs, given), s.learned_rates, max(1, s.steps // (n - 1))
        yield PAIRS, functools.partial(self.pairs, given), s.learned_rates, s.steps
        yield REVERSED, functools.partial(self.pairs, given[::-1]), s.learned_rates, s.steps
        for name, start, steps in ((CONTROL, n, s.steps), (START, 0, s.steps), (LONG, n, s.steps * (n - 1))):
            yield name, functools.partial(self.control, start), s.control_rates, steps

    def parent(self, k: int) -> PyTree:
        """Train one network from the common start on classes drawn for it."""
        s, rng = self.settings, np.random.default_rng([self.seed, k])
        odds = rng.dirichlet(np.full(10, s.skew))[self.pool.labels] + 1e-6
        own = self.pool.take(rng.choice(len(odds), s.part, replace=False, p=odds / odds.sum()))
        loss = nm.fine_tuning(self.apply, self.objective)
        batches = nm.shuffled(*own, s.batch, seed=k)
        return nm.fit(self.start, loss, None, batches, _adam(s.training_rate), steps=s.training_steps).theta

    # ------------------------------------------------------------------------------------------------------------- the rows

    def parents(self, n: int) -> dict[str, Any]:
        """The networks themselves, on average."""
        found = [nm.evaluate(self.apply, model, [self.test]) for model in self.models[:n]]
        accuracy, loss = (float(np.mean([getattr(f, name) for f in found])) for name in ("accuracy", "loss"))
        return _row(nm.Metrics(accuracy, loss, 0))

    def ensemble(self, n: int) -> dict[str, Any]:
        """The mean of their logits."""
        return _row(nm.evaluate(nm.LogitEnsemble(self.apply), self.models[:n], [self.test]))

    def average(self, n: int) -> dict[str, Any]:
        """What all learned ones start from."""
        return _row(nm.evaluate(self.apply, nm.Average()(nm.stack_models(self.models[:n])), [self.test]))

    def tuned(self, rates: Sequence[float], learn: Callable[..., Found], steps: int) -> dict[str, Any]:
        """Learn at each rate, keep the one of lowest validation loss, and measure that one on the test set."""
        found = [learn(_adam(rate), steps) for rate in rates]
        losses = [nm.evaluate(self.apply, f.network, [self.validation]).loss for f in found]
        best = int(np.argmin(losses))
        row = _row(nm.evaluate(self.apply, found[best].network, [self.test]), rate=rates[best], steps=steps)
        shares = [round(float(x), 5) for x in found[best].shares]
        return row | {"learned": found[best].learned, "shares": shares}

    def joint(self, n: int, granularity: Granularity, optimizer: optax.GradientTransformation, steps: int) -> Found:
        """All coefficients of all models at once."""
        stack, merge = nm.stack_models(self.models[:n]), nm.Learned(nm.Average(), granularity, nm.Simplex())
        theta = self.fitted(merge.init(stack), nm.weight_space(merge, self.apply, self.objective), stack, optimizer, steps)
        network, coefficients = _merged(merge, theta, stack)
        return Found(network, mean_shares(coefficients, network), nm.parameters(theta))

    def pairs(self, order: Sequence[int], optimizer: optax.GradientTransformation, steps: int) -> Found:
        """One model after another."""
        learn = functools.partial(nm.successive, self.models[: len(order)], self.apply, self.objective, order=order)
        batches = nm.shuffled(*self.labelled, self.settings.batch, seed=self.seed)
        found = learn(batches, optimizer, steps=steps, held_out=[self.validation], every=_every(steps))
        return Found(found.network, mean_shares(found.shares, found.network), nm.parameters(found.turns[0].theta))

    def control(self, n: int, optimizer: optax.GradientTransformation, steps: int) -> Found:
        """All weights of the average of n models, of the common start for none."""
        loss = nm.fine_tuning(self.apply, self.objective)
        start = nm.Average()(nm.stack_models(self.models[:n])) if n else self.start
        network = self.fitted(start, loss, None, optimizer, steps)
        return Found(network, np.array([]), nm.parameters(network))

    def fitted(self, theta: PyTree, loss: Callable, stack: Any, optimizer: optax.GradientTransformation, steps: int) -> PyTree:
        """The theta of lowest validation loss."""
        batches = nm.shuffled(*self.labelled, self.settings.batch, seed=self.seed)
        learn = functools.partial(nm.fit, held_out=[self.validation], every=_every(steps))
        return learn(theta, loss, stack, batches, optimizer, steps=steps).theta


def _row(metrics: nm.Metrics, *, rate: float | str = "", steps: int = 0) -> dict[str, Any]:
    return {"accuracy": metrics.accuracy, "loss": metrics.loss, "rate": rate, "steps": steps, "learned": 0, "shares": []}


def _flat(examples: Examples) -> Examples:
    return Examples(examples.inputs.reshape(len(examples.labels), -1), examples.labels)


def _every(steps: int) -> int:
    """Ten judgements on validation data, however long the run."""
    return max(1, steps // 10)


@functools.lru_cache(maxsize=64)
def _adam(rate: float) -> optax.GradientTransformation:
    """One object per rate: the compiled step is found again by the optimiser's identity."""
    return optax.adam(rate)


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: nm.Learned, theta: PyTree, stack: nm.Stack) -> tuple[PyTree, PyTree]:
    return merge.apply(theta, stack), merge.coefficients(theta, stack)


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/many_models"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
) -> None:
    """Train networks on scikit-learn's digits, merge the first 2 to 32 of them, write the rows, the figure and the page."""
    images, settings = load_images(), PRESETS[preset]
    rows = Rows(out / "rows.csv", ("seed", "models", "method"), dataclasses.asdict(settings) | {"data": images.name})
    for k in range(seed, seed + seeds):
        Experiment(images, settings, k, rows).run()
    command = f"python -m experiments.many_models --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    (out / "README.md").write_text(page(rows, command, settings, images.name), encoding="utf-8")
    figure(rows).savefig(out / "accuracy.png", dpi=150)
    seconds = round(sum(row["seconds"] for row in rows.all), 1)
    record = {"command": command, "settings": dataclasses.asdict(settings), "machine": machine(), "seconds": seconds}
    (out / "rows.json").write_text(json.dumps({**record, "rows": rows.all}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch(main)
