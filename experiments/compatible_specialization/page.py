"""The page: every number in it comes from the files of its folder."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.compatible_specialization.figures import figures
from experiments.compatible_specialization.findings import differences, findings, gains
from experiments.compatible_specialization.results import Results, read
from experiments.compatible_specialization.settings import BASE, CONTROLS, EXPERTS, MERGED, PROSE, ROUTED, SWEPT
from experiments.compatible_specialization.similarity import MADE, READ
from experiments.differences import READING
from experiments.folder import made, write_result
from experiments.run import mean_and_deviation
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Two experts are fine-tuned from one small language model, the feed-forward networks alone, and merged for
targets that need both (Pari et al. 2024, "Collective Model Intelligence Requires Compatible Specialization", arXiv 2411.02207):
in weights, in the features of every block, by routers, at the outputs. The paper finds that experts grow apart while they
specialise, that the gain of merging shrinks, and that routers over several layers do not bring it back."""

FIGURES = {
    "losses": "Loss on the targets against steps of fine-tuning",
    "cka": "CKA of the two experts by block",
    "cost": "Loss against operations",
    "shares": "Validation loss against the share of the second expert",
}


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# Compatible specialisation", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    for name in ("losses", "cka"):
        lines += [f"![{FIGURES[name]}]({name}.png)", ""]
    lines += [
        "## Gains of routing",
        "",
        *gains(results),
        "",
        "## Differences",
        "",
        *differences(results),
        "",
        "## Test loss",
        "",
    ]
    lines += [f"Nats per character, mean and deviation over seeds {results.seeds}.", ""]
    for target in results.targets:
        lines += [f"### {target}", "", *_losses(results, target), ""]
    lines += ["## Cost", "", *_costs(results), "", f"![{FIGURES['cost']}](cost.png)", ""]
    lines += ["## CKA of the experts", "", *_cka(results), "", "## What was chosen on validation data", ""]
    lines += [*(f"- {line}" for line in _chosen(results)), ""]
    lines += [f"![{FIGURES['shares']}](shares.png)", ""] if results.sweeps else []
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in LIMITS), ""]
    return "\n".join([*lines, made(summary, training_in_rows=False), ""])


def _losses(results: Results, target: str) -> list[str]:
    header = ("", *(f"{n} steps" for n in results.steps))
    rows = [(way, *(results.cell(target, n, way) for n in results.steps)) for way in results.ways]
    return markdown_table(header, rows)


def _costs(results: Results) -> list[str]:
    header = ("", "parameters", "learned on the target", "operations for a character", "beside one network", "seconds")
    one = results.mean("flops", BASE)
    rows = []
    for way in results.ways:
        flops, parameters = results.mean("flops", way), results.mean("parameters", way)
        learned = f"{results.mean('learned', way):,.0f}"
        rows.append((way, f"{parameters:,.0f}", learned, f"{flops:,.0f}", f"{flops / one:.2f}", _seconds(results, way)))
    return markdown_table(header, rows)


def _seconds(results: Results, way: str) -> str:
    return f"{results.mean('seconds', way):.1f}"


def _cka(results: Results) -> list[str]:
    header = ("", *(f"{n} steps" for n in results.steps))
    rows = []
    for target in results.targets:
        for place in (READ, MADE):
            for block in sorted({row["block"] for row in results.cka}):
                found = [list(results.alike(target, n, place, block).values()) for n in results.steps]
                rows.append((f"{target}: {place}, block {block + 1}", *(mean_and_deviation(x) for x in found)))
    return markdown_table(header, rows)


def _chosen(results: Results) -> Iterator[str]:
    for way in SWEPT:
        counts = Counter(f"{row['chosen']:g}" for row in results.rows if row["way"] == way)
        if counts:
            yield f"Share of the second expert, {way}: " + ", ".join(f"{x} ({n})" for x, n in sorted(counts.items())) + "."
    for name, ways in (("routers", ROUTED), ("coefficients", MERGED), ("all weights", CONTROLS)):
        counts = Counter(f"{row['rate']:g}" for row in results.rows if row["way"] in ways)
        if counts:
            yield f"Rates for {name}: " + ", ".join(f"{x} ({n})" for x, n in sorted(counts.items())) + "."


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s, characters = results.settings, summary["characters"]
    sizes = ", ".join(f"{name} {count:,}" for name, count in characters.items())
    plays = "half of it Tiny Shakespeare, half modules" if s["plays"] else "modules"
    yield (
        f"GPT-2 of {s['layers']} blocks, width {s['width']}, {s['heads']} heads, windows of {s['length']} characters of an "
        f"alphabet of 96. Text is Python's standard library, every text of other modules: {PROSE} alone and code without "
        f"docstrings and comments for the experts; for the targets both together, without and with comments; for the base "
        f"{plays} with docstrings. Characters for training: {sizes}; as much as a ninth of it for validation and test."
    )
    yield (
        f"Base: Adam at {s['base_rate']:g}, falling along a cosine, {s['base_steps']:,} steps of {s['batch']} windows. Experts "
        f"({' and '.join(EXPERTS)}): feed-forward networks only, AdamW at a constant {s['expert_rate']:g}; "
        f"{s['checkpoints']} steps are moments of one "
        "training."
    )
    yield (
        f"Everything that is learned on a target: Adam, {s['learning_steps']} steps of {s['batch']} windows of its training "
        f"part, {len(s['router_rates'])} rates by validation loss, the best of five moments kept. Routers {s['router_rates']}, "
        f"coefficients {s['merge_rates']}, all weights {s['weight_rates']}. The control is the average of the experts with all "
        "weights fine-tuned on the same windows; beside it the base, likewise."
    )
    yield (
        f"A router is a linear layer without bias on what a block reads, a softmax over its pool, from zero, trunk and experts "
        f"frozen. Feature averaging is the same with one share for all tokens of all blocks; shares of {s['fractions']}."
    )
    yield (
        "Aligned pool (ours): for each block and expert the rotation that brings its own stream onto the one that the average "
        "of features reads, at training windows of the target (Procrustes, no labels); the expert's first and last layer take "
        "it in. The order of hidden units changes nothing of what a router mixes, so no permutation is tried."
    )
    yield (
        f"{s['judged']} windows of validation data choose, {s['tested']} of test data judge. CKA is the unbiased minibatch "
        "estimate (Nguyen et al. 2021) over test windows, tokens as samples; operations are those that XLA counts."
    )


LIMITS = (
    "One network of a few hundred thousand parameters, characters in the place of words, minutes of training: experts are far "
    "less specialised than GPT-2 after thousands of steps, and the published losses do not belong beside these.",
    "Routers have more parameters and operations than merges of weights, as the table of costs says; the paper's reviewers "
    "asked for that, too.",
    "Rates for coefficients and weights are half a decade above those of a first run of two seeds, in which validation chose "
    "the highest nearly always; losses of that run had been seen, those on test windows among them.",
    "CKA is decided by a few large directions and is no measure of the function.",
)
