"""Two small GPTs from different seeds: how much of the barrier between them does each group of symmetries remove?

`python -m experiments.transformer_alignment --preset cpu --out experiments/results/transformer_alignment --seeds 3`
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import npmerge as nm
from alignment import ActivationMatching, GroupMatching, StraightThrough, WeightMatching, fold
from alignment.base import Alignment
from alignment.graph import Graph, PyTree
from experiments.command import launch
from experiments.run import Preset, Rows, check_settings, machine, mean_and_deviation
from experiments.text import Text, all_windows, random_windows, read_text
from npmerge import checkpoint
from npmerge.models import Gpt2, build
from npmerge.reports.drawing import draw_paths, new_figure
from npmerge.reports.tables import markdown_table


@dataclass(frozen=True)
class Settings:
    """How much work a run does. All grids of rates are of one length: alignments and the control are tuned alike."""

    layers: int = 2
    heads: int = 4
    width: int = 128
    length: int = 64
    batch: int = 32
    training_rate: float = 2e-3
    training_steps: int = 1500
    learning_steps: int = 300
    rates: tuple[float, ...] = (3e-2, 1e-1)
    group_rates: tuple[float, ...] = (3e-3, 1e-2)
    control_rates: tuple[float, ...] = (1e-4, 3e-4)
    points: int = 11
    limit: int | None = 6  # batches of 64 windows that are read from the validation and test parts


SHAKESPEARE = Path("../shared/data/text_en/tinyshakespeare.txt.xz")
PRESETS = {
    Preset.test: Settings(
        layers=1, heads=2, width=16, length=8, batch=8, training_steps=20, learning_steps=4, rates=(1e-2, 1e-1),
        group_rates=(1e-2,), control_rates=(1e-3,), points=3, limit=1,
    ),
    Preset.cpu: Settings(),
    Preset.paper: Settings(
        layers=6, heads=8, width=256, length=256, batch=64, training_rate=3e-4, training_steps=15000, learning_steps=2000,
        points=11, limit=None,
    ),
}  # fmt: skip


def made_with(settings: Settings, text: Text) -> dict[str, Any]:
    """What decides every number of a run but its seed."""
    return dataclasses.asdict(settings) | {"text": text.sha256}


@dataclass(frozen=True)
class Nets:
    """Two networks of one architecture and its graph: the GPTs themselves, or with their norms folded."""

    apply: Callable[[PyTree, Any], Any]
    graph: Graph
    models: tuple[PyTree, PyTree]


class Experiment:
    """One seed: two parents, and a row for every way to align them.

    Raises:
        ValueError: in `run`, if the folder holds parents that were trained with other settings.
    """

    def __init__(self, text: Text, settings: Settings, seed: int, out: Path, rows: Rows):
        self.text, self.settings, self.seed, self.out, self.rows = text, settings, seed, out, rows
        size = {"layers": settings.layers, "heads": settings.heads, "width": settings.width, "length": settings.length}
        self.config = Gpt2(vocabulary=len(text.alphabet), hidden=4 * settings.width, **size)
        part = functools.partial(all_windows, length=settings.length, batch=2 * settings.batch, limit=settings.limit)
        self.validation, self.test, self.measuring = part(text.validation), part(text.test), part(text.train)

    @functools.cached_property
    def training(self) -> optax.GradientTransformation:
        """The parents' optimiser, made once: Optax's hash by identity, and every other one would be compiled anew."""
        s = self.settings
        warmup = min(100, s.training_steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(0, s.training_rate, warmup, s.training_steps)
        return optax.adamw(schedule, weight_decay=0.01)

    def batches(self, seed: int) -> Iterator[tuple]:
        """Windows from anywhere in the training part, without end."""
        return random_windows(self.text.train, self.settings.length, self.settings.batch, seed=seed)

    def run(self) -> None:
        """Every row that is not there yet."""
        wanted = [name for name in METHODS if not self.rows.has(seed=self.seed, method=name)]
        if not wanted:
            return
        models = self.parent(0), self.parent(1)
        network = build(self.config)
        plain = Nets(network.apply, nm.trace(network.apply, models[0], self.test[0][0]), models)
        folded = fold(network.apply, models[0], self.test[0][0])
        convert = jax.jit(folded.convert)
        moved = convert(models[0]), convert(models[1])
        nets = {"plain": plain, "folded": Nets(folded.apply, nm.trace(folded.apply, moved[0], self.test[0][0]), moved)}
        for name in wanted:
            began = time.perf_counter()
            row = METHODS[name](self, nets)
            self.rows.add({"seed": self.seed, "method": name, **row, "seconds": round(time.perf_counter() - began, 1)})
            typer.echo(f"seed {self.seed}: {name}: loss in the middle {row['loss']:.3f}", err=True)

    def parent(self, k: int) -> PyTree:
        """Train a GPT, or read the one that was trained before."""
        seed, made = 2 * self.seed + k, made_with(self.settings, self.text)
        path = self.out / "parents" / f"{seed}.safetensors"
        if path.exists():
            check_settings(checkpoint.load_record(path).get("settings", {}), made, path)
            return checkpoint.load(path)
        network, s, began = build(self.config, seed=seed), self.settings, time.perf_counter()
        trained = nm.fit(
            network.variables,
            nm.fine_tuning(network.apply, nm.CrossEntropy()),
            None,
            self.batches(seed),
            self.training,
            steps=s.training_steps,
            held_out=self.validation,
            every=max(s.training_steps // 15, 1),
            progress=lambda step, loss: typer.echo(f"seed {self.seed}, parent {k}: step {step}, loss {loss:.3f}", err=True),
        ).theta
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.perf_counter() - began, 1)
        checkpoint.save(path, trained, {"seed": seed, "seconds": seconds, "settings": made})
        return trained

    # ------------------------------------------------------------------------------------------------------- the methods

    def unaligned(self, nets: Nets) -> dict[str, Any]:
        """The networks as they are."""
        return self.measured(nets, nets.models[1])

    def aligned(self, nets: Nets, alignment: Alignment) -> dict[str, Any]:
        """An alignment in closed form."""
        stats = None
        if alignment.needs:
            stats = nm.collect(nets.apply, nets.graph, nets.models, self.measuring, alignment.needs)
        return self.measured(nets, nm.align(alignment, nets.graph, nets.models, stats=stats)[1])

    def learned(self, nets: Nets, alignment: Alignment, rates: Sequence[float]) -> dict[str, Any]:
        """An alignment learned from its closed form: Adam on the loss at a random point of the middle of the line."""
        loss = nm.along_line(alignment, nets.graph, nets.apply, nm.CrossEntropy(), interval=(0.4, 0.6))
        best, chosen = self.tuned(alignment.init(nets.graph, nets.models), loss, nm.stack_models(nets.models), rates)
        maps = alignment.maps(alignment.rounded(best), nets.graph)[1]
        return self.measured(nets, nm.transport(nets.graph, maps, nets.models[1])) | chosen

    def control(self, nets: Nets) -> dict[str, Any]:
        """The average after group matching, fine-tuned: the same data, steps and number of rates, no alignment learned."""
        average = nm.Average()(nm.stack_models(nm.align(GroupMatching(), nets.graph, nets.models)))
        loss = nm.fine_tuning(nets.apply, nm.CrossEntropy())
        best, chosen = self.tuned(average, loss, None, self.settings.control_rates)
        found = nm.evaluate(nets.apply, best, self.test)
        return dict.fromkeys(COLUMNS, "") | {"loss": found.loss, "accuracy": found.accuracy} | chosen

    def tuned(self, theta: PyTree, loss: Any, stack: Any, rates: Sequence[float]) -> tuple[PyTree, dict[str, Any]]:
        """The best theta on validation data over all rates and steps."""
        steps = self.settings.learning_steps
        key = None if stack is None else jax.random.key(self.seed)

        def fitted(rate: float) -> nm.FitResult:
            data, every = self.batches(1000 + self.seed), max(steps // 5, 1)
            optimizer = optax.adam(rate)
            return nm.fit(theta, loss, stack, data, optimizer, steps=steps, held_out=self.validation, every=every, key=key)

        results = [fitted(rate) for rate in rates]
        scores = [result.history.held_out_loss.min() for result in results]
        best = int(np.argmin(scores))
        kept = results[best].history.held_out_step[int(results[best].history.held_out_loss.argmin())]
        return results[best].theta, {"rate": rates[best], "kept": int(kept)}

    def measured(self, nets: Nets, other: PyTree) -> dict[str, Any]:
        """The path from the first network to the other on test data; what the other's outputs lost by being moved."""
        path = nm.path_between(nets.apply, nets.models[0], other, self.test, points=self.settings.points)
        middle = len(path.loss) // 2
        outputs = jax.jit(nets.apply)
        before, after = (outputs(v, self.test[0][0]) for v in (nets.models[1], other))
        change = float(jnp.abs(after - before).max() / jnp.abs(before).max())
        ends = (path.loss[0] + path.loss[-1]) / 2
        found = {"barrier": path.barrier, "loss": path.loss[middle], "accuracy": path.accuracy[middle], "parents": ends}
        losses = [round(float(x), 5) for x in path.loss]
        return {name: float(x) for name, x in found.items()} | {"change": change, "path": losses, "rate": "", "kept": ""}


COLUMNS = ("barrier", "loss", "accuracy", "parents", "change", "path", "rate", "kept")
Method = Callable[[Experiment, dict[str, Nets]], dict[str, Any]]
METHODS: dict[str, Method] = {
    "none": lambda e, nets: e.unaligned(nets["plain"]),
    "none, norms folded": lambda e, nets: e.unaligned(nets["folded"]),
    "activation matching": lambda e, nets: e.aligned(nets["plain"], ActivationMatching()),
    "weight matching, permutations": lambda e, nets: e.aligned(nets["plain"], WeightMatching()),
    "weight matching, full group": lambda e, nets: e.aligned(nets["folded"], GroupMatching()),
    "learned permutations": lambda e, nets: e.learned(nets["plain"], StraightThrough(), e.settings.rates),
    "learned full group": lambda e, nets: e.learned(
        nets["folded"], GroupMatching(learn_permutations=True), e.settings.group_rates
    ),
    "control: average fine-tuned": lambda e, nets: e.control(nets["folded"]),
}
PUBLISHED = {  # Theus et al. 2025, Tiny Shakespeare, GPT-2 of 6 layers and width 256
    "none": "2.02 ± 0.12",
    "activation matching": "1.43 ± 0.16",
    "weight matching, full group": "0.34 ± 0.01",
    "learned permutations": "0.63 ± 0.17",
    "learned full group": "0.02",
}


# --------------------------------------------------------------------------------------------------------------- the page


def page(rows: Rows, command: str, seconds: tuple[float, float], settings: Settings) -> str:
    """The result as a page: every number in it comes from the rows."""
    header = ("alignment", "barrier (nats)", "published", "loss in the middle", "accuracy in the middle", "change of outputs")
    table = []
    for name in METHODS:
        found = [row for row in rows.all if row["method"] == name]
        column = {c: mean_and_deviation([row[c] for row in found]) if found[0][c] != "" else "" for c in COLUMNS[:5]}
        change = f"{max(row['change'] for row in found):.0e}" if found[0]["change"] != "" else ""
        table.append((name, column["barrier"], PUBLISHED.get(name, ""), column["loss"], column["accuracy"], change))
    seeds = sorted({row["seed"] for row in rows.all})
    parents = mean_and_deviation([row["parents"] for row in rows.all if row["method"] == "none"])
    return "\n".join([
        "# Aligning two transformers", "", INTRODUCTION, "", "![Loss along the path](paths.png)", "",
        *markdown_table(header, table), "",
        f"Mean and deviation over seeds {seeds} (two parents each). Mean test loss of the parents: {parents}.", "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings, rows)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows)), "",
        f"`{command}`, {seconds[0]:.0f} s to train the parents and {seconds[1]:.0f} s for the rows, "
        f"{sum(seconds) / len(seeds):.0f} s a seed (the hour of the cpu preset is for one seed), {machine()}.", "",
    ])  # fmt: skip


INTRODUCTION = """Two GPTs of one architecture, trained from different initialisations on the same text in another order, stand
on opposite sides of a barrier of the loss. Each row moves the second network by symmetries of its function before the line
between the two is walked: permutations of units and heads; the full group (also rotations of the residual stream once the norms
are folded into the layers around them, and invertible maps inside every head); in closed form, or learned."""


def _protocol(settings: Settings, rows: Rows) -> list[str]:
    s = settings
    kept = {
        name: sorted({f"{row['rate']:g} (step {row['kept']})" for row in rows.all if row["method"] == name})
        for name in METHODS
        if name.startswith(("learned", "control"))
    }
    return [
        "Text as characters; the last tenth is validation and test, halves in the order of the text.",
        f"Parents: GPT-2 of {s.layers} layers, {s.heads} heads, width {s.width}, hidden {4 * s.width}, {s.length} characters; "
        f"AdamW at {s.training_rate:g}, cosine, {s.training_steps} steps of {s.batch}; the best on validation data.",
        f"Learned alignments: Adam, {s.learning_steps} steps of {s.batch} on the cross entropy at (1 - t) A + t T(B), t drawn "
        "from [0.4, 0.6] in each step, from the closed form of the same group; rates "
        f"{s.rates} for scores of permutations, {s.group_rates} for the full group.",
        "Control: the average after weight matching in the full group, all weights fine-tuned: the same text, steps and number "
        f"of rates, {s.control_rates}. It is one network, so it has no barrier.",
        "Rates and the step that is kept are chosen on validation data (loss in the middle); the test part is read once, for "
        f"this table. Chosen: {kept}.",
        f"Barrier: the largest excess of the test loss over the line between its ends, {s.points} points.",
        "Change of outputs: the largest difference between the logits of the second network before and after it is moved, by "
        "their largest value, the worst seed: the alignment itself costs nothing.",
    ]


def _findings(rows: Rows) -> list[str]:
    def means(column: str) -> dict[str, float]:
        values = {name: [row[column] for row in rows.all if row["method"] == name] for name in METHODS}
        return {name: float(np.mean(v)) for name, v in values.items() if "" not in v}

    mean, loss = means("barrier"), means("loss")
    full, permuted, control = "learned full group", "learned permutations", "control: average fine-tuned"
    return [
        "Expected from the paper: none > activation matching > learned permutations > weight matching in the full group > "
        "learned full group, the last near zero. Found, from the highest barrier to the lowest: "
        + ", ".join(f"{name} {mean[name]:.2f}" for name in sorted(PUBLISHED, key=lambda n: -mean[n])) + ".",
        against_none(rows.all),
        f"Rotations: weight matching in the full group has {mean['weight matching, full group']:.2f}, with permutations alone "
        f"{mean['weight matching, permutations']:.2f}; learned, {mean[full]:.2f} and {mean[permuted]:.2f}.",
        f"In the middle of the line the learned full group has a loss of {loss[full]:.3f}, the fine-tuned average "
        f"{loss[control]:.3f}, the parents {means('parents')['none']:.3f}: "
        + ("the control is the better network." if loss[control] < loss[full] else "the control is not the better network."),
    ]  # fmt: skip


def against_none(rows: Sequence[dict[str, Any]]) -> str:
    """What weight matching by permutations does to the barrier, whichever way that is."""
    none, matched = (
        {row["seed"]: row["barrier"] for row in rows if row["method"] == name}
        for name in ("none", "weight matching, permutations")
    )
    before, after = (float(np.mean(list(barriers.values()))) for barriers in (none, matched))
    worse = sum(matched[seed] > none[seed] for seed in matched)
    verdict = (
        "the weights agree better, the functions between them do not."
        if after > before
        else "the weights agree better, and so do the functions between them."
    )
    return (
        f"Weight matching by permutations against no alignment: {after:.2f} and {before:.2f}, higher in {worse} of "
        f"{len(matched)} seeds: {verdict}"
    )


def figure(rows: Rows) -> Any:
    """Loss along the path for every method, mean over seeds."""
    drawing, axes = new_figure(1)
    paths = {}
    for name in METHODS:
        losses = [np.array(row["path"]) for row in rows.all if row["method"] == name and row["path"] != ""]
        if losses:
            fractions = np.linspace(0, 1, len(losses[0]))
            paths[name] = [nm.Path(fractions, loss, np.zeros_like(loss)) for loss in losses]
    draw_paths(axes[0], paths, baseline="none")
    return drawing


def main(
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/transformer_alignment"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    data: Annotated[Path, typer.Option(help="A text file, plain or .xz.")] = SHAKESPEARE,
) -> None:
    """Train the parents, align them in every way, write the rows, the figure and the page."""
    text, settings = read_text(data), PRESETS[preset]
    rows = Rows(out / "rows.csv", ("seed", "method"), made_with(settings, text))
    for k in range(seed, seed + seeds):
        Experiment(text, settings, k, out, rows).run()
    command = f"python -m experiments.transformer_alignment --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    command += "" if data == SHAKESPEARE else f" --data {data}"
    parents = [checkpoint.load_record(path)["seconds"] for path in sorted((out / "parents").glob("*.safetensors"))]
    write(out, rows, command, (sum(parents), sum(row["seconds"] for row in rows.all)), settings)


def write(out: Path, rows: Rows, command: str, seconds: tuple[float, float], settings: Settings) -> None:
    """The page, its figure and the summary, from the rows and the seconds that parents and rows took."""
    (out / "README.md").write_text(page(rows, command, seconds, settings), encoding="utf-8")
    figure(rows).savefig(out / "paths.png", dpi=150)
    summary = {"command": command, "settings": dataclasses.asdict(settings), "machine": machine(), "rows": rows.all}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch(main)
