"""The page of the experiment on strangers' networks: every number in it comes from the files of its folder."""

import json
from pathlib import Path
from typing import Any

from experiments.differences import READING
from experiments.folder import write_result
from experiments.strangers.alignments import ALIGNMENTS, MATCHING
from experiments.strangers.figures import figures
from experiments.strangers.findings import findings
from experiments.strangers.results import Results, read
from experiments.strangers.settings import AVERAGE, ENSEMBLE, PARENTS, PARTIAL, PLAIN, REPAIR, RESET
from experiments.strangers.ways import CONTROL, LEARNED, SOLVED, TAUGHT_SOLVED, WAYS
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Networks for CIFAR-10 that people who never met have trained and published, in one architecture and from other
seeds, by other programs: what does each way of merging make of them? The question is what a coefficient for each parameter,
learned, is worth beside its control, the same average with all weights fine-tuned on the same images, and what beats both."""


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    found, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    first, *others = found
    main = found[first]
    lines = ["# Strangers' networks", "", INTRODUCTION, ""]
    if not summary["complete"]:
        lines += ["**The run is not at its end**: other seeds, ways and networks of the preset are still to come.", ""]
    lines += [f"## {first}", "", "![Accuracy against images, and loss along paths](accuracy.png)", ""]
    lines += [*_levels(main), "", *_learned(main), "", *_sizes({first: main}), "", *_alignments(main), ""]
    if others:
        lines += ["## Other networks", "", *_sizes({name: found[name] for name in others}), "", *_others(found, others), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(settings, main)), ""]
    lines += ["## Expected, and what came out", "", *(f"- {line}" for line in findings(main, settings["tuned"])), ""]
    seconds = sum(row["seconds"] for results in found.values() for row in results.rows)
    return "\n".join([*lines, f"`{summary['command']}`, {seconds:,.0f} s for all rows, {summary['machine']}.", ""])


# -------------------------------------------------------------------------------------------------------------- the tables


def _levels(main: Results) -> list[str]:
    each = main.of(PARENTS)[0]["each"]
    parents = ", ".join(f"{100 * value:.1f}" for value in each)
    return [f"Parents {parents} %, ensemble of their logits {main.cell(ENSEMBLE)} %, average as it is {main.cell(_plain())} %."]


def _plain() -> str:
    return f"{PLAIN}: {AVERAGE}"


def _learned(main: Results) -> list[str]:
    counts = main.images(list(WAYS))
    header = ("test accuracy (%)", *(f"{count:,} images" for count in counts), "rate")
    rows = [
        (name, *(main.cell(name, count) for count in counts), _rates(main, name))
        for name in sorted(WAYS, key=lambda name: not WAYS[name].labels)
        if main.of(name)
    ]
    return [*markdown_table(header, rows), "", f"Mean and deviation over seeds {main.seeds}."]


def _rates(results: Results, name: str) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted({row["rate"] for row in results.of(name)}))


def _sizes(found: dict[str, Results]) -> list[str]:
    sizes = sorted({row["size"] for results in found.values() for row in results.of(PARTIAL)})
    header = ("PLeaS, no labels: test accuracy (%)", *(f"{size:g}x" for size in sizes))
    return markdown_table(header, [(name, *(r.cell(PARTIAL, size=size) for size in sizes)) for name, r in found.items()])


def _alignments(main: Results) -> list[str]:
    kinds = (AVERAGE, RESET, REPAIR)
    names = [name for name in (PLAIN, *ALIGNMENTS) if main.of(f"{name}: {AVERAGE}")]
    rows = [(name, *(main.cell(f"{name}: {kind}") for kind in kinds)) for name in names]
    return markdown_table(("alignment: test accuracy (%)", *kinds), rows)


def _others(found: dict[str, Results], names: list[str]) -> list[str]:
    every = (PARENTS, ENSEMBLE, _plain(), f"{MATCHING}: {RESET}", LEARNED, CONTROL, SOLVED, TAUGHT_SOLVED)
    methods = [m for m in every if any(found[name].of(m) for name in names)]
    header = ("test accuracy (%)", *names)
    count = {name: max(found[name].images(list(WAYS)), default=None) for name in names}
    return markdown_table(
        header, [(m, *(found[name].cell(m, count[name] if m in WAYS else None) for name in names)) for m in methods]
    )


# --------------------------------------------------------------------------------------------------------------- the words


def _protocol(settings: dict[str, Any], main: Results) -> list[str]:
    tested = "all 10,000 test images" if settings["limit"] is None else f"{settings['limit']} test images"
    return [
        f"Data: {settings['data']}, scaled as the networks were trained with; {tested}. The parents were trained on all 50,000 "
        "training images by their owners, these among them: validation images are images that they have seen.",
        "A row with k images sees those alone, for learning, validation (a tenth of them, at most 1,000), alignment, least "
        f"squares and statistics of BatchNorm (at most {settings['measured']:,} of them, without labels). They are stratified "
        "by class, and those of a smaller k are among those of a larger. Rows that learn nothing see "
        f"{settings['measured']:,}.",
        f"Learning: Adam, {settings['steps']} steps of {settings['batch']}, the rate falling along a cosine, random flips and "
        "crops, BatchNorm in training mode; the best of five moments on validation data is kept, then statistics are "
        "re-estimated. Controls have the same images, steps and number of rates.",
        "Rates: the best of three on validation data, chosen in the first row of a way for all of them, that is in the first "
        f"seed with the first networks and {settings['tuned']:,} images where it is tried with so many: of "
        f"{WAYS[LEARNED].rates} for coefficients, of {WAYS[CONTROL].rates} for weights of averages, of {WAYS[SOLVED].rates} "
        "for those of better starts. Nothing else is tuned.",
        "Without labels: the parents' mean prediction at temperature 2 for the image as it is takes the place of the label. "
        "The parents know these images: what they predict is nearly the label.",
        "PLeaS: activation matching, sequential least squares; its size is a number of operations in multiples of a network.",
        "Seeds differ in which images are drawn, their order and their changes; the networks are what they are.",
        READING.replace("\n", " "),
    ]
