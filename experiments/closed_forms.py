"""Every closed-form merge of three fine-tunes of one base, and what learning from each of them adds.

`python -m experiments.closed_forms --preset cpu --out experiments/results/closed_forms --seeds 3`
"""

import dataclasses
import functools
import itertools
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.closed_forms_page import figure, page
from experiments.closed_forms_settings import (
    BASE,
    CLOSED,
    EMPTY,
    ENSEMBLE,
    LEARNED,
    MODELS,
    MULTI,
    OWN,
    PER_TASK,
    PRESETS,
    PUBLISHED,
    REFERENCES,
    TUNED,
    UNMERGED,
    Settings,
    made_with,
)
from experiments.command import launch
from experiments.data import PACS, Examples, joined
from experiments.grids import Choice, Way, way_of
from experiments.run import Preset, Rows, check_settings, machine
from experiments.tasks import Sizes, Tasks, load_tasks
from npmerge import checkpoint, cost
from npmerge.granularity import Granularity
from npmerge.models import Mlp, ResNetCifar, build, example
from npmerge.models.build import Config

Job = Callable[[], dict[str, Any]]


class Experiment:
    """One seed: a base, a fine-tune for each of three tasks, and rows for every merge of them."""

    def __init__(self, tasks: Tasks, settings: Settings, seed: int, out: Path, rows: Rows):
        self.tasks, self.settings, self.seed, self.out, self.rows = tasks, settings, seed, out, rows
        self.config = config_of(tasks, settings)
        self.network, self.objective = build(self.config), nm.CrossEntropy()
        self.fine_tuned = nm.fine_tuning(self.in_training, self.objective)
        self.learning = self.shaped(joined([task.learning for task in tasks.each]))
        self.selections = [nm.in_order(*self.shaped(task.selection), 1000) for task in tasks.each]
        self.tests = [nm.in_order(*self.shaped(task.test), 1000) for task in tasks.each]

    def run(self) -> None:
        """Every row that is not there yet."""
        for name in REFERENCES:
            self.row(name, "", functools.partial(self.reference, name))
        for method in self.methods:
            name = method.__name__
            self.row(name, CLOSED, functools.partial(self.closed, method))
            if hasattr(method, "task"):
                self.row(name, PER_TASK, functools.partial(self.per_task, method))
            for stage, job in self.continuations(method).items():
                self.row(name, stage, job)
        for name in self.settings.published:
            self.row(name, LEARNED, functools.partial(self.published, *PUBLISHED[name]))

    @property
    def methods(self) -> list[type[nm.Merge]]:
        """Those of METHODS that the settings name."""
        return [method for method in nm.METHODS if method.__name__ in self.settings.methods]

    def way(self, method: type[nm.Merge]) -> Way:
        """How it is built for these models."""
        way = way_of(method, len(self.tasks.each), {"score": self.score})
        return way._replace(grids={name: values[: self.settings.values] for name, values in way.grids.items()})

    def score(self, network: PyTree) -> float:
        """More is better: for methods that ask for a score."""
        return -self.judged([self.renewed(network)] * 3)

    def row(self, method: str, stage: str, job: Job) -> None:
        """One row, with its wall time; one that says why if it cannot be made."""
        if self.rows.has(seed=self.seed, method=method, stage=stage):
            return
        began = time.perf_counter()
        with warnings.catch_warnings(record=True) as said:
            warnings.filterwarnings("always", category=UserWarning)
            try:
                found = job()
            except ValueError as error:
                found = dict.fromkeys(self.measures(), "") | {"error": str(error)}
        found["said"] = sorted({str(warning.message) for warning in said})
        seconds = round(time.perf_counter() - began, 2)
        self.rows.add({"seed": self.seed, "method": method, "stage": stage, **EMPTY, **found, "seconds": seconds})
        typer.echo(f"seed {self.seed}: {method} {stage}: {found.get('error') or found['accuracy']}", err=True)

    # -------------------------------------------------------------------------------------------------------- the networks

    @functools.cached_property
    def base(self) -> PyTree:
        """The network that the others start from, from a few images of all tasks or from another domain."""
        start, data = build(self.config, seed=self.seed).variables, self.tasks.base
        return self.trained(BASE, start, data, self.tasks.base_selection, self.settings.base_steps)

    @functools.cached_property
    def models(self) -> list[PyTree]:
        """A fine-tune for each task."""
        steps = self.settings.task_steps
        return [self.trained(task.name, self.base, task.train, task.selection, steps) for task in self.tasks.each]

    @functools.cached_property
    def stack(self) -> nm.Stack:
        """The fine-tunes and the base."""
        return nm.stack_models(self.models, self.base)

    @functools.cached_property
    def stats(self) -> Mapping[type, Any]:
        """What the methods need, of each model on the images of its own task, in one pass for all methods."""
        needs = list(dict.fromkeys(kind for method in self.methods for kind in self.way(method).needs()))
        if not needs:
            return {}
        return nm.collect_each(self.network.apply, self.graph, self.models, [part for _, part in self.measuring], needs)

    @functools.cached_property
    def graph(self) -> Graph:
        """That of all networks."""
        return nm.trace(self.network.apply, self.base, example(self.config))

    @property
    def measuring(self) -> list[tuple[list[PyTree], list[tuple]]]:
        """Each model, and the images of its task."""
        batches = [nm.in_order(*self.shaped(task.learning), 500) for task in self.tasks.each]
        return [([model], part) for model, part in zip(self.models, batches, strict=True)]

    def trained(self, name: str, start: PyTree, data: Examples, selection: Examples, steps: int) -> PyTree:
        """Train a network, the best on its selection images, or read the one that was trained before."""
        path, made = self.out / "parents" / f"{self.seed}-{name.replace(' ', '-')}.safetensors", self.made()
        if path.exists():
            check_settings(checkpoint.load_record(path).get("settings", {}), made, path)
            return checkpoint.load_network(path)[1]
        began, batches = time.perf_counter(), nm.in_order(*self.shaped(selection), 1000)
        rate = self.settings.training_rate
        found = self.descended(self.fine_tuned, start, None, self.shaped(data), rate=rate, steps=steps, held_out=batches)
        network = self.renewed(found.theta, self.shaped(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"seed": self.seed, "seconds": round(time.perf_counter() - began, 1), "settings": made}
        checkpoint.save_network(path, self.config, network, record)
        return network

    def made(self) -> dict[str, Any]:
        """What decides the base and the fine-tunes but their seed."""
        later = ("learning_steps", "learned_rates", "control_rates", "granularities", "methods", "published", "values")
        return {name: x for name, x in made_with(self.settings, self.tasks.name).items() if name not in later}

    def descended(
        self, loss: Any, theta: PyTree, stack: Any, data: Examples, *, rate: float, steps: int, held_out: Sequence[tuple]
    ) -> nm.FitResult:
        """Adam at a rate, the best on the held-out batches."""
        batches = nm.shuffled(*data, self.settings.batch, seed=self.seed)
        return nm.fit(theta, loss, stack, batches, adam(rate), steps=steps, held_out=held_out)

    def in_training(self, variables: PyTree, inputs: Any) -> Any:
        """The outputs with the statistics of the batch."""
        return self.network.train_apply(variables, inputs)[0]

    def renewed(self, variables: PyTree, data: Examples | None = None) -> PyTree:
        """Running statistics from the images for learning, or from others; a network without any as it is."""
        return nm.reset_statistics(self.network.train_apply, variables, nm.in_order(*(data or self.learning), 500))

    def shaped(self, part: Examples) -> Examples:
        """Images as the network takes them."""
        return Examples(part.inputs.reshape(len(part.labels), *self.config.input_shape), part.labels)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def measures(self) -> tuple[str, ...]:
        """The columns that are measured on test images."""
        return ("accuracy", "loss", *(task.name for task in self.tasks.each))

    def tested(self, networks: Sequence[PyTree], apply: Callable | None = None) -> dict[str, Any]:
        """Accuracy and loss over the test images of all tasks, each by its own network, and the accuracy of each task."""
        pairs = zip(networks, self.tests, strict=True)
        found = [nm.evaluate(apply or self.network.apply, network, test) for network, test in pairs]
        sizes = [metrics.examples for metrics in found]
        joint = {name: float(np.average([getattr(m, name) for m in found], weights=sizes)) for name in ("accuracy", "loss")}
        return joint | {task.name: m.accuracy for task, m in zip(self.tasks.each, found, strict=True)}

    def reference(self, name: str) -> dict[str, Any]:
        """A row to compare merges with."""
        if name == UNMERGED:
            return self.control(self.base)
        if name == OWN:
            return self.tested(self.models)
        if name == ENSEMBLE:
            return self.tested([self.models] * 3, nm.LogitEnsemble(self.network.apply))
        if name == MODELS:
            each = [self.tested([model] * 3) for model in self.models]
            return {key: float(np.mean([found[key] for found in each])) for key in each[0]}
        return self.tested([self.base if name == BASE else self.multi_task()] * 3)

    def multi_task(self) -> PyTree:
        """The base, fine-tuned on the images of all tasks for as many steps as all fine-tunes together."""
        data, selection = (joined([getattr(t, part) for t in self.tasks.each]) for part in ("train", "selection"))
        return self.trained(MULTI, self.base, data, selection, 3 * self.settings.task_steps)

    def closed(self, method: type[nm.Merge]) -> dict[str, Any]:
        """The closed form with hyper-parameters chosen on the selection images, and what it costs."""
        choice = self.way(method).tuned(lambda merge: self.judged([self.merged(merge)] * 3))
        merge = self.way(method).make(**choice.fields)
        network, spent = cost.merged(merge, self.stack, self.stats, self.key)
        apply, graph = self.network.apply, self.graph
        measured = [cost.collected(apply, graph, *part, merge.needs)[1] for part in self.measuring] if merge.needs else []
        costs = {
            "merge_flops": spent.flops,
            "statistics_flops": sum(c.flops for c in measured),
            "bytes": spent.bytes + sum(c.bytes for c in measured),
            "peak_bytes": max(c.peak_bytes for c in (spent, *measured)),
            "merge_seconds": round(spent.seconds + sum(c.seconds for c in measured), 5),
            "uncounted": int(any(c.uncounted for c in (spent, *measured))),
        }
        return self.tested([self.renewed(network)] * 3) | chosen(choice) | costs | {"learnable": self.learnable(merge)}

    def per_task(self, method: type[nm.Merge]) -> dict[str, Any]:
        """A network for each task out of one merge, with hyper-parameters chosen for these."""

        def networks(merge: Any) -> list[PyTree]:
            theta = merge.init(self.stack, stats=self.stats, key=self.key)
            return [self.renewed(merge.task(theta, self.stack, k)) for k in range(self.stack.size)]

        choice = self.way(method).tuned(lambda merge: self.judged(networks(merge)))
        return self.tested(networks(self.way(method).make(**choice.fields))) | chosen(choice)

    def merged(self, merge: nm.Merge) -> PyTree:
        """The merged network."""
        return self.renewed(merge(self.stack, stats=self.stats, key=self.key))

    @property
    def key(self) -> jax.Array:
        """For methods that drop entries at random."""
        return jax.random.key(self.seed)

    def judged(self, networks: Sequence[PyTree]) -> float:
        """The loss on the selection images, each task's by its own network."""
        pairs = zip(networks, self.selections, strict=True)
        found = [nm.evaluate(self.network.apply, network, batches) for network, batches in pairs]
        loss = float(np.average([m.loss for m in found], weights=[m.examples for m in found]))
        return loss if math.isfinite(loss) else math.inf

    def continuations(self, method: type[nm.Merge]) -> dict[str, Job]:
        """Learning from the chosen closed form, by the granularities that can represent it; and all weights from there."""
        (row,) = [r for r in self.rows.all if (r["seed"], r["method"], r["stage"]) == (self.seed, method.__name__, CLOSED)]
        if row["error"]:
            return {}
        merge: Any = self.way(method).make(**dict(row["chosen"]))
        jobs: dict[str, Job] = {name: functools.partial(self.learned, merge, name) for name in row["learnable"]}
        return jobs | {TUNED: lambda: self.control(self.merged(merge))}

    def learnable(self, merge: nm.Merge) -> list[str]:
        """The granularities that can represent a closed form: none if it is no choice of coefficients."""
        if not isinstance(merge, nm.LinearMerge):
            return []
        coefficients = merge.init(self.stack, stats=self.stats, key=self.key)
        return [g for g in self.settings.granularities if represents(getattr(nm, g)(), coefficients, self.stack.params)]

    def learned(self, start: nm.LinearMerge, granularity: str) -> dict[str, Any]:
        """Coefficients learned from a closed form, at the best rate on the selection images."""
        merge = nm.Learned(start, getattr(nm, granularity)(), nm.Free())
        theta = merge.init(self.stack, stats=self.stats, key=self.key)
        # the network is the same function of theta for all starts: they share what is compiled
        merge = dataclasses.replace(merge, start=nm.TaskArithmetic() if start.needs_base else nm.Average())
        loss = nm.weight_space(merge, self.in_training, self.objective)
        found = self.best(loss, theta, self.stack, self.settings.learned_rates)
        return self.tested([self.renewed(merge.apply(found.pop("theta"), self.stack))] * 3) | found

    def published(self, make: Callable[[], nm.Learned], objective: nm.Objective) -> dict[str, Any]:
        """A published learned merge: each rate stops where its objective is lowest, the labels choose between the rates."""
        merge = make()
        theta, loss = merge.init(self.stack), nm.weight_space(merge, self.in_training, objective)
        found = [self.best(loss, theta, self.stack, (rate,)) for rate in self.settings.learned_rates]
        networks = [self.renewed(merge.apply(each.pop("theta"), self.stack)) for each in found]
        losses = [self.judged([network] * 3) for network in networks]
        k = int(np.argmin(losses))
        return self.tested([networks[k]] * 3) | found[k] | {"validation": losses[k], "tried": len(found)}

    def control(self, start: PyTree) -> dict[str, Any]:
        """All weights fine-tuned from a network, with the images, steps and choices of learned merges."""
        found = self.best(self.fine_tuned, start, None, self.settings.control_rates)
        return self.tested([self.renewed(found.pop("theta"))] * 3) | found

    def best(self, loss: Any, theta: PyTree, stack: nm.Stack | None, rates: Sequence[float]) -> dict[str, Any]:
        """Theta at the rate and step of lowest loss on the selection images, and which these are."""
        steps, held_out = self.settings.learning_steps, [*itertools.chain(*self.selections)]
        descended = functools.partial(self.descended, loss, theta, stack, self.learning, steps=steps, held_out=held_out)
        results = [descended(rate=rate) for rate in rates]
        lowest = [float(np.nanmin(r.history.held_out_loss)) for r in results]
        k = int(np.argmin(lowest))
        history = results[k].history
        step = int(history.held_out_step[np.nanargmin(history.held_out_loss)])
        return {"theta": results[k].theta, "validation": lowest[k], "rate": rates[k], "kept": step, "tried": len(rates)}


def config_of(tasks: Tasks, settings: Settings) -> Config:
    """A multilayer perceptron for digits, a small residual network for photographs."""
    if tasks.name == "digits":
        return Mlp(64, settings.hidden, 10)
    return ResNetCifar(settings.blocks, settings.width, "B", classes=7, side=32, channels=3)


def chosen(choice: Choice) -> dict[str, Any]:
    """The columns that say what was chosen."""
    return {"validation": choice.loss, "chosen": [list(pair) for pair in choice.fields.items()], "tried": choice.tried}


def represents(granularity: Granularity, coefficients: PyTree, params: PyTree) -> bool:
    """Whether coefficients are equal wherever the granularity shares them."""
    try:
        granularity.reduce(coefficients, params)
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def adam(rate: float) -> optax.GradientTransformation:
    """One object per rate: the compiled step is found again by the optimiser's identity."""
    return optax.adam(rate)


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/closed_forms"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    data: Annotated[
        str, typer.Option(help="The folder of PACS, or `digits`; by default PACS for `paper` if it is there.")
    ] = "",
) -> None:
    """Train base and fine-tunes, merge them in every way, learn from there; write the rows, the figure and the page."""
    folder = (
        PACS if not data and preset == Preset.paper and PACS.is_dir() else Path(data) if data not in ("", "digits") else None
    )
    settings = PRESETS[preset]
    sizes = Sizes(settings.base, settings.learning, settings.selection)
    for k in range(seed, seed + seeds):
        tasks = load_tasks(folder, sizes, seed=k)
        rows = Rows(out / "rows.csv", ("seed", "method", "stage"), made_with(settings, tasks.name))
        Experiment(tasks, settings, k, out, rows).run()
    command = f"python -m experiments.closed_forms --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    command += f" --data {data}" if data else ""
    seconds = sum(row["seconds"] for row in rows.all)
    (out / "README.md").write_text(page(rows, command, settings, tasks, seconds), encoding="utf-8")
    figure(rows, settings).savefig(out / "methods.png", dpi=120)
    summary = {"command": command, "settings": dataclasses.asdict(settings), "data": tasks.name, "machine": machine()}
    (out / "summary.json").write_text(json.dumps({**summary, "rows": rows.all}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch(main)
