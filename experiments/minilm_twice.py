"""A MiniLM fine-tuned twice, on genres and on languages, and merged by a recipe into a folder that `transformers` loads.

`python -m experiments.minilm_twice --preset cpu --out experiments/results/minilm_twice --seed 0`; needs `npmerge[minilm]`.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import optax
import typer

import npmerge as nm
from alignment.graph import PyTree
from experiments.command import launch
from experiments.minilm_folders import compared_with_transformers, published, save_fine_tune
from experiments.minilm_heads import FILE, fitted_heads, load_heads, own_task_loss, task_apply
from experiments.minilm_page import page
from experiments.minilm_settings import (
    ARITHMETIC,
    AVERAGE,
    BASE,
    GENRE,
    GRANULARITIES,
    LANGUAGE,
    METHODS,
    OWN,
    PRESETS,
    Settings,
    every,
    recipe,
)
from experiments.run import Preset, Rows, machine
from experiments.sentences import Sources, TextTask, genres, load_text_tasks, translations
from npmerge.checkpoint import load_named
from npmerge.cli import app
from npmerge.learning.data import Examples, Parts
from npmerge.learning.tasks import Tasks
from npmerge.models import abstract

XNLI = Path("../shared/data/xnli_en_sw_ur_my")
STRINGS = Path("../shared/data/text_parallel_ui/django_ui_strings.jsonl.xz")
"""Where the texts are looked for: English rows of XNLI by genre (Conneau et al. 2018), and Django's translations."""


CHECKED = 32
"""Sentences of each text on which `transformers` is compared with."""


class Experiment:
    """One seed: two fine-tunes of one network, and a row for every way to make one of them."""

    def __init__(self, sources: Sources, settings: Settings, seed: int, rows: Rows):
        self.sources, self.settings, self.seed, self.rows = sources, settings, seed, rows
        self.folder = rows.path.parent / "parents" / f"seed_{seed}"  # what is not kept with the results
        self.tasks = load_text_tasks(sources, settings.sizes, seed=seed)

    def run(self) -> None:
        """Every row that is not there yet."""
        left = [name for name in METHODS if not self.rows.has(seed=self.seed, method=name)]
        if not left:
            return
        self.prepare()
        for name in left:
            began = time.perf_counter()
            row = {"seed": self.seed, "method": name, **self.row(name)}
            self.rows.add(row | {"seconds": round(time.perf_counter() - began, 1)})
            self.say(f"{name}: accuracy {row['accuracy']:.4f}, genre {row['genre']:.4f}, language {row['language']:.4f}")

    def say(self, text: str) -> None:
        """Progress."""
        typer.echo(f"seed {self.seed}, {text}", err=True)

    def prepare(self) -> None:
        """Heads, fine-tunes and the sentences of the recipe, from the folder where they are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config, self.base = load_named(self.sources.model)
        self.apply = abstract(config).apply
        if not (self.folder / FILE).is_file():
            fitted_heads(self.apply, self.base, self.tasks, self.settings.probe).save(self.folder / FILE)
        self.heads = load_heads(self.folder / FILE)
        self.logits = [task_apply(self.heads, self.apply, task) for task in self.tasks]
        objective = nm.UserObjective(functools.partial(own_task_loss, self.heads))
        self.single, self.joint = (nm.fine_tuning(self.apply, each) for each in (objective, nm.Joint(objective)))
        for task in self.tasks:
            for name in ("learning", "selection"):
                part = getattr(task, name)
                np.savez(self.folder / f"{task.name}_{name}.npz", inputs=part.tokens, labels=part.labels)
            if not (self.folder / task.name).is_dir():
                self.fine_tune(task)
        self.models = [load_named(self.folder / task.name)[1] for task in self.tasks]

    def fine_tune(self, task: TextTask) -> None:
        """The whole encoder on one task; the best moment on its selection sentences is kept as a folder."""
        s, began = self.settings, time.perf_counter()
        data = Tasks((Parts(Examples("train", *task.train), Examples("selection", *task.selection)),), self.seed)
        found = self.fitted(self.base, data, s.training_rate, s.training_steps)
        save_fine_tune(self.sources.model, found.theta, self.folder / task.name)
        seconds, lowest = time.perf_counter() - began, float(np.nanmin(found.history.held_out_loss))
        (self.folder / f"{task.name}.json").write_text(json.dumps({"seconds": seconds, "loss": lowest}), encoding="utf-8")
        self.say(f"fine-tuned on {task.name}: validation loss {lowest:.4f}, {seconds:.0f} s")

    def fitted(self, start: PyTree, data: Tasks, rate: float, steps: int) -> nm.FitResult:
        """All weights, from a network on, with the batches that a recipe makes of the same examples."""
        loss, size = (self.joint, self.settings.batch // 2) if data.joint else (self.single, self.settings.batch)
        fit = functools.partial(nm.fit, steps=steps, every=every(steps), progress=self.progress)
        return fit(start, loss, None, data.batches(size), _adam(rate), held_out=data.held_out(size))

    def progress(self, step: int, loss: float) -> None:
        """Told by `fit`."""
        self.say(f"step {step}, loss {loss:.4f}")

    # ------------------------------------------------------------------------------------------------------------- the rows

    def row(self, name: str) -> dict[str, Any]:
        """What is measured of a method."""
        stack = nm.stack_models(self.models, self.base)
        networks: dict[str, Callable[[], Sequence[PyTree]]] = {
            BASE: lambda: [self.base] * 2,
            GENRE: lambda: [self.models[0]] * 2,
            LANGUAGE: lambda: [self.models[1]] * 2,
            OWN: lambda: self.models,
            AVERAGE: lambda: [nm.Average()(stack)] * 2,
        }
        if name in networks:
            return self.tested(networks[name]())
        if name in GRANULARITIES:
            return self.merged(name)
        if name == ARITHMETIC:
            made = [nm.TaskArithmetic(scale)(stack) for scale in self.settings.scales]
            return self.chosen(made, [self.judged(network) for network in made], self.settings.scales)
        return self.control(nm.Average()(stack))

    def tested(self, networks: Sequence[PyTree], rate: float | str = "", tried: int = 1) -> dict[str, Any]:
        """Accuracy and loss on the test sentences of each task, and their means over the tasks."""
        found = self.evaluated(networks, "test")
        joint = {name: float(np.mean([getattr(m, name) for m in found])) for name in ("accuracy", "loss")}
        return joint | {t.name: m.accuracy for t, m in zip(self.tasks, found, strict=True)} | {"rate": rate, "tried": tried}

    def judged(self, network: PyTree) -> float:
        """The mean over the tasks of the loss on the selection sentences."""
        return float(np.mean([m.loss for m in self.evaluated([network] * 2, "selection")]))

    def evaluated(self, networks: Sequence[PyTree], part: str) -> list[nm.Metrics]:
        """Accuracy and loss on a part of each task, by the network for it."""
        parts = [getattr(task, part) for task in self.tasks]
        batches = [nm.in_order(x.tokens, x.labels - task.first, 64) for task, x in zip(self.tasks, parts, strict=True)]
        return [nm.evaluate(*each) for each in zip(self.logits, networks, batches, strict=True)]

    def chosen(self, networks: Sequence[PyTree], losses: Sequence[float], rates: Sequence[float]) -> dict[str, Any]:
        """The row of the network of lowest loss on the selection sentences."""
        best = int(np.nanargmin(losses))
        return self.tested([networks[best]] * 2, rates[best], len(rates))

    def merged(self, method: str) -> dict[str, Any]:
        """`npmerge merge` at each rate; the folder of the lowest loss is read again and measured."""
        rates = self.settings.learned_rates
        folders = [self.merge(method, rate) for rate in rates]
        histories = [json.loads((x / "history.json").read_text(encoding="utf-8"))["held_out_loss"] for x in folders]
        losses = [min(loss for loss in history if loss is not None) for history in histories]
        return self.chosen([load_named(x)[1] for x in folders], losses, rates)

    def merge(self, method: str, rate: float) -> Path:
        """The folder of a learned merge, made by the command unless it is there."""
        out = self.folder / merged_name(method, rate)
        if not out.is_dir():
            file = out.with_suffix(".yml")
            file.write_text(recipe(self.settings, method, rate, self.seed), encoding="utf-8")
            with contextlib.chdir(self.folder):
                app(["merge", file.name, out.name, "--quiet"], standalone_mode=False)
            self.say(f"merged {out.name}")
        return out

    def control(self, start: PyTree) -> dict[str, Any]:
        """All weights, with the sentences, steps and choices of the learned merges."""
        rates = self.settings.control_rates
        parts = [Parts(Examples(t.name, *t.learning), Examples(t.name, *t.selection)) for t in self.tasks]
        found = [self.fitted(start, Tasks(tuple(parts), self.seed), rate, self.settings.steps) for rate in rates]
        return self.chosen([x.theta for x in found], [np.nanmin(x.history.held_out_loss) for x in found], rates)


def merged_name(method: str, rate: float) -> str:
    """Of the folder of a learned merge."""
    return f"{GRANULARITIES[method]}-{rate:g}".replace(".", "_")


@functools.lru_cache(maxsize=64)
def _adam(rate: float) -> optax.GradientTransformation:
    """One object per rate: the compiled step is found again by the optimiser's identity."""
    return optax.adam(rate)


def check_with_transformers(out: Path, rows: Rows, sources: Sources) -> dict[str, Any]:
    """What `transformers` makes of the chosen merges of the first seed; kept, since not every machine has it."""
    kept = out / "transformers.json"
    seed = min(row["seed"] for row in rows.all)
    chosen = {
        name: row["rate"] for row in rows.all for name in [row["method"]] if row["seed"] == seed and name in GRANULARITIES
    }
    folders = [out / "parents" / f"seed_{seed}" / merged_name(name, rate) for name, rate in chosen.items()]
    there = all(importlib.util.find_spec(x) for x in ("torch", "transformers")) and all(x.is_dir() for x in folders)
    if there:
        texts = [genres(sources.xnli), translations(sources.strings)]
        sentences = [sentence for found in texts for sentence in found.sentences[:CHECKED]]
        found = {x.name: compared_with_transformers(x, sentences) for x in folders}
        kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}


def main(
    *,
    preset: Annotated[Preset, typer.Option(help="How much work.")] = Preset.cpu,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/minilm_twice"),
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 1,
    model: Annotated[Path | None, typer.Option(help="Folder of a BERT; by default the MiniLM of npmerge[minilm].")] = None,
    xnli: Annotated[Path, typer.Option(help="Folder of my.genre.dev.tsv and my.genre.test.tsv, plain or .xz.")] = XNLI,
    strings: Annotated[Path, typer.Option(help="Texts in several languages, JSON by line, plain or .xz.")] = STRINGS,
) -> None:
    """Fine-tune twice, merge, compare with the controls, write the rows and the page."""
    sources, settings = Sources(model or published(), xnli, strings), PRESETS[preset]
    rows = Rows(out / "rows.csv", ("seed", "method"), dataclasses.asdict(settings))
    for k in range(seed, seed + seeds):
        Experiment(sources, settings, k, rows).run()
        jax.clear_caches()  # the loss of a recipe is told by its name: what is compiled holds the heads of one seed
    checked = check_with_transformers(out, rows, sources)
    command = f"python -m experiments.minilm_twice --preset {preset} --out {out} --seed {seed} --seeds {seeds}"
    write(out, rows, command, settings, checked)


def write(out: Path, rows: Rows, command: str, settings: Settings, checked: dict[str, Any]) -> None:
    """Page, figure and summary, from the rows."""
    kept, folders = out / "summary.json", sorted((out / "parents").glob("seed_*"))
    trained = {f"{x.parent.name}/{x.stem}": json.loads(x.read_text("utf-8")) for f in folders for x in f.glob("*.json")}
    if not trained and kept.is_file():  # a checkout has rows, and not the networks
        trained = json.loads(kept.read_text(encoding="utf-8"))["fine_tunes"]
    made_with = {"command": command, "settings": dataclasses.asdict(settings), "machine": machine()}
    summary = {**made_with, "fine_tunes": trained, "transformers": checked, "rows": rows.all}
    kept.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text(page(rows, command, settings, trained, checked), encoding="utf-8")
    first = min((row for row in rows.all if row["method"] in GRANULARITIES), key=lambda row: row["seed"])
    shares = out / "parents" / f"seed_{first['seed']}" / merged_name(first["method"], first["rate"]) / "shares.png"
    if shares.is_file():
        shutil.copyfile(shares, out / "shares.png")


if __name__ == "__main__":
    launch(main)
