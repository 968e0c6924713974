"""The page: every number in it comes from the files of its folder."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cca_merge.figures import figures
from experiments.cca_merge.findings import differences, findings
from experiments.cca_merge.results import Results, read
from experiments.cca_merge.settings import CCA, CHOICES, FIRST, FOLDED_CCA, METHODS, ON_TEST, PERMUTED, TUNED, ZIPIT, Block
from experiments.differences import JUDGING, READING
from experiments.folder import made, shown, write_result
from experiments.learning import told_further
from experiments.problem import Training, told
from experiments.run import Preset
from npmerge.reports.tables import markdown_table

INTRODUCTION = """CCA Merge (Horoi et al. 2024, ICML, arXiv 2407.05385) brings networks into the space of one of them by linear
maps that make their activations correlate, where others permute units, and averages them. Here networks are merged by it, by
permutations, ZipIt, Procrustes and optimal transport; everything that is chosen is chosen on validation data.
The paper's abstract says that CCA Merge is better than past methods, for two networks and for more. Its tables could not be
reached, so nothing here is beside a published number."""

GROUPS = """A setting is a group of so many networks of one kind that learned from one division of the images."""

FIGURES = {
    "models": "Test accuracy against the number of networks, bars: deviation over seeds; without alignment it is in the tables",
    "gamma": "Test accuracy of the CCA average against gamma, beside Procrustes and a permutation",
    "correlations": "Correlations of two networks of the first seed by layer, each line over its own number of directions, "
    "dotted over its own number of living pairs by a permutation",
}


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    counts = [n for block in results.blocks for n in block.counts]
    lines = [f"# CCA Merge, from {min(counts)} to {max(counts)} networks", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", f"{JUDGING} {GROUPS}", ""]
    for heading, found in findings(results):
        lines += [f"### {heading}", "", *found, ""]
    lines += ["### Every difference", ""]
    lines += [*differences(results), ""]
    lines += shown(folder, FIGURES)
    lines += ["## Tables", "", "Test accuracy in percent, mean and deviation over seeds.", ""]
    for block in results.blocks:
        lines += [
            f"### {results.title(block)}, seeds {results.seeds(block)}",
            "",
            *_accuracies(results, block),
            "",
            *_layers(results, block),
            "",
        ]
    lines += ["### Choice of the reference", "", *_references(results), ""] if any(b.references for b in results.blocks) else []
    lines += ["## What was chosen on validation data", "", *(f"- {line}" for line in _chosen(results)), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(results, summary["preset"])), ""]
    return "\n".join([*lines, made(summary, training_in_rows=True), ""])


def _accuracies(results: Results, block: Block) -> list[str]:
    header = ("test accuracy (%)", *(f"{n} networks" for n in block.counts))
    rows = [(method, *(results.cell(block, method, n) for n in block.counts)) for method in METHODS]
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _layers(results: Results, block: Block) -> list[str]:
    header = ("layer", "units", "living pairs", *_COLUMNS.values())
    rows = []
    for layer in results.layers(block):
        means = [f"{np.mean([np.mean(row[name]) if np.size(row[name]) else 0.0 for row in layer]):.3f}" for name in _COLUMNS]
        pairs = f"{np.mean([len(row['matched']) for row in layer]):.0f}"
        rows.append((f"{layer[0]['depth']}: {layer[0]['node']}", str(layer[0]["units"]), pairs, *means))
    return markdown_table(header, rows)


_COLUMNS = {
    "canonical": "canonical correlation",
    "chance": "by chance",
    "matched": "matched living units",
    "explained": "explained by maps",
    "explained_by_match": "by matched units",
}


def _references(results: Results) -> list[str]:
    places = [(block, n) for block in results.blocks for n in block.references]
    header = ("reference", *(f"{results.title(block)}, {n} networks" for block, n in places))
    rows = [
        (f"{method}: {choice}", *(results.cell(block, method, n, choice) for block, n in places))
        for method in (PERMUTED, CCA)
        for choice in (FIRST, *CHOICES)
    ]
    return markdown_table(header, rows)


def _chosen(results: Results) -> Iterator[str]:
    for method in (CCA, FOLDED_CCA, ZIPIT):
        counts = Counter(row["chosen"] for row in results.rows if row["method"] == method and row["reference"] == FIRST)
        if counts:
            told = sorted(counts.items(), key=lambda pair: [float(x) for x in re.findall(r"[\d.e+-]+\b", pair[0])])
            yield f"{method}: " + ", ".join(f"{name} ({n})" for name, n in told) + "."
    grid = results.settings["gammas"]
    for method in (CCA, FOLDED_CCA):
        chosen = [row["chosen"] for row in results.rows if row["method"] == method and row["reference"] == FIRST]
        ends = sum(name in (f"gamma {grid[0]:g}", f"gamma {grid[-1]:g}") for name in chosen)
        if chosen:
            yield f"{method}: of {len(chosen)} gammas {ends} are an end of the grid, from {grid[0]:g} to {grid[-1]:g}."
    rates = Counter(row["rate"] for row in results.rows if row["method"] in TUNED)
    if rates:
        yield "Rates of fine-tuning: " + ", ".join(f"{rate:g} ({n})" for rate, n in sorted(rates.items())) + "."


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s = results.settings
    for task in s["tasks"]:
        if any(block.task == task["name"] for block in results.blocks):
            flips = ", images flipped and cropped" if task["augment"] else ""
            judged, tested = task["judged"] or "all", f"{task['tested']:,}" if task["tested"] else "all"
            yield (
                f"{task['network']} on {s['data'][task['data']]}: {summary['images'][task['name']]:,} training images{flips}; "
                f"{told(Training(**task['training']))}; {task['measured']:,} training images are measured for activations "
                f"and BatchNorm, {judged} validation images, a tenth of those for training, choose, {tested} test images judge."
            )
    yield (
        "Splits: the same images for all, in another order; 80-20 (a fifth of the first half of the classes and four fifths of "
        "the others for one network, the rest for the other); for each class shares drawn from Dirichlet(0.5); disjoint "
        "classes. All networks have initialisations of their own and are those of their last step. Where all see the same "
        "images, fewer networks are the first of the more, elsewhere others that see more images each. Networks and references "
        "are the best or the worst on validation data."
    )
    yield (
        "Networks' own statistics of BatchNorm are re-estimated, activations are measured behind the ReLU, all networks are "
        "brought to one reference (by ZipIt to units of all of them) and averaged, and statistics are re-estimated again. "
        "BatchNorm's scale and bias are mapped "
        "as vectors, as published: exact for permutations, while maps that mix channels mix them before they are normalised "
        'and take scales for features. "BatchNorm folded": the scale over the deviation is multiplied into the convolution '
        "first, which changes no function, and the average gets the size of the reference's scales."
    )
    yield (
        f"CCA: gamma of {s['gammas']}, in multiples of each layer's mean variance, the highest accuracy on validation data "
        "for every row and reference (the loss decides ties); what starts from CCA takes it over, with BatchNorm as it is. The "
        "published gammas are absolute, from 1e-6 to 1e7. The published code "
        f'chose one once, by test accuracy: "{ON_TEST}" is a choice by that for every row, among the same gammas, and nothing '
        f"else belongs beside it. ZipIt: (alpha, beta) of {s['zipped']} likewise; "
        "it, too, was searched by test accuracy. The others have nothing to choose; optimal transport of equal masses is a "
        "permutation, by distance."
    )
    yield (
        "REPAIR: channels of the permuted average get the mean moments of their parents, those of the CCA average the moments "
        "of the reference, whose units they are: what CCA makes of a parent computes something else. A permuted average with "
        "these moments is its control. Gamma is the one chosen without REPAIR. ZipIt and Procrustes were not "
        "repaired: what was belongs beside nothing else."
    )
    yield (
        f"With labels: Adam, {s['steps']} steps of {s['batch']} from {s['labelled']} labelled training images, which the "
        f"networks may have seen, rates {s['rates']} by validation loss{told_further(s['further'])}, the best of five moments "
        "kept. No merge without "
        "labels belongs beside these."
    )
    yield (
        "Correlations are of the first two networks of the fewest, at the images that are measured; a position of an image is "
        "a sample. Canonical ones are of the directions that vary in both, whatever their share of the variance, matched ones "
        'of units that vary in both. "By chance": the mean canonical correlation where the second network sees other images. '
        '"Explained": the share of the variance of the first network\'s units that linear maps of all units of the second '
        "explain."
    )


def _limits(results: Results, preset: str) -> Iterator[str]:
    s = results.settings
    if preset != Preset.paper:
        yield (
            "Narrow networks and short training: the paper's are trained for 200 epochs, its ResNet-20 is eight times as wide "
            "as usual, and averages of wider networks lose less (Jordan et al. 2023). Activations are of some training images, "
            "where published ones are of all, which matters to CCA more than to a permutation."
        )
    yield (
        f"ZipIt chooses among {len(s['zipped'])} settings, CCA among {len(s['gammas'])}, the others among none: with few "
        "validation images a choice among more is noisier, and what a choice on test data gains is of noise, too, and not only "
        "of looking at the test set."
    )
    yield (
        "Few seeds: an interval of three is 2.5 deviations to each side, so differences that are above zero in every seed may "
        "not be told apart, and of so many verdicts one in twenty would be told apart by chance. Groups of one block share "
        "networks."
    )
    yield (
        "Images that are measured, that choose and that judge are the same for all seeds: deviations are of networks and of "
        "what they learn from. ResNets are merged in pairs only."
    )
    yield "The maps of one layer are found from networks that are not aligned yet, as published."
