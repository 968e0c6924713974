"""The page: every number in it comes from the files of its folder."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import npmerge as nm
from experiments.compositional.figures import figures
from experiments.compositional.findings import findings
from experiments.compositional.results import AREAS, SCORES, Results, Row, read
from experiments.compositional.settings import BASE, CONTROLS, EXPERT, EXPERTS, HOME, LEARNED, MULTITASK, PAPER, REAL
from experiments.differences import READING
from experiments.folder import made, shown, write_result
from experiments.learning import told_further
from experiments.run import Preset
from npmerge.catalogue import asks
from npmerge.cost import scaled
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Tam et al. 2024 (Realistic Evaluation of Model Merging for Compositional Generalization, arXiv 2409.18314) ask
whether networks that were fine-tuned on one cell each of a grid, a category in a domain, can be merged into one that is good
in cells that none of them has seen. Here the protocol is theirs, the networks and the data are small: images, sentences in
several languages, and generation. The paper's tables could not be reached: nothing here is beside a published number."""

DATA = {
    "pacs": "PACS (Li et al. 2017), 4 styles, 7 categories",
    "emoji": "emoji in 5 styles of drawing, 9 categories",
    "digits": "scikit-learn's digits 0 to 3, upright and in three other forms",
    "xnli": "XNLI in English, Swahili, Urdu and Burmese, 7,500 pairs of sentences; tasks: the label of a pair, whether the "
    "sentences of a pair belong together, whether words are in their order, whether a sentence is a premise; the base learns "
    "the genre of sentences in all languages, too",
    "manuals": "manual pages of Debian and strings of Django's interface in English, German, Spanish, French, Japanese and "
    "Russian; tasks: the section of a passage (1, 5 or 7), whether a string is the translation of an English one (in English, "
    "whether one in Turkish is its own), whether two passages are of one page, whether words are in their order (in Japanese, "
    "characters); the base learns the language of passages in all languages, too",
    "made": "sentences that are made up",
}

FIGURES = {
    "scatter": "Held-in against generalisation accuracy",
    "cost": "Held-in accuracy against operations",
    "sensitivity": "Accuracy over the grid of each hyper-parameter",
    "models": "Accuracy against the number of networks merged",
}


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
    lines += ["## What methods ask for", "", *_prerequisites(results), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(results, summary["preset"])), ""]
    return "\n".join([*lines, made(summary, training_in_rows=True), ""])


def _accuracies(results: Results, task: str) -> list[str]:
    columns = {"validation": "validation", "held_in": "held-in", "generalisation": "generalisation"}
    if results.values(task, BASE, AREAS[0]):
        columns |= dict(zip(AREAS, ("AUROC held-in", "AUROC generalisation"), strict=True))
    header = ("accuracy (%)", *columns.values(), "chosen, in the first seed")
    names = {EXPERT: "experts, on average", **{x: x for x in (REAL, HOME, BASE, EXPERTS, MULTITASK, *results.methods(task))}}
    rows = []
    for name, label in names.items():
        if results.of(task, name):
            cells = [results.cell(task, name, column) for column in columns]
            rows.append((label, *cells, _chosen(results.of(task, name))))
    return markdown_table(header, rows)


def _chosen(rows: Sequence[Row]) -> str:
    """By validation data in the first seed: hyper-parameters and rates; the moments that networks were kept at."""
    row = rows[0]
    told = [f"{name} {value:g}" for name, value in row["chosen"]]
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
        work = scaled(mean("merge_flops") + mean("learning_flops"))
        memory = [scaled(mean(x), "B") if mean(x) else "" for x in ("bytes", "peak_bytes")]
        seconds = f"{mean('cost_seconds') or mean('seconds'):.2g}"
        statistics = scaled(mean("statistics_flops")) if mean("statistics_flops") else "-"
        whole = scaled(results.cost_with_tuning(task, name))
        rows.append((name, statistics, least + work, f"{mean('tried'):.0f}", least + whole, *memory, seconds))
    return markdown_table(header, rows)


def _curves(results: Results, task: str) -> list[str]:
    methods = list(dict.fromkeys(row["method"] for row in results.curves if row["task"] == task))
    if not methods:
        return []
    rows = []
    for method in methods:
        for column, words in zip(SCORES, ("held-in", "generalisation"), strict=True):
            curve = results.curve(task, method, column)
            rows.append((f"{method}, {words}", *(f"{100 * np.mean(x):.1f} ± {100 * np.std(x):.1f}" for x in curve.values())))
    header = ("networks merged", *(str(m) for m in results.curve(task, methods[0], SCORES[0])))
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


def _protocol(results: Results) -> Iterator[str]:
    for task in results.tasks:
        found = DATA[task["data"]]
        tuning, base = task["fine_tuning"], task["base"]
        made = {"images": "whether an image shows the category or another one, half of either", "text": "classes",
                "generation": f"images by a flow, of {task['sampling']} steps"}[task["setting"]]  # fmt: skip
        adapted = f" of adapters of rank {task['rank']}" if task["setting"] == "generation" else ""
        yield (
            f"{task['name']}: {found}; a cell's task: {made}. Width {task['width']}, {task['layers']} layers; base: "
            f"{base['steps']:,} steps of {base['batch']} on the domain {task['base_domain']}, which is none of the grid's"
            f"; each expert: {tuning['steps']:,} "
            f"steps of {tuning['batch']}{adapted}, rate {tuning['rate']:g}; all at their best moment on "
            f"validation data, of {base['moments']} and {tuning['moments']}; 0 is where they start."
        )
        if task["setting"] == "generation":
            yield (
                f"{task['name']}: {task['samples']} images in each cell are right if a classifier, trained on real images of "
                f'all categories and styles, tells both as they were asked for; "{REAL}" is what it makes of real test images. '
                "Validation and tests begin at other noise. The loss of a row is that of the classifier."
            )
    yield (
        "Every category has one held-in cell, drawn by the seed, every domain as many as any other up to one; the other cells "
        "are for generalisation: nothing is learned or chosen from them. Examples for fine-tuning, for statistics and learned "
        "merges, for choices and for tests have none in common; one drawing in several styles and one sentence in several "
        "languages are in the same part. Test parts are the same for every seed. Scores are means over cells."
    )
    yield (
        "AUROC: the area under the ROC curve in percent, of several classes the mean over each against the others. It does not "
        "hang on where the threshold between classes lies, which another domain may shift."
    )
    yield (
        "Hyper-parameters: the highest mean accuracy on the validation data of held-in cells, the loss decides ties; one after "
        "another, twice. Grids of the paper: factors and dropout in tenths, RegMean's factor in tenths, MaTS 10 to 100 "
        "iterations and the factor of task arithmetic that it starts from; of newer methods those of "
        "`experiments/compositional/methods.py`. SLERP merges in turn, each network with an equal share."
    )
    yield (
        "Statistics: each expert on as many examples of its own cell, which it was not fine-tuned on, repeated where a cell "
        "has fewer than others; Fisher information of the labels of the data, for flows squared gradients of the squared error."
    )
    learning = results.tasks[0]["learning"]
    yield (
        f"Learned merges and controls: Adam, {learning['steps']} steps of {learning['batch']} examples of each held-in cell "
        f"(of one cell in turn for features), its rate falling along a cosine, {len(learning['fine_rates'])} rates"
        f"{told_further(learning['further'])}; every rate "
        "stops where its own objective is lowest on validation examples, and labels choose the rate. NP Merge has labels, "
        "AdaMerging minimises the entropy of predictions, feature matching the distance of every layer to that of the cell's "
        "expert. Each control is the average, all weights fine-tuned by the same objective on the same examples."
    )
    yield (
        "Costs are operations counted on the programs (`npmerge.cost`), statistics for all experts; with tuning: the merge and "
        "one look at all validation data as often as something was tried; learning counts all rates and looks. Seconds are "
        "those of statistics and one merge without compilation, for what is learned those of the whole row."
    )
    yield (
        "Fewer networks: the first of each order, no two of which begin with the same pair; held-in cells are those of the "
        "networks merged, generalisation cells always the same; hyper-parameters are chosen for each "
        f"subset, of {results.tasks[0]['curve_values'] or 'all'} values of each grid."
    )


def _limits(results: Results, preset: str) -> Iterator[str]:
    if preset != Preset.paper:
        yield (
            "Tiny networks on little data: the paper's were pretrained on far more than a base domain, and their experts near "
            "the ceiling of their tasks."
        )
    errors = Counter(f"{row['task']}, {row['method']}: {row['error']}" for row in results.rows if row["error"])
    yield from (f"Could not be done: {error}" for error in errors)
    yield f"Every learned merge stands beside its control alone: {', '.join(CONTROLS.values())}."
    if any(task["setting"] == "generation" for task in results.tasks):
        yield "Generation has no AdaMerging, which needs classes, and MaTS there has Gram matrices for its operator."
    absent = [name for name in PAPER if not any(results.of(task["name"], name) for task in results.tasks)]
    if absent:
        yield f"Methods of the paper that are not here: {', '.join(absent)}."
