"""Networks merged at any size between one and both: what does each bit of width buy?

`python -m experiments.width --preset cpu --out experiments/results/width --seeds 3`
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment import ActivationMatching, ZipIt, resize
from alignment.budget.costs import costs
from alignment.graph import PyTree
from experiments.command import launch
from experiments.data import Examples, Images, find_cifar, load, load_images
from experiments.run import Preset, Rows, check_settings, machine, mean_and_deviation
from npmerge import checkpoint
from npmerge.fitting.fit import Loss
from npmerge.models import ResNetCifar, build, example
from npmerge.reports.drawing import new_figure
from npmerge.reports.tables import markdown_table


@dataclass(frozen=True)
class Settings:
    """How much work a run does."""

    blocks: int = 1
    width: int = 12
    batch: int = 128
    training_rate: float = 5e-3
    training_steps: int = 700
    measured: int = 2000  # training images, without their labels, for statistics, least squares and BatchNorm
    budgets: tuple[float, ...] = (1.0, 1.3, 1.6, 2.0)
    stages: tuple[int, ...] = (1, 2, 3)  # that ZipIt's heads share
    control_steps: int = 150
    control_rates: tuple[float, ...] = (1e-4, 1e-3)
    limit: int | None = None  # test images


PRESETS = {
    Preset.test: Settings(
        width=2, batch=16, training_steps=4, measured=64, budgets=(1.5,), stages=(1,), control_steps=2,
        control_rates=(1e-3,), limit=64,
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(blocks=3, width=64, training_steps=12_000, measured=18_000, control_steps=2_000),
}  # fmt: skip


Job = Callable[[float], dict[str, Any]]


def made_with(settings: Settings, images: Images) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings) | {"data": images.name}


def trained_with(settings: Settings, images: Images) -> dict[str, Any]:
    """What decides the parents but their seed."""
    names = ("blocks", "width", "batch", "training_rate", "training_steps", "limit")
    return {name: getattr(settings, name) for name in names} | {"data": images.name}


class Experiment:
    """One seed: two networks, each trained on half of the images, and a row for every merge of them."""

    def __init__(self, images: Images, settings: Settings, seed: int, out: Path, rows: Rows):
        self.images, self.settings, self.seed, self.out, self.rows = images, settings, seed, out, rows
        side, channels = images.train.inputs.shape[1], images.train.inputs.shape[-1]
        self.config = ResNetCifar(settings.blocks, settings.width, "B", classes=10, side=side, channels=channels)
        self.network = build(self.config)
        order = np.random.default_rng(seed).permutation(len(images.train.labels))
        halves = np.array_split(order, 2)
        self.halves = [images.train.take(half) for half in halves]
        mixed = np.stack([half[: settings.measured // 2] for half in halves], 1).ravel()  # one of each half in turn
        self.seen = images.train.take(mixed)
        self.test = nm.in_order(*images.test.take(np.arange(len(images.test.labels))[: settings.limit]), 500)
        self.validation = nm.in_order(*images.validation, 500)[: None if settings.limit is None else 1]
        self.measuring = nm.in_order(*self.seen, min(250, settings.measured))

    def run(self) -> None:
        """Every row that is not there yet."""
        jobs = {(name, budget): job for name, budget, job in self.jobs()}
        if all(self.rows.has(seed=self.seed, method=name, budget=budget) for name, budget in jobs):
            return
        self.models = [self.renewed(self.network.train_apply, self.parent(k)) for k in range(2)]
        self.graph = nm.trace(self.network.apply, self.models[0], example(self.config))
        self.costs = costs(self.network.apply, self.graph, self.models[0], example(self.config, 1))
        statistics = [nm.NodeMoments(), nm.JointMoments()]
        self.stats = nm.collect(self.network.apply, self.graph, self.models, self.measuring, statistics)
        for (name, budget), job in jobs.items():
            if self.rows.has(seed=self.seed, method=name, budget=budget):
                continue
            began = time.perf_counter()
            row = {"seed": self.seed, "method": name, "budget": budget, **job(budget)}
            self.rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
            typer.echo(f"seed {self.seed}: {name}, budget {budget:g}: accuracy {row['accuracy']:.4f}", err=True)

    def jobs(self) -> list[tuple[str, float, Job]]:
        """What there is to do, in order: method, budget, and the function that makes the row."""
        fits = {
            PARTIAL: None,
            TEACHER: nm.LeastSquares(),
            SEQUENTIAL: nm.LeastSquares(sequential=True),
        }
        found: list[tuple[str, float, Job]] = [("parents", 1.0, self.parents), (ENSEMBLE, 2.0, self.ensemble)]
        found += [(name, b, functools.partial(self.partial, fit)) for b in self.settings.budgets for name, fit in fits.items()]
        found += [(ZIPPED, float(stage), self.zipped) for stage in self.settings.stages]
        return [*found, (CONTROL, 1.0, self.control)]

    @functools.cached_property
    def training(self) -> optax.GradientTransformation:
        """The parents' optimiser, made once: Optax's hash by identity, and every other one would be compiled anew."""
        schedule = optax.cosine_decay_schedule(self.settings.training_rate, self.settings.training_steps)
        return optax.adamw(schedule, weight_decay=1e-3)

    @functools.cached_property
    def loss(self) -> Loss:
        """Of all weights, with the statistics of each batch: made once, too."""
        return nm.fine_tuning(lambda v, x: self.network.train_apply(v, x)[0], nm.CrossEntropy())

    def parent(self, k: int) -> PyTree:
        """Train one network on its half, or read the one that was trained before."""
        path, s = self.out / "parents" / f"{self.seed}-{k}.safetensors", self.settings
        made = trained_with(s, self.images)
        if path.exists():
            check_settings(checkpoint.load_record(path).get("settings", {}), made, path)
            return checkpoint.load_network(path)[1]
        began, start = time.perf_counter(), build(self.config, seed=2 * self.seed + k).variables
        trained = self.fitted(start, self.halves[k], self.training, s.training_steps).theta
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"seed": self.seed, "half": k, "seconds": round(time.perf_counter() - began, 1), "settings": made}
        checkpoint.save_network(path, self.config, trained, record)
        return trained

    def fitted(self, start: PyTree, data: Examples, optimizer: optax.GradientTransformation, steps: int) -> nm.FitResult:
        """Learn all weights; the best on validation data."""
        batches = nm.shuffled(data.inputs, data.labels, self.settings.batch, seed=self.seed)
        said = lambda step, value: typer.echo(f"seed {self.seed}: step {step}, loss {value:.3f}", err=True)  # noqa: E731
        every = max(steps // 6, 1)
        return nm.fit(
            start, self.loss, None, batches, optimizer, steps=steps, held_out=self.validation, every=every, progress=said
        )

    def renewed(self, train_apply: Callable, variables: PyTree) -> PyTree:
        """Statistics of BatchNorm from the measured images."""
        return nm.reset_statistics(train_apply, variables, self.measuring)

    # ------------------------------------------------------------------------------------------------------------- the rows

    def parents(self, _: float) -> dict[str, Any]:
        """The two networks themselves, on average."""
        found = [nm.evaluate(self.network.apply, model, self.test) for model in self.models]
        accuracy, loss = (float(np.mean([getattr(f, name) for f in found])) for name in ("accuracy", "loss"))
        return {"accuracy": accuracy, "loss": loss, "flops": 1.0, "parameters": 1.0, "dense": 1.0, "rate": ""}

    def ensemble(self, _: float) -> dict[str, Any]:
        """The mean of their logits."""
        found = nm.evaluate(nm.LogitEnsemble(self.network.apply), self.models, self.test)
        return {"accuracy": found.accuracy, "loss": found.loss, "flops": 2.0, "parameters": 2.0, "dense": 2.0, "rate": ""}

    def partial(self, fit: nm.LeastSquares | None, budget: float) -> dict[str, Any]:
        """Partial matching at a budget of operations, weights as they are or by least squares."""
        apply, train_apply = self.network.apply, self.network.train_apply
        merge = functools.partial(nm.Pleas(ActivationMatching(), fit), inputs=example(self.config, 1), stats=self.stats)
        found = merge(apply, self.graph, self.models, budget, batches=self.measuring, train_apply=train_apply)
        metrics = nm.evaluate(resize(apply, self.graph, found.variables, found.widths), found.variables, self.test)
        size = self.costs.multiple(dict(found.allocation.ratios), by="parameters")
        sizes = {"flops": found.allocation.cost, "parameters": size, "dense": found.dense}
        return {"accuracy": metrics.accuracy, "loss": metrics.loss, **sizes, "rate": ""}

    def zipped(self, stages: float) -> dict[str, Any]:
        """ZipIt for so many stages of the network, two copies of the others; the mean of the logits of both heads."""
        stop = list(self.graph.nodes)[self._nodes_of(int(stages)) - 1]
        alignment = ZipIt(alpha=1.0, beta=0.0, stop=stop)
        maps = alignment.maps(alignment.init(self.graph, self.models, stats=self.stats), self.graph)
        headed = nm.multi_head(self.network.apply, self.graph, self.models, maps, train_apply=self.network.train_apply)
        assert headed.train_apply is not None
        variables = self.renewed(headed.train_apply, headed.variables)
        found = nm.evaluate(MeanOfHeads(headed.apply), variables, self.test)
        one = example(self.config, 1)
        flops = nm.flops(headed.apply, variables, one) / nm.flops(self.network.apply, self.models[0], one)
        size = nm.parameters(variables) / nm.parameters(self.models[0])
        return {"accuracy": found.accuracy, "loss": found.loss, "flops": flops, "parameters": size, "dense": flops, "rate": ""}

    def _nodes_of(self, stages: int) -> int:
        """The nodes of the first stages: hidden channels of each block, and the stream."""
        return (self.settings.blocks + 1) * stages

    def control(self, _: float) -> dict[str, Any]:
        """The permuted average with all weights fine-tuned on the measured images and their labels."""
        average = nm.Average()(nm.stack_models(nm.align(ActivationMatching(), self.graph, self.models, stats=self.stats)))
        steps = self.settings.control_steps
        results = [self.fitted(average, self.seen, optax.adam(rate), steps) for rate in self.settings.control_rates]
        best = int(np.argmin([result.history.held_out_loss.min() for result in results]))
        found = nm.evaluate(self.network.apply, self.renewed(self.network.train_apply, results[best].theta), self.test)
        rate = self.settings.control_rates[best]
        return {"accuracy": found.accuracy, "loss": found.loss, "flops": 1.0, "parameters": 1.0, "dense": 1.0, "rate": rate}


@dataclass(frozen=True)
class MeanOfHeads:
    """The mean of the logits of all heads, as one function."""

    apply: nm.MultiHead

    def __call__(self, variables: PyTree, inputs: jax.Array) -> jax.Array:
        """Logits."""
        logits = self.apply(variables, inputs)
        return sum(logits[1:], logits[0]) / len(logits)


PARTIAL, TEACHER, SEQUENTIAL = "partial matching", "least squares, teacher-forced", "least squares, sequential"
ENSEMBLE, ZIPPED, CONTROL = "ensemble of logits", "ZipIt, two heads", "control: average fine-tuned with labels"
METHODS = ("parents", PARTIAL, TEACHER, SEQUENTIAL, ZIPPED, ENSEMBLE, CONTROL)


# --------------------------------------------------------------------------------------------------------------- the page


INTRODUCTION = """Two networks, each trained on one half of the images from an initialisation of its own, are merged at sizes
between one network and both: partial matching keeps apart the units that agree least (PLeaS), ZipIt keeps whole stages apart
behind a shared beginning. The question is what the layers gain when they are solved anew by least squares, on the parents'
own activations as published, or one after another on what the merged network itself computes."""


def page(rows: Rows, command: str, seconds: tuple[float, float], settings: Settings, data: str) -> str:
    """The result as a page: every number in it comes from the rows."""
    header = ("method", "operations", "dense operations", "parameters", "test accuracy", "test loss")
    table = []
    for name in METHODS:
        for budget in sorted({row["budget"] for row in rows.all if row["method"] == name}):
            found = [row for row in rows.all if row["method"] == name and row["budget"] == budget]
            sizes = [f"{np.mean([row[c] for row in found]):.2f}" for c in ("flops", "dense", "parameters")]
            table.append((name, *sizes, *(mean_and_deviation([row[c] for row in found]) for c in ("accuracy", "loss"))))
    seeds = sorted({row["seed"] for row in rows.all})
    return "\n".join([
        "# Merging at any size", "", INTRODUCTION, "", "![Accuracy and loss against size](size.png)", "",
        *markdown_table(header, table), "",
        f"Mean and deviation over seeds {seeds}. Sizes are multiples of one network; operations count blocks that are not zero "
        "by construction, dense operations all.", "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings, data, rows)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows)), "",
        f"`{command}`, {seconds[0]:.0f} s to train the parents and {seconds[1]:.0f} s for the rows, {machine()}.", "",
    ])  # fmt: skip


def _protocol(s: Settings, data: str, rows: Rows) -> list[str]:
    rates = sorted({row["rate"] for row in rows.all if row["method"] == CONTROL})
    return [
        f"Data: {data}; a tenth of the training images is for validation, the rest is cut into halves, anew for each seed.",
        f"Parents: ResNet-{6 * s.blocks + 2} of width {s.width} with projection shortcuts, AdamW at {s.training_rate:g}, "
        f"cosine, {s.training_steps} steps of {s.batch}; the best on validation data.",
        f"Statistics, least squares and BatchNorm: {s.measured} training images without labels, as many of either half, for "
        "every row the same. "
        "Running statistics are re-estimated, by sequential least squares also before each layer.",
        "Partial matching: by correlation of activations; ratios by `allocate` from 1 - mean correlation of each node, which "
        "needs no labels, within the budget of operations.",
        "ZipIt: alpha 1, beta 0, to the end of the first, second and third stage; the logits of both heads are averaged.",
        f"Control: the permuted average, all weights fine-tuned for {s.control_steps} steps on the same {s.measured} images "
        f"with their labels, the rate of {s.control_rates} chosen on validation data: {rates}.",
        "Nothing else is tuned. The test set is read once for each row.",
    ]


def _findings(rows: Rows) -> list[str]:
    def mean(name: str, budget: float | None = None) -> float:
        return float(np.mean([r["accuracy"] for r in rows.all if r["method"] == name and budget in (None, r["budget"])]))

    budgets = sorted({row["budget"] for row in rows.all if row["method"] == PARTIAL})
    low, high = budgets[0], budgets[-1]
    curves = {name: [mean(name, b) for b in budgets] for name in (PARTIAL, TEACHER, SEQUENTIAL)}
    steps = {name: sum(b > a for a, b in itertools.pairwise(c)) for name, c in curves.items()}
    between = budgets[1:-1] or budgets
    gains = {name: float(np.mean([mean(name, b) - mean(PARTIAL, b) for b in between])) for name in (TEACHER, SEQUENTIAL)}
    zipped = [[float(np.mean([r[column] for r in group])) for column in ("flops", "accuracy")] for group in _stages(rows)]
    curve = {
        name: [_curve(rows, name, "accuracy", ruler)[:2] for ruler in ("flops", "dense")] for name in (PARTIAL, SEQUENTIAL)
    }
    better = [mean(name, low) - mean(PARTIAL, low) for name in (TEACHER, SEQUENTIAL)]
    return [
        f"Expected: accuracy rises with size from the permuted average to the ensemble. Found: partial matching goes from "
        f"{mean(PARTIAL, low):.3f} at {low:g} to {mean(PARTIAL, high):.3f} at {high:g} (ensemble {mean(ENSEMBLE):.3f}, parents "
        f"{mean('parents'):.3f}); of {len(budgets) - 1} steps in size {steps[PARTIAL]} raise it, {steps[TEACHER]} with "
        f"teacher-forced and {steps[SEQUENTIAL]} with sequential least squares.",
        "Least squares at sizes in between, beside the weights of partial matching: "
        f"{100 * gains[TEACHER]:+.1f} points teacher-forced, {100 * gains[SEQUENTIAL]:+.1f} points sequential; at size {low:g} "
        f"{100 * better[0]:+.1f} and {100 * better[1]:+.1f}.",
        "ZipIt with two heads, beside partial matching and sequential least squares (interpolated between their sizes) at as "
        "many operations, and at as many dense ones: " + ", ".join(
            f"at {f:.2f} {a:.3f}, beside "
            + " and ".join(" or ".join(f"{np.interp(f, *c):.3f}" for c in curve[name]) for name in (PARTIAL, SEQUENTIAL))
            for f, a in zipped
        ) + ".",
        f"The control, which alone sees labels, has {mean(CONTROL):.3f} at the size of one network, where sequential least "
        f"squares have {mean(SEQUENTIAL, low):.3f}.",
    ]  # fmt: skip


def _stages(rows: Rows) -> list[list[Mapping[str, Any]]]:
    every = [row for row in rows.all if row["method"] == ZIPPED]
    return [[row for row in every if row["budget"] == b] for b in sorted({row["budget"] for row in every})]


def figure(rows: Rows) -> Any:
    """Accuracy and loss against operations, mean over seeds with the deviation as a band."""
    drawing, axes = new_figure(2)
    for ax, column in zip(axes, ("accuracy", "loss"), strict=True):
        for name in METHODS:
            sizes, means, spread = _curve(rows, name, column)
            if len(sizes) > 1:
                (line,) = ax.plot(sizes, means, marker="o", label=name)
                ax.fill_between(sizes, means - spread, means + spread, alpha=0.15, color=line.get_color())
            else:
                ax.plot(sizes, means, marker="*", markersize=12, linestyle="none", label=name)
        ax.set_xlabel("operations, as a multiple of one network")
        ax.set_ylabel(f"test {column}")
    axes[0].legend(fontsize="small")
    return drawing


def _curve(rows: Rows, name: str, column: str, ruler: str = "flops") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = [row for row in rows.all if row["method"] == name]
    groups = [[row for row in found if row["budget"] == b] for b in sorted({row["budget"] for row in found})]
    points = sorted((float(np.mean([r[ruler] for r in g])), [r[column] for r in g]) for g in groups)
    return np.array([x for x, _ in points]), np.array([np.mean(y) for _, y in points]), np.array([np.std(y) for _, y in points])


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/width"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    data: Annotated[str, typer.Option(help="The folder of CIFAR-10, or `digits`; by default CIFAR-10 where it is found.")] = "",
    *,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 from its site if it is not found.")] = False,
) -> None:
    """Train the parents, merge them at every size, write the rows, the figure and the page."""
    if download and data != "digits":
        load("cifar10", data or None, download=True)
    images = load_images(None if data == "digits" else Path(data) if data else find_cifar())
    settings = PRESETS[preset]
    rows = Rows(out / "rows.csv", ("seed", "method", "budget"), made_with(settings, images))
    for k in range(seed, seed + seeds):
        Experiment(images, settings, k, out, rows).run()
    command = f"python -m experiments.width --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    command += f" --data {data}" if data else ""
    trained = sorted((out / "parents").glob("*.safetensors"))
    seconds = sum(checkpoint.load_record(p)["seconds"] for p in trained), sum(row["seconds"] for row in rows.all)
    (out / "README.md").write_text(page(rows, command, seconds, settings, images.name), encoding="utf-8")
    figure(rows).savefig(out / "size.png", dpi=150)
    summary = {"command": command, "settings": dataclasses.asdict(settings), "data": images.name, "machine": machine()}
    (out / "summary.json").write_text(json.dumps({**summary, "rows": rows.all}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch(main)
