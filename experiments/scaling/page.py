"""The page: every number in it comes from the files of its folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.claims import MARKING, table
from experiments.differences import READING
from experiments.folder import made, shown, write_result
from experiments.learning import told_further
from experiments.run import Preset
from experiments.scaling.figures import figures
from experiments.scaling.findings import claims, differences, findings
from experiments.scaling.laws import HELD, POWERS, laws
from experiments.scaling.results import TIMES, Results, read
from experiments.scaling.rows import LOOKS
from experiments.scaling.settings import (
    AVERAGE,
    CLOSED,
    CONTROL,
    CONTROLS,
    LEARNED,
    LEVELS,
    NONE,
    ONE,
    SHORT,
    SUCCESSIVE,
    Block,
)
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Two to 64 small networks are merged into one, in the ways there are for more than two: matched to the first,
to the others' mean, in a universe, or each to the average of those before it, averaged, by closed forms, and with coefficients
learned jointly or in successive pairs. The questions are how accuracy and cost go with the number of networks, where learned
coefficients stop being worth more than fine-tuning the average, and whether memory is what is predicted."""

FIGURES = {
    "alignments": "Accuracy of averages against the number of networks, by alignment",
    "closed": "Accuracy of closed forms",
    "learned": "Accuracy of what is learned, and of its controls",
    "gains": "What is learned beside the average fine-tuned with as many steps",
    "laws": "Test errors, and as lines the laws that hold",
    "cost": "CPU seconds of alignments and merges",
    "memory": "Memory of a step of learning, predicted and planned",
}


DIFFERENCES = (
    """Differences of test accuracy in points, mean and deviation over seeds; bold where they are told apart from zero."""
)


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# Scaling: from 2 to 64 networks", "", INTRODUCTION, ""]
    lines += ["## What papers claim", "", MARKING, "", *table(claims(results)), ""]
    lines += ["## What came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    lines += shown(folder, FIGURES)
    lines += ["## What is learned, beside its controls and beside what learns nothing", "", DIFFERENCES, ""]
    for block in results.blocks:
        lines += [*differences(results, block), ""]
    lines += ["## Laws", "", *_laws(results), ""]
    lines += ["## Tables", "", f"Test accuracy in percent, mean and deviation over seeds {results.seeds}.", ""]
    for block in results.blocks:
        lines += [f"### {block.name}", "", *_accuracies(results, block), "", *_costs(results, block), ""]
    lines += ["## What was chosen on validation data", "", *(f"- {line}" for line in _chosen(results)), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in _limits(results, summary["preset"])), ""]
    return "\n".join([*lines, made(summary, training_in_rows=True), ""])


def _ways(block: Block) -> list[tuple[str, str, str | None]]:
    """Label, method and alignment of every line of a table."""
    ways: list[tuple[str, str, str | None]] = [(method, method, None) for method in LEVELS]
    ways += [(f"{AVERAGE}, {alignment}", AVERAGE, alignment) for alignment in block.alignments]
    ways += [(method, method, None) for method in (*CLOSED, *LEARNED, *CONTROLS) if method != AVERAGE]
    ways += [(f"{SHORT}, each aligned to the merge so far", SHORT, SUCCESSIVE)]
    return [*ways, (f"{CONTROL}, of networks aligned so", CONTROL, SUCCESSIVE)]


def _accuracies(results: Results, block: Block) -> list[str]:
    header = ("test accuracy (%)", *(f"{n} networks" for n in block.counts))
    rows = [(label, *(results.cell(block, method, n, where) for n in block.counts)) for label, method, where in _ways(block)]
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _costs(results: Results, block: Block) -> list[str]:
    header = ("CPU seconds to align + to merge, medians", *(f"{n} networks" for n in block.counts))
    rows = []
    for label, method, where in _ways(block):
        cells = []
        for n in block.counts:
            aligning, merging = (results.median(block, method, n, where, column) for column in TIMES)
            cells.append("" if merging != merging else f"{aligning:.3f} + {merging:.3f}")
        rows.append((label, *cells))
    return markdown_table(header, [row for row in rows if any(row[1:])])


def _laws(results: Results) -> list[str]:
    header = ("block", "what", "of", "law", "networks", "R²", "foretold / measured", "unchanged / measured", "holds")
    rows = []
    for x in laws(results):
        law, limit = x.law, f"{x.law.limit:.3g} + " * (x.law.limit != 0)
        told = f"{limit}{law.scale:.3g} N^{law.power:.2f}{' *' * law.at_an_end}".replace("+ -", "- ")
        fit = f"{law.explained:.2f}", f"{law.foretold:.2f}", f"{law.unchanged:.2f}", "yes" if law.holds else ""
        rows.append((x.block.name, x.what, x.name, told, f"{law.low} to {law.high}", *fit))
    if not rows:
        return ["Fewer than four numbers of networks: no law is fitted."]
    words = (
        "Fitted to means over seeds (medians of times), in the range that is named and good for no other: of a test error "
        "limit + scale N^power by least squares, the limit not below zero, of seconds a power by least squares of logarithms, "
        "of bytes a line over more than two networks. R² is the share of the variance that a law explains, of logarithms for "
        "seconds. Foretold is the law fitted without the most networks, at these, divided by what was measured there; "
        f"unchanged is the value of the number before, divided by the same. A law is said to hold where R² is {HELD} or more "
        "and it foretells better than that nothing changes; the figure has no others. With * the power is at an end of its "
        f"range ({POWERS[0]:g} to {POWERS[-1]:g}): the law is another one."
    )
    return [words, "", *markdown_table(header, rows)]


def _chosen(results: Results) -> Iterator[str]:
    for method in (*CLOSED, *LEARNED, *CONTROLS):
        rows = [row for row in results.rows if row["method"] == method]
        rows = list({(row["seed"], row["block"], row["loss"]): row for row in rows}.values()) if method == ONE else rows
        chosen = Counter(str(row["chosen"] or (f"rate {row['rate']:g}" if row["rate"] != "" else "")) for row in rows)
        if any(chosen):
            yield f"{method}: " + ", ".join(f"{name} ({n})" for name, n in sorted(chosen.items())) + "."
    noted = [row for row in results.rows if row["notes"]]
    if noted:
        yield f"Closed forms with a note on how a system was solved: {len(noted)} rows, such as {noted[0]['notes'][0]}."


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s = results.settings
    tested = f"{s['tested']:,}" if s["tested"] else "all"
    yield (
        f"Data: {s['data']}, {summary['images']:,} training images, of which {s['labelled']} with labels are kept for "
        f"learning; {s['judged'] or 'all'} validation images choose, {tested} test images judge, read once for each row."
    )
    yield (
        f"Networks: perceptrons with hidden layers {s['hidden']}, Adam at {s['rate']:g}, {s['training_steps']} steps of "
        f"{s['batch']}, all of a group in one compiled run (`nm.fit_many`), taken after the last step."
    )
    for block in results.blocks:
        start = "one initialisation for each seed" if block.start == "one" else "initialisations of their own"
        data = "all images" if block.split == "same" else f"images divided among {max(block.counts)} ({block.split})"
        yield f"{block.name}: {start}, {data}; N networks are the first N. What is not about alignments is at: {block.home}."
    yield (
        f"Learning: Adam, the rate falling along a cosine, {s['steps']} steps of {s['batch']} from the labelled images; pairs "
        "as many in all (whole steps, one at least in a turn) or for each turn, with the control of as many. The loss on "
        f"validation data chooses among rates ({s['learned_rates']} for coefficients, {s['control_rates']} for weights"
        f"{told_further(s['further'])}) and among moments: after every step, where each turn has as many steps only "
        f"{LOOKS + 2} in each turn, and as many in all of the control; it chooses the best network, too."
    )
    yield (
        f"Closed forms: scales {s['scales']}{told_further(s['further'])}, divided by N where task vectors are summed; "
        f"off-diagonal elements of RegMean times one of {s['shrinks']}; RegMean and Fisher measure each network on "
        f"{s['measured']} images of its own, without labels; REPAIR on as many of all networks together, from each in turn."
    )
    yield (
        "CPU seconds are of all threads of the process: of an alignment after one that compiles it; of a "
        "closed form once compiled, its statistics not included; of what is learned the run of one rate, the cheapest of all "
        "rates, with its looks at validation data. Memory is that of one step: predicted from shapes, and as XLA plans it, not "
        "a peak that was measured."
    )


def _limits(results: Results, preset: str) -> Iterator[str]:
    if preset != Preset.paper:
        yield "Narrow perceptrons on digits: averages of wider networks lose less, and matching finds more in them."
    yield (
        "An earlier run with these seeds had been looked at, test accuracies too, when grids were widened, controls given more "
        "looks at validation data, the best network made the one that is fine-tuned alone, and REPAIR measured on images of "
        "all networks; networks are those of that run."
    )
    yield (
        "Learned rows, closed forms and their controls start from one alignment in each block, chosen beforehand, successive "
        "pairs from another one, too; a better alignment may leave less to learn."
    )
    yield "The base of task vectors is the untrained start: published ones are trained, and task vectors smaller beside them."
    yield "CPU seconds do not tell how well work is divided among cores; laws of them are of this machine and these sizes."
    curves = [
        list(results.curve(block, AVERAGE, alignment, "aligning").values())
        for block in results.blocks
        for alignment in block.alignments
        if alignment != NONE
    ]
    if falling := sum(any(np.diff(curve) < 0) for curve in curves):
        yield (
            f"In {falling} of {len(curves)} curves of the seconds of alignments more networks take less time than fewer: "
            "threads that wait beside other work of the machine are in them, and their laws are worth as much."
        )
    yield "Networks are divided among the most that are merged: with fewer of them, less of the data has been seen."
