"""The page: every number in it comes from the files of its folder."""

import json
from collections.abc import Iterator
from pathlib import Path

from experiments.differences import READING
from experiments.folder import write_result
from experiments.landscape.figures import figures, pictures
from experiments.landscape.findings import findings
from experiments.landscape.results import Results, by_images, number, percent, read
from experiments.landscape.rows import JUDGED, PAIRS, picture
from experiments.landscape.settings import CONTROL, INSIDE, LEARNED, LINES, PERMUTATIONS, PLAIN, UNALIGNED, A, B
from experiments.learning import told_further
from experiments.problem import Training, told
from npmerge.reports.tables import markdown_table

INTRODUCTION = """What does merging do inside? Two networks and what is made of them, before and after their units are matched:
the loss on lines and planes through them, the images that matched units answer to in parents, permuted average and learned
merge (after "Understanding Permutation Based Model Merging with Feature Visualizations", UniReps at NeurIPS 2024, which
could not be read beyond its abstract: nothing here is said to be its finding), and how similar their layers are, with what such
a similarity does not say."""


PICTURES = """A row of a picture is a unit of A and what it is matched with, r the correlation with the matched unit of B.
First the real image that A's unit answers to most, of those that are compared, then the image that was found for the unit in
each network. Below each image stands what the unit of that network answers to it, in its deviations on real images. Fine checks
are what weak regularisation leaves."""


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# What merging does inside", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    lines += ["## The networks", "", *_networks(results), ""]
    lines += ["## Loss on lines and planes", "", "![Lines between the parents](lines.png)", "", *_lines(results), ""]
    lines += ["![Planes through parents and merge](planes.png)", "", "## What units answer to", ""]
    lines += [PICTURES, ""]
    for node in pictures(folder):
        lines += [f"`{node}`, seed {results.seeds[0]}:", "", f"![Images of units]({picture(results.seeds[0], node)})", ""]
    lines += [*_units(results), "", "## Similarity by layer", "", "![CKA by layer](similarity.png)", "", *_similarity(results)]
    lines += ["", "## What similarity does not say", "", *_caveats(results), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(results)), ""]
    return "\n".join([*lines, f"`{summary['command']}`, {summary['seconds']:,.0f} s, {summary['machine']}.", ""])


# -------------------------------------------------------------------------------------------------------------- the tables


def _networks(results: Results) -> list[str]:
    names = JUDGED
    rows = [(name, percent(results.accuracies(name)), number(results.accuracies(name, "loss"))) for name in names]
    said = f"{_pairs(results)}. Mean and deviation over seeds {results.seeds}."
    return [*markdown_table(("", "test accuracy (%)", "loss (nats)"), rows), "", said]


def _pairs(results: Results) -> str:
    """A and B, seed by seed where they differ."""
    told = {seed: f"A is {a}, B {b}" for seed, (a, b) in results.names().items()}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"seed {seed}: {words}" for seed, words in told.items())


def _lines(results: Results) -> list[str]:
    header = ("alignment", "barrier (nats)", "loss in the middle", "accuracy in the middle (%)", "loss at the end")
    rows = []
    for name in LINES:
        if results.barriers(name):
            losses, accuracies = (results.middle(name, column) for column in ("loss", "accuracy"))
            barrier = number(results.barriers(name)) if name in (UNALIGNED, *PERMUTATIONS) else "ends at no parent"
            end = number(results.along(name, lambda row: row["loss"][-1]))
            rows.append((name, barrier, number(losses), percent(accuracies), end))
    return markdown_table(header, rows)


def _units(results: Results) -> list[str]:
    layers, lines = results.visualised(), []
    for parent in (A, B):
        header = (f"answer to {parent}'s images (% of its own)", *layers)
        rows = [
            (name + words, *(percent(by_images(results, name, node, of=parent, column=column)) for node in layers))
            for name in INSIDE
            for column, words in (("others", ""), ("chance", ": other units"))
            if (name, column) != (parent, "others")
        ]
        lines += [*markdown_table(header, rows), ""]
    reached = [
        (name, *(number(results.of_units(name, lambda row: row["reached"], node)) for node in layers)) for name in INSIDE
    ]
    best = [("best real image, for A", *(number(results.of_units(A, lambda row: row["best_real"], node)) for node in layers))]
    return [*lines, *markdown_table(("answer to their own images (deviations)", *layers), reached + best)]


def _similarity(results: Results) -> list[str]:
    pairs = [pair for pair in PAIRS if results.alike(*pair)]
    header = ("unbiased CKA, mean over seeds", *(f"{one} and {other}" for one, other in pairs))
    rows = []
    for depth, node in enumerate(results.layers(), 1):
        rows.append((f"{depth}: {node}", *(number(results.alike(*pair, node)).split(" ")[0] for pair in pairs)))
    return markdown_table(header, [*rows, ("all layers", *(number(results.alike(*pair)) for pair in pairs))])


def _caveats(results: Results) -> list[str]:
    columns = ("CKA before", "after", "biased CKA before", "after", "accuracy before (%)", "after (%)", "logits")
    header = ("moved by (deviations)", *columns)
    rows = []
    for what, distance in dict.fromkeys((row["what"], row["distance"]) for row in results.caveats):
        found = [row for row in results.caveats if (row["what"], row["distance"]) == (what, distance)]
        by_seed = {name: {row["seed"]: row[name] for row in found} for name in found[0]}
        cells = (*(number(by_seed[name]) for name in ("cka_before", "cka", "biased_before", "biased")),)
        cells += tuple(percent(by_seed[name]) for name in ("accuracy_before", "accuracy"))
        rows.append((f"{what}: {distance:g}", *cells, f"{max(by_seed['change'].values()):.1g}"))
    return [*markdown_table(header, rows), "", 'Under "logits": the largest change of one, as a fraction of the largest.']


# --------------------------------------------------------------------------------------------------------------- the words


def _protocol(results: Results) -> Iterator[str]:
    s, ascent = results.settings, results.settings["ascent"]
    parents = (
        "published by their owners, probably of the epoch of highest test accuracy, inputs scaled as for their training"
        if s["pairs"]
        else f"trained here on the same images in other orders: {told(Training(**s['task']['training']))}"
    )
    yield (
        f"Data: {s['data']}. Parents: {parents}. Merges see {s['images']:,} training images, a tenth of them, at most 1,000, "
        f"for validation, all of which the parents have seen; {s['measured']:,} of the others, without their labels, are for "
        "alignments and statistics of BatchNorm. Seeds differ in the parents, in which images those are, in their order, and "
        "in all noise."
    )
    yield (
        f"B in the units of A by activation matching. {LEARNED}: a coefficient for each parameter, from one half, by Adam, "
        f"{s['steps']} steps of {s['batch']} labelled images, flipped and cropped, rates {s['merge_rates']}; the control "
        f"fine-tunes all weights of the same average on the same batches, rates {s['control_rates']}; the best on validation "
        f"data{told_further(s['further'])}: {_rates(results)}. {_few(s['tested'])} test images judge. Parents are judged with "
        "the statistics of BatchNorm that they came with, everything else with re-estimated ones, on lines the parents, too."
    )
    yield (
        f"Lines: {s['points']} points, {s['judged']:,} test images, statistics re-estimated at each point. Planes: through A, "
        f"B and the learned merge, {s['side']} x {s['side']} points, {s['sliced']:,} test images, BatchNorm on the statistics "
        "of each batch; axes are lengths in the space of weights."
    )
    yield (
        "Layers are groups of units that one permutation moves, in the order in which they are computed: of a ResNet the "
        "channels inside each block, and those of the stream of residuals, seen behind the last block that adds to them and "
        "named by the first layer that writes them (channels that a stage adds are a group of their own). Units: of some "
        "layers those that are evenly spaced by the correlation with their match. An image maximises a unit's mean over "
        "positions, behind the ReLU, in deviations of the unit over images and positions (nothing is centred), by Adam, "
        f"{ascent['steps']} steps at {ascent['rate']:g}, from noise of deviation {ascent['noise']:g} that all networks share, "
        f"less {ascent['variation']:g} times the total variation and {ascent['decay']:g} times the mean square of pixels; it "
        f"is shifted by up to {ascent['jitter']} pixels in each step. Shares are ratios of means over units, so loud units "
        f'weigh more. "Other units": what the network\'s other units of the picture answer to the same images. The {PLAIN} is '
        "asked for the unit that has a half of the parent's. Images are shown from their darkest value to their brightest."
    )
    yield (
        f"Similarity: unbiased CKA (Song et al. 2012; Nguyen et al. 2021) over {s['compared']:,} test images in batches of "
        "250, every position of an image a sample; neighbouring positions are not independent, which no estimate corrects. "
        "Features that are moved are those that the last layer reads, an image a sample, along a direction that it does not "
        "read: their CKA belongs beside no layer's."
    )


def _limits(results: Results) -> Iterator[str]:
    yield (
        "One architecture and three networks: the pairs of different seeds share one network, so seeds are not independent."
        if results.settings["pairs"]
        else "Small networks on small images, which show that the experiment runs and little else."
    )
    yield (
        "Images of units depend on their regularisation and start; numbers are beside them because impressions of pictures are "
        "not evidence. A plane shows three networks and no other direction."
    )


def _rates(results: Results) -> str:
    """What was chosen, seed by seed."""
    told = (f"{name} {', '.join(f'{x:g}' for x in results.accuracies(name, 'rate').values())}" for name in (LEARNED, CONTROL))
    return "; ".join(told)


def _few(count: int | None) -> str:
    return "All" if count is None else f"{count:,}"
