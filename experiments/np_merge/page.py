"""The page, a pure function of the rows and the summary in a folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import READING
from experiments.folder import made, shown
from experiments.learning import told_further
from experiments.np_merge.findings import (
    FISHER_BESIDE_HALF,
    MERGE_BESIDE_CONTROL,
    MERGE_BESIDE_SCRATCH,
    by,
    differences,
    findings,
    in_short,
)
from experiments.np_merge.presets import PRESETS
from experiments.np_merge.results import Results
from experiments.np_merge.settings import (
    KEY,
    METHODS,
    PARENTS,
    Block,
    Task,
    made_with,
)
from experiments.np_merge.tables import percent, tables
from experiments.run import Preset, Rows
from npmerge.reports.tables import markdown_table

INTRODUCTION = """NP Merge (Orozco Camacho et al. 2024, arXiv 2412.15467) brings networks into the units of one of them and then
learns, for each parameter, a point between them by gradient descent on labelled images. The question here is what those
coefficients are worth beside controls that see the same images for as many steps: the same average with all its weights
fine-tuned, one of the networks fine-tuned, training from scratch, and merges of fewer coefficients. No accuracy of the paper
could be reached, only its method and claims, so nothing here is beside a published number; its optimiser, rates and numbers of
steps are unknown, too."""


SETTINGS = """A setting is a task and a split: networks that saw all classes are not pooled with those that never saw some.
Settings of one seed tell nothing apart. The table behind the list has every difference."""


def read(folder: Path) -> Results:
    """What was measured, of a folder. Raises ValueError for rows made with other settings than the preset has now."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    settings = PRESETS[Preset(summary["preset"])]
    rows = Rows(folder / "rows.csv", KEY, made_with(settings, list(summary["data"].items())))
    return Results(rows.all, settings, summary["images"])


def page(folder: Path) -> str:
    """The result as a page: every number in it comes from `rows.csv` and `summary.json`.

    Args:
        folder: where they are, with `settings.json`.

    Raises:
        ValueError: rows that were made with other settings than the preset has now.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    results = read(folder)
    return "\n".join([
        "# NP Merge beside honest controls", "", INTRODUCTION, "",
        "## In short", "", *(f"- {line}" for line in in_short(results)), "",
        "## Expected, and what came out", "", READING, "", SETTINGS, "", *(f"- {line}" for line in findings(results)), "",
        "## Paired differences", "", *differences(results), "", *_compared(results),
        *_figures(folder),
        "## Tables", "", f"Mean and deviation over seeds {results.seeds}.", "", *_blocks(results),
        "## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), "",
        "## Limits", "", *(f"- {line}" for line in _limits(results, Preset(summary["preset"]))), "",
        "## What was chosen on validation data", "", *_chosen(results), "",
        made(summary, training_in_rows=False), "",
    ])  # fmt: skip


def _compared(results: Results) -> Iterator[str]:
    for claim, axis in (
        (MERGE_BESIDE_CONTROL, "labelled"), (MERGE_BESIDE_CONTROL, "split"), (MERGE_BESIDE_CONTROL, "models"),
        (FISHER_BESIDE_HALF, "labelled"), (MERGE_BESIDE_SCRATCH, "labelled"),
    ):  # fmt: skip
        yield from by(results, claim, axis)


def _figures(folder: Path) -> Iterator[str]:
    told = {"labels": "against labelled images", "models": "against the number of networks", "splits": "by split and start"}
    return shown(folder, {name: f"Test accuracy {words}" for name, words in told.items()})


def _blocks(results: Results) -> Iterator[str]:
    for block in results.settings.blocks:
        if any(map(results.values, results.jobs(block))):
            task = results.settings.task(block.task)
            constant = ", ".join(_constant(block))
            yield from (f"### {block.title}", "", f"{task.network} on {task.data}; {constant}.", "")
            yield from tables(results, block)


def _constant(block: Block) -> Iterator[str]:
    """What is the same in all of a block, in words."""
    values = {
        "split": (block.splits, f"split {block.splits[0]}"),
        "start": (block.starts, block.starts[0]),
        "models": (block.models, f"{block.models[0]} networks"),
        "labelled": (block.labelled, f"{percent(block.labelled[0])} labelled"),
    }
    yield from (words for name, (several, words) in values.items() if name != block.across and len(several) == 1)


PROTOCOL = (
    "Splits: the same data in another order; 80-20 (a fifth of the first half of the classes and four fifths of the others for "
    "one network, the rest for the other); for each class shares drawn from Dirichlet(0.5); disjoint classes. Networks take "
    "their last step, whatever validation data would say, which have classes that a network may never see.",
    "Labelled images are drawn from all training images, stratified by class, fewer ones among more; networks were trained on "
    "them, too. Validation data are not among them. They choose rates, the best moment of each run and gamma of CCA; where "
    "labels are few there are more of those than of labelled ones, for merges and controls alike.",
    "Merges of networks with BatchNorm are learned on the statistics of each batch; afterwards, and for averages, running "
    "statistics are re-estimated from the measured images. Networks without it are taken as they are.",
    "Best network: the one of the lowest loss on validation data, which need not be the most accurate. From scratch: as many "
    "steps as the merge learns for, which is few; the merged networks had theirs besides.",
    "CCA also maps units between ReLUs, which changes what a network computes, gamma in multiples of a layer's mean variance.",
    "Pairs: each network joins the merge of those before it, from the share that makes zero steps the plain average, and "
    "looks at validation data as often as a merge of two; the control of as many steps looks as often as all pairs. Fisher: "
    "diagonal, one label drawn from each network's own predictions for each labelled image, of a few hundred at most: with "
    "more labels it is the same.",
    "The test set is read once for each row, and never chooses.",
)


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    for task in results.settings.tasks:
        if task.name in results.tasks:
            yield f"{task.network} on {summary['data'][task.data]}: {_task(task, results)}"
    yield from PROTOCOL


def _limits(results: Results, preset: Preset) -> Iterator[str]:
    if preset != Preset.paper:
        yield (
            "Networks are smaller than those of the paper and trained for fewer steps: see how good they are under Protocol. A "
            "merge of networks that are far from their best may gain by mere training, which is what the controls are for."
        )
    shown = [task for task in results.settings.tasks if task.name in results.tasks]
    if normed := [task.network for task in shown if getattr(task.config, "norm", "") == "batch"]:
        yield f"{', '.join(dict.fromkeys(normed))}: with BatchNorm, which the VGG of the published protocol has not."
    yield (
        f"{_seeds(results)}: an interval of so few is wide: a difference that is not told apart may still be there, "
        "and of many differences some are told apart by chance; one seed tells nothing apart."
    )
    if preset == Preset.cpu:
        yield (
            "In a first try (seed 7) coefficients that are shared by a tensor or a model were best on the split 80-20 where "
            "they took nearly all of one network: then they are that network again, and no merge. Rows do not hold shares."
        )
        yield (
            "Of granularities, pairs and fine-tuning of one network little was measured beyond the smallest task; ResNets of "
            "widths 4 and 8 and VGG-11 of its full width are in the preset for GPUs alone, which was not run. CIFAR has one "
            "seed: a seed takes over an hour there."
        )
        yield (
            "Networks on CIFAR-100 were first trained for 500 steps and had learned next to nothing: those rows were seen, and "
            "are replaced. Seconds were measured beside other work."
        )
    yield "Seeds differ in initialisation, order, division of the images and labelled images; the test images are the same."


def _seeds(results: Results) -> str:
    """How many seeds the rows have, of each task where they differ."""
    seeds = {name: len({row["seed"] for row in results.rows if row["task"] == name}) for name in sorted(results.tasks)}
    told = {name: f"{count} seed{'s' * (count > 1)}" for name, count in seeds.items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return ", ".join(f"{words} of {name}" for name, words in told.items())


def _task(task: Task, results: Results) -> str:
    t, s = task.training, task.learning
    kind = {"adamw": "AdamW, cosine", "sgd": "SGD, momentum 0.9, a rising and falling line"}[t.optimizer]
    flips = ", images flipped and cropped throughout" if task.augment else ""
    return (
        f"{results.images[task.name]:,} training images{flips}; networks: {kind}, at {t.rate:g}, weight decay {t.decay:g}, "
        f"{t.steps:,} steps of {t.batch}; learning: Adam, cosine, {s.steps} steps of {s.batch}, rates for coefficients "
        f"of parameters {_rates(s.merge_rates)}, for shared ones {_rates(s.coarse_rates)}, for weights "
        f"{_rates(s.control_rates)}, from scratch {_rates(s.scratch_rates)}{told_further(s.further)}, {s.judgements} looks at "
        f"{task.judged or 'all'} validation images; {f'{task.tested:,}' if task.tested else 'all'} test images; "
        f"{task.measured:,} images are measured, Fisher information on {task.fisher} at most. {_how_good(task, results)}"
    )


def _how_good(task: Task, results: Results) -> str:
    """How far the networks are trained."""
    found = {
        place.split: results.values(place) for place in results.by_job if place.task == task.name and place.method == PARENTS
    }
    told = ", ".join(f"{100 * float(np.mean(values)):.1f} % ({split})" for split, values in found.items())
    return f"Test accuracy of a network, on average: {told}." if told else ""


def _rates(rates: tuple[float, ...]) -> str:
    return "/".join(f"{rate:g}" for rate in rates)


def _chosen(results: Results) -> Iterator[str]:
    """How often each rate was the best, and how often it lay beyond the grid."""
    tuned = [row for row in results.rows if row["steps"]]
    moved = [row for row in tuned if row["rate"] != ""]
    ends: Counter[str] = Counter()
    for row in moved:
        grid = results.settings.task(row["task"]).learning.rates(row["method"])
        ends["below"] += row["rate"] < grid[0]
        ends["above"] += row["rate"] > grid[-1]
    yield (
        f"Of {len(tuned)} tuned rows {len(tuned) - len(moved)} kept their start, which nothing improved on; of the others "
        f"{ends['below']} went on below the lowest rate of their grid and {ends['above']} above the highest."
    )
    yield ""
    names = [task.name for task in results.settings.tasks if task.name in {row["task"] for row in tuned}]
    lines = []
    for method in METHODS:
        counts = {name: Counter(r["rate"] for r in moved if r["method"] == method and r["task"] == name) for name in names}
        if any(counts.values()):
            cells = [", ".join(f"{rate:g} ({n})" for rate, n in sorted(counts[name].items())) or "-" for name in names]
            lines.append((method, *cells))
    yield from markdown_table(("rate (rows that chose it)", *names), lines)
    gammas = Counter(row["chosen"] for row in results.rows if row["chosen"])
    if gammas:
        yield from ("", "CCA: " + ", ".join(f"{name} in {n} rows" for name, n in sorted(gammas.items())) + ".")
