"""The page: every number in it comes from the files of its folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import npmerge as nm
from experiments.compositional.figures import figures
from experiments.compositional.findings import findings
from experiments.compositional.protocol import limits, protocol
from experiments.compositional.results import AREAS, OVER_EXPERTS, Results, Row, read
from experiments.compositional.settings import ADA_START, BASE, EXPERT, EXPERTS, HOME, LEARNED, MULTITASK, REAL
from experiments.differences import READING
from experiments.folder import made, shown, write_result
from experiments.run import points
from npmerge.catalogue import asks
from npmerge.cost import scaled
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Tam et al. 2024 (Realistic Evaluation of Model Merging for Compositional Generalization, arXiv 2409.18314) ask
whether networks that were fine-tuned on one cell each of a grid, a category in a domain, can be merged into one that is good
in cells that none of them has seen. Here the protocol is theirs, the networks and the data are small: images, sentences in
several languages, and generation. The paper's tables could not be reached: nothing here is beside a published number."""

FIGURES = {
    "scatter": "Held-in against generalisation accuracy",
    "cost": "Held-in accuracy against operations",
    "sensitivity": "Accuracy over the grid of each hyper-parameter, of which six values are shown at most",
    "models": "Accuracy against the number of networks merged",
}


ASKED = """Of methods without learning as `npmerge methods` has it for their defaults. Here MaTS asks for the base, too, as it
starts from task arithmetic, and for flows for Gram matrices in the place of gradients and labels. Hyper-parameters and rates of
all are chosen on validation data with labels."""

CURVED = {"held_in": "held-in", OVER_EXPERTS: "held-in less each cell's expert", "generalisation": "generalisation"}


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# Merging for compositional generalisation", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    lines += shown(folder, FIGURES)
    lines += ["## Tables", "", f"Accuracy in percent, mean and deviation over seeds {results.seeds}.", ""]
    for task in results.tasks:
        lines += [f"### {task['name']}", "", *_accuracies(results, task["name"]), "", *_costs(results, task["name"]), ""]
        lines += [*_curves(results, task["name"]), ""]
    lines += ["## What methods ask for", "", *_prerequisites(results), "", ASKED.replace("\n", " "), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in protocol(results)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in limits(results, summary["preset"])), ""]
    return "\n".join([*lines, made(summary, training_in_rows=False), ""])


def _accuracies(results: Results, task: str) -> list[str]:
    columns = {"validation": "validation", "held_in": "held-in", "generalisation": "generalisation"}
    if results.values(task, BASE, AREAS[0]):
        columns |= dict(zip(AREAS, ("AUROC held-in", "AUROC generalisation"), strict=True))
    header = ("accuracy (%)", *columns.values(), "chosen, in the first seed")
    levels = REAL, HOME, BASE, EXPERTS, MULTITASK, ADA_START
    names = {EXPERT: "experts, on average", **{x: x for x in (*levels, *results.methods(task))}}
    rows = []
    for name, label in names.items():
        if results.of(task, name):
            cells = [results.cell(task, name, column) for column in columns]
            rows.append((label, *cells, _chosen(results.of(task, name))))
    return markdown_table(header, rows)


def _chosen(rows: Sequence[Row]) -> str:
    """By validation data in the first seed: hyper-parameters and rates; the moments that networks were kept at, 0 the start."""
    row = rows[0]
    told = [f"{name} {value:g}{'*' if name in row['ends'] else ''}" for name, value in row["chosen"]]
    told += [f"rate {row['rate']:g}"] if row["rate"] else []
    moments = [str(x["moment"]) for x in rows if x["seed"] == row["seed"] and x["moment"] != ""]
    return ", ".join(told + ([f"moment {' '.join(moments)}"] if moments else []))


def _costs(results: Results, task: str) -> list[str]:
    header = ("cost", "statistics", "merge or learning", "tried", "with tuning", "kept", "peak memory", "seconds")
    rows = []
    for name in results.methods(task):

        def mean(column: str, name: str = name) -> float:
            return results.mean(task, name, column)

        least = "at least " if mean("uncounted") else ""
        work = scaled(results.work(task, name))
        memory = [scaled(mean(x), "B") if mean(x) else "" for x in ("bytes", "peak_bytes")]
        seconds = f"{mean('cost_seconds'):.2g}"
        statistics = scaled(mean("statistics_flops")) if mean("statistics_flops") else "-"
        whole = scaled(results.cost_with_tuning(task, name))
        rows.append((name, statistics, least + work, f"{mean('tried'):.0f}", least + whole, *memory, seconds))
    return markdown_table(header, rows)


def _curves(results: Results, task: str) -> list[str]:
    methods = list(dict.fromkeys(row["method"] for row in results.curves if row["task"] == task))
    if not methods:
        return []
    numbers, rows = sorted({row["models"] for row in results.curves if row["task"] == task}), []
    for method in methods:
        for column, words in CURVED.items():
            curve = results.curve(task, method, column)
            rows.append((f"{method}, {words}", *(points(curve[m]) if m in curve else "" for m in numbers)))
    header = ("networks merged (deviation over orders and seeds)", *map(str, numbers))
    return markdown_table(header, rows)


def _prerequisites(results: Results) -> list[str]:
    """As `npmerge methods` prints them, of the methods here."""
    header = ("", "base", "data", "labels", "activations", "gradients", "same initialisation")
    used = {name for task in results.tasks for name in results.merges(task["name"])}
    rows = []
    for method in nm.METHODS:
        if method.__name__ in used:
            a = asks(method)
            each = (a.base, a.data, a.labels, a.activations, a.gradients, a.same_initialisation)
            rows.append((a.name, *("yes" if x is True else str(x or "-") for x in each)))
    learned = {"NP Merge": ("-", "yes", "yes"), "AdaMerging": ("yes", "yes", "-"), "feature matching": ("-", "yes", "-")}
    there = [name for name in LEARNED if any(results.of(task["name"], name) for task in results.tasks)]
    features, vectors = LEARNED[2], LEARNED[1]
    rows += [
        (name, *learned[name], "yes" if name == features else "-", "yes", "yes" if name == vectors else "or aligned")
        for name in there
    ]
    return markdown_table(header, rows)
