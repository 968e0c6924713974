"""The page: every number in it comes from the files of its folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.differences import JUDGING, READING
from experiments.folder import made, write_result
from experiments.learning import told_further
from experiments.pleas.figures import figures
from experiments.pleas.findings import differences, findings
from experiments.pleas.results import Results, Side, read
from experiments.pleas.settings import (
    BY_WEIGHTS,
    CLOSED,
    DISTILLED,
    ELSEWHERE,
    ENSEMBLE,
    GRADIENT,
    METHODS,
    OWN,
    PARENTS,
    PARTIAL,
    REGMEAN,
    SIZED,
    SOLVED,
    ZIPPED,
)
from experiments.problem import Training, told
from experiments.run import Preset
from npmerge.reports.tables import markdown_table

INTRODUCTION = """PLeaS (Nasery et al. 2024, CVPR 2025, arXiv 2407.02447) matches the units of two networks, keeps apart those
that agree least as far as a budget of operations reaches, and solves the layers by least squares so that the merge computes
what its networks do. Here at sizes from one network to both, for the same labels in two domains and for disjoint classes,
beside ZipIt at equal operations; the least squares in closed form, by the published descent, and one layer after another on
what the merge itself computes; and with other images in the place of the tasks' own."""

SETTINGS = "A setting is a pair of tasks at one size."


def write(folder: Path) -> None:
    """The page and the figure of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# PLeaS, from the size of one network to that of both", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", f"{JUDGING} {SETTINGS}", "", *findings(results), ""]
    lines += ["### Every difference", "", *differences(results), "", "![Test accuracy against size](size.png)", ""]
    lines += ["## Tables", "", "Test accuracy in percent, mean and deviation over seeds.", ""]
    for task in results.tasks:
        lines += [f"### {results.title(task)}, seeds {results.seeds(task)}", ""]
        lines += [*_accuracies(results, task), "", *_sizes(results, task), ""]
        lines += [*_parts(results, task), ""]
    lines += ["## Other images than the tasks' own", "", *_sources(results), ""]
    lines += ["## What was chosen on validation data", "", *(f"- {line}" for line in _chosen(results)), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(results, summary)), ""]
    return "\n".join([*lines, made(summary, training_in_rows=True), ""])


# -------------------------------------------------------------------------------------------------------------- the tables


def _accuracies(results: Results, task: str) -> list[str]:
    """A row for each method, a column for each size; what has no size is where it belongs."""
    header = ("test accuracy (%)", *(f"size {results.flops(task, shared):.2f}" for shared in results.sizes))
    return markdown_table(header, [row for method in METHODS if any((row := _row(results, task, method))[1:])])


def _row(results: Results, task: str, method: str, column: str = "accuracy") -> tuple[str, ...]:
    anywhere = method in (*SIZED, DISTILLED)
    place = results.sizes[-1] if method == ENSEMBLE else results.sizes[0]
    cells = (results.cell(task, Side(method), s, column) if anywhere or s == place else "" for s in results.sizes)
    return (method, *cells)


def _sizes(results: Results, task: str) -> list[str]:
    """What merges cost: operations and parameters of blocks that are not zero by construction, and operations of all."""
    columns = {"flops": "operations", "dense": "dense operations", "parameters": "parameters"}
    rows = []
    for method in (PARTIAL, ZIPPED):
        for column, words in columns.items():
            found = (results.mean(task, Side(method), shared, column) for shared in results.sizes)
            rows.append((f"{method}: {words}", *("" if x != x else f"{x:.2f}" for x in found)))
    header = ("multiples of one network", *(f"{shared} of {results.sizes[0]} stages shared" for shared in results.sizes))
    return markdown_table(header, rows)


def _parts(results: Results, task: str) -> list[str]:
    """At the size of one network: each part, and for disjoint classes what is right among all."""
    about = results.task(task)
    names = about["domains"] or ("first part", "second part")
    header = ("size 1, test accuracy (%)", *names, *(["among the classes of both"] if about["division"] == "classes" else []))
    rows = []
    for method in METHODS:
        each = list(results.values(task, Side(method), results.sizes[0], "each").values())
        if each and method != ELSEWHERE:
            cells = [" / ".join(f"{100 * x[k]:.1f}" for x in each) for k in range(2)]
            both = results.cell(task, Side(method), results.sizes[0], "joint") if method != PARENTS else ""
            rows.append((method, *cells, *[both] * (about["division"] == "classes")))
    return [*markdown_table(header, rows), "", "Parts seed by seed; an ensemble is of the size of both networks."]


def _sources(results: Results) -> list[str]:
    lines: list[str] = []
    for task in results.tasks:
        sources = [OWN, BY_WEIGHTS, *results.task(task)["others"]]
        shared = [s for s in results.settings["other_shared"] if results.cell(task, Side(CLOSED, sources[-1]), s)]
        places = [(source, s) for s in shared for source in sources]
        header = (results.title(task), *(f"{source}, size {results.flops(task, s):.2f}" for source, s in places))
        names = {PARTIAL: "permutation", **{method: method for method in (*SOLVED, DISTILLED)}}
        rows = [(words, *(results.cell(task, Side(m, source), s) for source, s in places)) for m, words in names.items()]
        if places:
            lines += [*markdown_table(header, rows), ""]
    return lines[:-1]


# --------------------------------------------------------------------------------------------------------------- the words


def _chosen(results: Results) -> Iterator[str]:
    for method in (REGMEAN, ZIPPED):
        counts = Counter(row["chosen"] for row in results.rows if row["method"] == method)
        if counts:
            yield f"{method}: " + ", ".join(f"{name} ({n})" for name, n in sorted(counts.items())) + "."
    rates = Counter(row["rate"] for row in results.rows if row["rate"] != "")
    if rates:
        yield "Rates of what is learned: " + ", ".join(f"{rate:g} ({n})" for rate, n in sorted(rates.items())) + "."


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s = results.settings
    for name in results.tasks:
        task = results.task(name)
        flips = ", images flipped and cropped" if task["augment"] else ""
        parts = {what: " and ".join(map(_range, each)) for what, each in summary["images"][name].items()}
        yield (
            f"{results.title(name)}: {task['network']}, each trained on its part of {s['data'][task['data']]} "
            f"({parts['train']} training images{flips}) from an initialisation of its own; "
            f"{told(Training(**task['training']))}. {task['measured']:,} training images, as many of either part, without "
            f"labels, are for matching, least squares and statistics of BatchNorm; {parts['validation']} validation images "
            f"choose; {parts['test']} test images judge."
        )
    yield (
        "Accuracy is the mean over both parts. With disjoint classes networks keep their heads, and an image is judged among "
        "the classes of its part; among all classes the logits of both heads stand side by side. As published a linear "
        "classifier would be learned there with labels."
    )
    yield (
        "Sizes are those of ZipIt, which shares the first stages of the networks and keeps the others and their heads twice: "
        "with as many operations PLeaS chooses which units to keep apart by 1 - mean correlation of each node, matched by "
        "weights by 1 - mean cosine; where these are the same stages, a line below the first table says so. Operations count "
        "blocks that are not zero by construction, as published, in multiples of one network, with the heads of both where "
        f'they keep them; as a dense network a merge costs more. At size 1 "{PARTIAL}" is the average of the permuted '
        "networks, at the largest size it is the ensemble but for BatchNorm, and there is nothing to solve."
    )
    yield (
        f"{GRADIENT}: Adam at 0.0005, cosine, {s['descent_steps']} steps of {s['descent_batch']} images on the errors of all "
        "layers, of the measured images again and again in one order, without augmentation (published: shuffled and cropped). "
        "The published scripts take 16 or 32 images, and match by activations or by weights. The closed form solves the same "
        "problem, held to the matched weights by a ridge of 1e-4 of the mean square of an input; the sequential one reads what "
        "the merge itself computes, with BatchNorm re-estimated before each layer. Nothing of PLeaS is tuned. Merges have "
        "their statistics of BatchNorm re-estimated from both parts; networks by themselves have those of their own part."
    )
    yield (
        f"RegMean: Gram matrices of each network on its own part, scale of {s['scales']}; ZipIt: (alpha, beta) of "
        f"{s['zipped']}; the lowest loss on validation data, of equal ones the first. Without the task's images units are "
        "matched by weights, and least squares and BatchNorm see the other images alone; what that costs the matching "
        f'stands beside it, "{BY_WEIGHTS}". Noise is Gaussian, independent for each pixel.'
    )
    yield (
        f"With labels: {s['steps']} steps of {s['batch']} of the measured images with their labels, Adam, all weights, rates "
        f"{s['rates']} by validation loss{told_further(s['further'])}, the best of five moments kept, alike for both "
        "starts, images flipped and cropped where the networks' were. No merge without labels belongs beside these."
    )
    yield (
        f"{DISTILLED}: as many steps of as many of the same images, the same rates and moments, from what the networks say of "
        "them (the mean of their logits, or each for its own head; Kullback-Leibler divergence, also on validation images): "
        "the control of least squares on the task's own images, which see no labels either, but are not tuned. Blocks between "
        "separate units stay zero. Images are not flipped and cropped. Least squares on other images have no such control."
    )
    yield "The test set is read once for each row, and never chooses."


def _limits(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    if summary["preset"] != Preset.paper:
        yield "Narrow networks and short training; averages of wider networks lose less (Jordan et al. 2023)."
    yield (
        "Published are ResNet-18 to ResNet-101 from ImageNet on DomainNet, CUB, Pets, Dogs and NABirds at 224 pixels; here "
        "networks begin at random, on 32 pixels or fewer. What can be compared is which method is above which."
    )
    yield (
        "Units are matched by correlation, where the published code takes distances, and kept apart by 1 - mean correlation of "
        "a node, where it takes the stages of ZipIt or, in one script, a quadratic program of accuracies. A layer that the "
        "descent made worse keeps its start. RegMean is in closed form from each network's own part, where the published one "
        "descends from one of the networks."
    )
    fewest = min(sum(min(part) for part in summary["images"][name]["test"]) for name in results.tasks)
    yield (
        f"An accuracy of 60 % on {fewest:,} test images has a standard error of {100 * (0.24 / fewest) ** 0.5:.1f} points, "
        "which intervals over seeds leave out."
    )
    yield (
        "Seeds differ in networks, their order of images, other images and noise, and in the classes of each part; where a "
        "data set has its parts by domain, its own images that are measured, choose and judge are the same for all. With "
        "disjoint classes the ensemble is each network on its own part, by definition."
    )


def _range(numbers: Sequence[int]) -> str:
    """Over seeds."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
