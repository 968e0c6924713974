"""The page: every number in it comes from the files of its folder."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.compatible_specialization.figures import figures
from experiments.compatible_specialization.findings import differences, findings, gains, in_short
from experiments.compatible_specialization.results import Results, read
from experiments.compatible_specialization.settings import (
    BASE,
    BOTH,
    CONTROLS,
    DOCUMENTED,
    EXPERTS,
    MERGED,
    PROSE,
    ROUTED,
    SOURCE,
    SWEPT,
    TUNED_BASE,
)
from experiments.compatible_specialization.similarity import MADE, READ
from experiments.compatible_specialization.texts import MOST
from experiments.differences import READING
from experiments.folder import made, write_result
from experiments.learning import told_further
from experiments.run import mean_and_deviation
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Two experts are fine-tuned from one small language model, the feed-forward networks alone, and merged for
targets that need both (Pari et al. 2024, "Collective Model Intelligence Requires Compatible Specialization", arXiv 2411.02207):
in weights, in the features of every block, by routers, at the outputs. The paper finds that experts grow apart while they
specialise, and that merging suffers from it. In its repository's own figures (GPT-2, mathematics written as code, experts of
1,000 and of 8,000 steps) the better expert has 2.000 and 2.031 nats, the best average of features 1.625 and 1.719, a router for
each layer 1.328 and 1.344: there averages lose with specialisation, and a router hardly."""

FIGURES = {
    "losses": "Loss on the targets against steps of fine-tuning, nothing learned",
    "learned": "Loss on the targets against steps of fine-tuning, learned on the target",
    "cka": "CKA of the two experts by block",
    "cost": "Loss against operations",
    "usage": "Weight of the second expert by block",
    "tokens": "Weight of the second expert by block and character",
    "shares": "Validation loss against the share of the second expert",
}


def write(folder: Path) -> None:
    """The page and the figures of a folder."""
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = ["# Compatible specialisation", "", INTRODUCTION, ""]
    lines += ["## In short", "", *(f"- {line}" for line in in_short(results)), ""]
    lines += [f"![{FIGURES['losses']}](losses.png)", ""]
    lines += ["## Expected, and what came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    for name in ("learned", "cka"):
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
    lines += ["## Cost", "", *_costs(results), "", _acting(results), "", f"![{FIGURES['cost']}](cost.png)", ""]
    lines += ["## Who is used where", "", "The weight of the second expert among a block's own two.", ""]
    lines += [line for name in ("usage", "tokens") if (folder / f"{name}.png").is_file()
              for line in (f"![{FIGURES[name]}]({name}.png)", "")]  # fmt: skip
    lines += ["## The experts at home", "", *_home(results), ""]
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


def _acting(results: Results) -> str:
    """How many of the numbers that merges learn change anything."""
    layers, width = results.settings["layers"], results.settings["width"]
    own = layers * (8 * width**2 + 5 * width)
    return (
        f"Means over targets and moments. Experts differ in their feed-forward networks alone, {own:,} numbers: coefficients "
        "of all else change nothing, of tensors, layers or parameters, while a control moves all weights."
    )


def _seconds(results: Results, way: str) -> str:
    return f"{results.mean('seconds', way):.1f}"


def _home(results: Results) -> list[str]:
    header = ("test loss, nats", *(f"{n} steps" for n in results.steps))
    rows = []
    for domain, name in itertools.product(EXPERTS, (BASE, *EXPERTS)):
        found = [list(results.at_home(domain, n, name).values()) for n in results.steps]
        if all(found):
            whose = name if name == BASE else f"expert for {name}"
            rows.append((f"{domain}: {whose}", *(mean_and_deviation(x) for x in found)))
    return markdown_table(header, rows)


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
        tuned = {(row["seed"], row["target"], row["way"] == TUNED_BASE or row["steps"], row["way"]): row for row in results.rows
                 if row["way"] in ways}  # fmt: skip
        counts = Counter(f"{row['rate']:g}" for row in tuned.values())
        if counts:
            yield f"Rates for {name}: " + ", ".join(f"{x} ({n})" for x, n in sorted(counts.items())) + "."


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s, characters = results.settings, summary["characters"]
    sizes = ", ".join(f"{name} {count:,}" for name, count in characters.items())
    plays = "half of it Tiny Shakespeare, half modules" if s["plays"] else "modules"
    yield (
        f"GPT-2 of {s['layers']} blocks, width {s['width']}, {s['heads']} heads, windows of {s['length']} characters of an "
        f"alphabet of 96. Text is Python's standard library, every text and each of its parts of other modules: {PROSE} alone "
        f"and code without docstrings and comments for the experts; for the targets both together, without comments "
        f"({DOCUMENTED}) and as they are ({SOURCE}, of each module the first {MOST:,} characters); for the base "
        f"{plays} with docstrings. Characters for training: {sizes}; a quarter of it at most for "
        "validation and for test each, windows spread over all of it."
    )
    yield (
        f"Base: Adam at {s['base_rate']:g}, falling along a cosine, {s['base_steps']:,} steps of {s['batch']} windows. Experts "
        f"({' and '.join(EXPERTS)}): feed-forward networks only, AdamW at a constant {s['expert_rate']:g}; "
        f"{s['checkpoints']} steps are moments of one "
        f"training. {BOTH}: the same from the base, for twice as many steps."
    )
    yield (
        f"Everything that is learned on a target: Adam, {s['learning_steps']} steps of {s['batch']} windows of its training "
        f"part, {len(s['router_rates'])} rates by validation loss{told_further(s['further'])}, the best of five moments "
        f"kept. Routers {s['router_rates']}, coefficients {s['merge_rates']}, all weights {s['weight_rates']}. The control is "
        "the average of the experts with all weights fine-tuned on the same windows; beside it the base, likewise."
    )
    yield (
        f"A router is a linear layer without bias on what a block reads, a softmax over its pool, from zero, trunk and experts "
        "frozen; the single router is that of the first block, whose weights all blocks use. A pool of k layers has the "
        "experts of a block and of those behind it, k in all, and where there are no more, of those in front. Feature "
        "averaging is the same with one share for all tokens of all blocks; shares of "
        f"{s['fractions']}, also of weights interpolated and of outputs averaged. SLERP has t = 0.5. What a block makes is "
        "what its feed-forward network adds to the stream."
    )
    yield (
        "Aligned pool (ours): for each block and expert the rotation that brings what it reads in its own network, behind the "
        "norm, onto what the average of features reads there, at training windows of the target (Procrustes, no labels); the "
        "expert's first and last layer take it in. For the last layer that supposes a norm with the same scale everywhere. The "
        "order of hidden units changes nothing of what a router mixes, so no permutation is tried."
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
    "An earlier run is not shown: its validation and test windows were of few modules, of which one was also learned from. The "
    "grids of rates were chosen by what its validation chose; they go on beyond their ends since seed 0 was first seen. A run "
    "of source with comments that had whole modules, of which one was half of validation, was seen and is replaced.",
    "Test windows are the same for every seed: deviations tell of networks, not of texts. Of so many comparisons of three "
    "seeds some are told apart by chance.",
    "Parts are divided by modules, of which a library has few: validation and test are of a handful each.",
    "Experts were trained for longer than the base, on text that is nearer to the targets: what a merge gains on the base is "
    "partly that, which one network that saw both domains for as many steps tells.",
    "Routers over several layers start as the mean of experts of which most belong to other layers, and learn for 100 steps "
    "where the published ones saw 160,000 sequences: what more layers bring is not settled by this.",
    "An expert may be worse on a target than the base, whose text has modules with docstrings, too: part of what a merge gains "
    "on the best expert is what fine-tuning had lost.",
    "CKA is decided by a few large directions and is no measure of the function.",
)
