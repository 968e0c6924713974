"""Up to 32 networks merged into one: jointly, in pairs one after another, and beside a fine-tuned average.

`python -m experiments.many_models --preset cpu --out experiments/results/many_models --seeds 3`
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.data import Examples, Images, load_images
from experiments.run import Preset, Rows, machine, mean_and_deviation
from npmerge.models import Mlp, build
from npmerge.report import Curve, draw_curves, markdown_table, new_figure


@dataclass(frozen=True)
class Settings:
    """How much work a run does. Both grids of rates are of one length: learned merges and controls are tuned alike."""

    counts: tuple[int, ...] = (2, 4, 8, 16, 32)
    hidden: tuple[int, ...] = (64,)
    part: int = 100  # training images of each network
    skew: float = 0.5  # concentration of the Dirichlet distribution from which each network's classes are drawn
    training_rate: float = 1e-2
    training_steps: int = 100
    labelled: int = 200  # images that merges and controls learn from; no network saw them
    steps: int = 100
    batch: int = 50
    learned_rates: tuple[float, ...] = (0.01, 0.1, 1.0)
    control_rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2)


PRESETS = {
    Preset.test: Settings(
        counts=(2, 3), hidden=(8,), part=40, training_steps=5, labelled=40, steps=4, batch=20, learned_rates=(0.1,),
        control_rates=(1e-3,),
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(hidden=(256, 256), steps=500, training_steps=300),
}  # fmt: skip

PARENTS, ENSEMBLE, AVERAGE = "networks, on average", "ensemble of logits", "average"
JOINT, TENSORS = "joint, per parameter", "joint, per tensor"
SHORT, PAIRS, REVERSED = "pairs, as many steps in all", "pairs, as many steps each", "pairs, in reversed order"
CONTROL, LONG = "control: average fine-tuned", "control: as many steps as pairs"
METHODS = (PARENTS, AVERAGE, JOINT, TENSORS, SHORT, CONTROL, PAIRS, REVERSED, LONG, ENSEMBLE)


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
        s = self.settings
        each, all_pairs = max(1, s.steps // (n - 1)), s.steps * (n - 1)
        yield PARENTS, functools.partial(self.parents, n)
        yield ENSEMBLE, functools.partial(self.ensemble, n)
        yield AVERAGE, functools.partial(self.average, n)
        yield (
            JOINT,
            functools.partial(self.tuned, s.learned_rates, functools.partial(self.joint, n, nm.PerParameter()), s.steps),
        )
        yield TENSORS, functools.partial(self.tuned, s.learned_rates, functools.partial(self.joint, n, nm.PerTensor()), s.steps)
        forward, backward = list(range(n)), list(range(n))[::-1]
        for name, order, steps in ((SHORT, forward, each), (PAIRS, forward, s.steps), (REVERSED, backward, s.steps)):
            yield name, functools.partial(self.tuned, s.learned_rates, functools.partial(self.pairs, order), steps)
        for name, steps in ((CONTROL, s.steps), (LONG, all_pairs)):
            yield name, functools.partial(self.tuned, s.control_rates, functools.partial(self.control, n), steps)

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

    def joint(self, n: int, granularity: nm.PerParameter, optimizer: optax.GradientTransformation, steps: int) -> Found:
        """All coefficients of all models at once."""
        stack, merge = nm.stack_models(self.models[:n]), nm.Learned(nm.Average(), granularity, nm.Simplex())
        theta = self.fitted(merge.init(stack), nm.weight_space(merge, self.apply, self.objective), stack, optimizer, steps)
        network, coefficients = _merged(merge, theta, stack)
        return Found(network, _mean_shares(coefficients, network), nm.parameters(theta))

    def pairs(self, order: Sequence[int], optimizer: optax.GradientTransformation, steps: int) -> Found:
        """One model after another."""
        s = self.settings
        batches = nm.shuffled(*self.labelled, s.batch, seed=self.seed)
        models, options = self.models[: len(order)], {"held_out": [self.validation], "order": order, "every": _every(steps)}
        found = nm.successive(models, self.apply, self.objective, batches, optimizer, steps=steps, **options)
        return Found(found.network, _mean_shares(found.shares, found.network), nm.parameters(found.turns[0].theta))

    def control(self, n: int, optimizer: optax.GradientTransformation, steps: int) -> Found:
        """All weights of the average."""
        loss = nm.fine_tuning(self.apply, self.objective)
        network = self.fitted(nm.Average()(nm.stack_models(self.models[:n])), loss, None, optimizer, steps)
        return Found(network, np.array([]), nm.parameters(network))

    def fitted(self, theta: PyTree, loss: Callable, stack: Any, optimizer: optax.GradientTransformation, steps: int) -> PyTree:
        """The theta of lowest validation loss."""
        batches = nm.shuffled(*self.labelled, self.settings.batch, seed=self.seed)
        options = {"held_out": [self.validation], "every": _every(steps)}
        return nm.fit(theta, loss, stack, batches, optimizer, steps=steps, **options).theta


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


def _mean_shares(shares: PyTree, network: PyTree) -> np.ndarray:
    """The share of each model, (models,), its mean over the parameters."""
    sums = jax.tree.map(lambda c, x: np.broadcast_to(c, (len(c), *x.shape)).reshape(len(c), -1).sum(1), shares, network)
    return np.sum(jax.tree.leaves(sums), axis=0) / nm.parameters(network)


# --------------------------------------------------------------------------------------------------------------- the page


INTRODUCTION = """Networks that start alike and see other classes each are merged into one, two of them or up to 32. A joint merge learns
coefficients of all of them at once (a softmax over the models for each parameter or tensor), successive pairs learn one
sigmoid per parameter for each model that joins the merge so far, as NP Merge is published for more than two. All learned rows
and the fine-tuned controls start at the plain average and see the same few labelled images. The question is what the
coefficients of many models are worth beside the weights of their average, which are as free."""


def page(rows: Rows, command: str, settings: Settings, data: str) -> str:
    """The result as a page: every number in it comes from the rows."""
    counts = sorted({row["models"] for row in rows.all})
    seeds = sorted({row["seed"] for row in rows.all})
    accuracies = [(name, *(_cell(rows, name, n, "accuracy") for n in counts)) for name in METHODS]
    losses = [(name, *(_cell(rows, name, n, "loss") for n in counts)) for name in METHODS]
    header = [f"{n} models" for n in counts]
    costs = [(name, *(f"{_mean(rows, name, n, 'learned'):,.0f}" for n in counts)) for name in (JOINT, TENSORS, PAIRS, CONTROL)]
    return "\n".join([
        "# Many models", "", INTRODUCTION, "", "![Test accuracy against the number of models](accuracy.png)", "",
        *markdown_table(("test accuracy", *header), accuracies), "",
        *markdown_table(("test loss", *header), losses), "",
        f"Mean and deviation over seeds {seeds}.", "",
        *markdown_table(("numbers learned at once", *header), costs), "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings, data, rows)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows, counts)), "",
        f"`{command}`, {sum(row['seconds'] for row in rows.all):.0f} s for the rows, {machine()}.", "",
    ])  # fmt: skip


def _protocol(s: Settings, data: str, rows: Rows) -> list[str]:
    def chosen(*names: str) -> str:
        return ", ".join(f"{x:g}" for x in sorted({row["rate"] for row in rows.all if row["method"] in names}))

    return [
        f"Data: {data}; a tenth of the training images is for validation, {s.labelled} are labelled for merging, of the others "
        f"each network sees {s.part}, drawn by a distribution of classes of its own (Dirichlet, {s.skew:g}).",
        f"Networks: perceptrons with hidden layers {s.hidden} from one initialisation for each seed, Adam at "
        f"{s.training_rate:g}, {s.training_steps} steps of {s.batch}; no alignment, since they start alike.",
        f"Learning: Adam, batches of {s.batch} of the labelled images, {s.steps} steps; of pairs {s.steps} steps for each or "
        f"{s.steps} in all, of the longer control as many as all pairs together. The best of eleven moments on validation data.",
        f"Rates on validation data: of {s.learned_rates} for coefficients (chosen: {chosen(JOINT, TENSORS, SHORT, PAIRS)}), of "
        f"{s.control_rates} for weights (chosen: {chosen(CONTROL, LONG)}). Nothing else is tuned, and the test set is read once "
        "for each row.",
    ]


def _findings(rows: Rows, counts: Sequence[int]) -> list[str]:
    most = counts[-1]
    points = {name: 100 * _mean(rows, name, most, "accuracy") for name in METHODS}
    shares = [row["shares"] for row in _rows(rows, PAIRS, most)]
    low, high = (float(np.mean([extreme(x) for x in shares])) for extreme in (min, max))
    wins = [
        sum(_mean(rows, name, n, "accuracy") > _mean(rows, control, n, "accuracy") for n in counts)
        for name, control in ((JOINT, CONTROL), (PAIRS, LONG))
    ]
    return [
        f"{most} networks, jointly: {points[JOINT]:.1f} % per parameter, {points[TENSORS]:.1f} % per tensor, where the average "
        f"has {points[AVERAGE]:.1f} % and the fine-tuned average {points[CONTROL]:.1f} %; the joint merge per parameter is "
        f"above that control at {wins[0]} of {len(counts)} numbers of models.",
        f"{most} networks in pairs: {points[SHORT]:.1f} % with as many steps in all, {points[PAIRS]:.1f} % with as many for each "
        f"pair, where the control of equal length has {points[LONG]:.1f} %; above it at {wins[1]} of {len(counts)} numbers.",
        f"The other order of merging gives {points[REVERSED]:.1f} % instead of {points[PAIRS]:.1f} % at {most} networks. The mean "
        f"share of a network, {1 / most:.4f} at the start, ends between {low:.4f} and {high:.4f} in the order given.",
    ]


def _rows(rows: Rows, name: str, n: int) -> list[dict[str, Any]]:
    return [row for row in rows.all if row["method"] == name and row["models"] == n]


def _mean(rows: Rows, name: str, n: int, column: str) -> float:
    return float(np.mean([row[column] for row in _rows(rows, name, n)]))


def _cell(rows: Rows, name: str, n: int, column: str) -> str:
    return mean_and_deviation([row[column] for row in _rows(rows, name, n)])


def figure(rows: Rows) -> Any:
    """Test accuracy against the number of models, the mean over seeds with its deviation."""
    drawing, axes = new_figure(1)
    counts = sorted({row["models"] for row in rows.all})
    values = {name: [[row["accuracy"] for row in _rows(rows, name, n)] for n in counts] for name in METHODS}
    curves = [
        Curve(name, counts, [float(np.mean(v)) for v in found], [float(np.std(v)) for v in found], name in (CONTROL, LONG))
        for name, found in values.items()
    ]
    draw_curves(axes[0], curves)
    axes[0].set(xlabel="models merged", ylabel="test accuracy")
    return drawing


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/many_models"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
) -> None:
    """Train networks on scikit-learn's digits, merge the first 2 to 32 of them, write the rows, the figure and the page."""
    began, images, settings = time.perf_counter(), load_images(), PRESETS[preset]
    rows = Rows(out / "rows.csv", ("seed", "models", "method"), dataclasses.asdict(settings) | {"data": images.name})
    for k in range(seed, seed + seeds):
        Experiment(images, settings, k, rows).run()
    command = f"python -m experiments.many_models --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    (out / "README.md").write_text(page(rows, command, settings, images.name), encoding="utf-8")
    figure(rows).savefig(out / "accuracy.png", dpi=150)
    seconds = round(time.perf_counter() - began, 1)
    record = {"command": command, "settings": dataclasses.asdict(settings), "machine": machine(), "seconds": seconds}
    (out / "rows.json").write_text(json.dumps({**record, "rows": rows.all}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
