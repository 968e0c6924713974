"""The page: every number in it comes from the files of its folder."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.differences import READING
from experiments.folder import write_result
from experiments.run import mean_and_deviation
from experiments.universal_features.browsable import browsable
from experiments.universal_features.figures import figures
from experiments.universal_features.findings import findings
from experiments.universal_features.results import Results, number, percent, read
from experiments.universal_features.settings import AGAIN, MERGES, NETWORKS, TEXTS
from npmerge.reports.tables import markdown_table

INTRODUCTION = """A one-layer language model of English and Python is fine-tuned to plays and to Lua, and the two are merged
(Horn and Elliott 2025, "Tracking Universal Features Through Fine-Tuning and Model Merging", arXiv 2410.12391). Sparse
autoencoders find features of each network's feed-forward units. Which of them persist, emerge and disappear on the way, and
does a merge that is learned keep more of what its parents have than SLERP? What another autoencoder of the same network would
not find again either is measured beside it. [The features and their contexts](features.html)."""


def write(folder: Path) -> None:
    """The pages and the figures of a folder."""
    (folder / "features.html").write_text(browsable(read(folder)), encoding="utf-8")
    write_result(folder, figures(folder), page)


def page(folder: Path) -> str:
    """The result as a page."""
    results, summary = read(folder), json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    seconds, seeds = summary["seconds"], results.seeds
    lines = ["# Features through fine-tuning and merging", "", INTRODUCTION, ""]
    lines += ["## Expected, and what came out", "", READING, "", *(f"- {line}" for line in findings(results)), ""]
    lines += ["![Flows of features](flows.png)", "", FLOWS, ""]
    lines += ["## Where features go", "", f"Mean and deviation over seeds {seeds}.", "", *_flows(results), ""]
    lines += ["## Where a merge's features come from", "", *_origins(results), ""]
    lines += [
        "## The networks",
        "",
        "Test loss in nats per character.",
        "",
        *_networks(results),
        "",
        "![SLERP over t](slerp.png)",
    ]
    lines += ["", "## The autoencoders", "", *_dictionaries(results), ""]
    lines += ["## Protocol", "", *(f"- {line}" for line in _protocol(results, summary)), ""]
    lines += ["## Limits", "", *(f"- {line}" for line in LIMITS), ""]
    made = f"{seconds['parents']:,.0f} s to train networks and autoencoders, {seconds['rows']:,.0f} s for the rows with them"
    return "\n".join([*lines, f"`{summary['command']}`, {made}, {summary['machine']}.", ""])


FLOWS = """Grey bands are features of the base that persist, blue and orange ones those of a fine-tune that persist in the
merge. Of a merge's bar green has a feature in both parents, blue or orange in one of them, dark grey in the base alone, light
grey in none. Heights are shares of each network's features, means over seeds."""


def _flows(results: Results) -> list[str]:
    header = ("from, to", "persist (%)", "mutual best (%)", "disappear (%)", "emerge (% of the second)", "best correlation")
    rows = []
    for parent, child in dict.fromkeys((row["parent"], row["child"]) for row in results.flows):
        kept, mutual = (results.kept(parent, child, column) for column in ("persist", "mutual"))
        gone, new = results.kept(parent, child, "disappear"), results.emerged(parent, child)
        best = [row["correlation"] for row in results.flows if (row["parent"], row["child"]) == (parent, child)]
        name = f"control: {parent}, two autoencoders" if child.endswith(AGAIN) else f"{parent}, {child}"
        rows.append((name, *map(percent, (kept, mutual, gone, new)), mean_and_deviation(best)))
    return markdown_table(header, rows)


def _origins(results: Results) -> list[str]:
    header = (
        "% of features",
        "in both parents",
        "plays only",
        "Lua only",
        "base only",
        "none",
        "parents' kept",
        "new ones kept",
    )
    columns = ("both", "plays", "lua", "base", "neither")
    rows = []
    for name in (merge for merge in MERGES if results.own(merge)):
        shares = (*(results.origin(name, column) for column in columns), results.of_parents(name), results.own(name))
        rows.append((name, *map(percent, shares)))
    return markdown_table(header, rows)


def _networks(results: Results) -> list[str]:
    header = ("", *TEXTS, "plays and Lua", "chosen", "rates", "learned")
    rows = []
    for name in (network for network in NETWORKS if results.losses(network)):
        found = [row for row in results.rows if row["network"] == name]
        chosen = ", ".join(sorted({row["chosen"] for row in found} - {""}))
        rates = ", ".join(sorted({f"{row['rate']:g}" for row in found if row["rate"] != ""}))
        learned = f"{found[0]['learned']:,}" if found and found[0]["learned"] else ""
        cells = (number(results.losses(name, column)) for column in (*TEXTS, "both"))
        rows.append((name, *cells, chosen, rates, learned))
    return markdown_table(header, rows)


def _dictionaries(results: Results) -> list[str]:
    header = ("autoencoder of", "L0", "variance explained (%)", "loss recovered (%)", "active features", "dead (%)", "loss",
              "reconstructed", "ablated")  # fmt: skip
    rows = []
    for name in dict.fromkeys(row["network"] for row in results.dictionaries):
        found = [row for row in results.dictionaries if row["network"] == name]
        of = {column: {row["seed"]: row[column] for row in found} for column in found[0] if column not in ("seed", "network")}
        recovered = {seed: x for seed, x in of["recovered"].items() if x != ""}
        dead = {row["seed"]: row["dead"] / row["features"] for row in found}
        alive = f"{np.mean([row['alive'] for row in found]):,.0f} of {found[0]['features']:,}"
        losses = (number(of[column]) for column in ("loss", "reconstructed", "ablated"))
        rows.append((name, number(of["l0"]), percent(of["explained"]), percent(recovered), alive, percent(dead), *losses))
    return markdown_table(header, rows)


def _protocol(results: Results, summary: Mapping[str, Any]) -> Iterator[str]:
    s, a = results.settings, results.settings["autoencoder"]
    sizes = ", ".join(f"{name} {count:,}" for name, count in summary["characters"].items())
    packaged = " Here other modules of Python stand for plays and Lua." if s["packaged"] else ""
    yield (
        f"One block as Mistral's: width {s['width']}, {s['hidden']} gated units, {s['heads']} heads that share {s['kv_heads']} "
        f"keys and values, RMSNorm, rotary positions, untied head; windows of {s['length']} characters of an alphabet of 96."
    )
    yield (
        "English is the docstrings of Python's standard library, Python other modules of it without docstrings and comments, "
        f"plays Tiny Shakespeare, Lua Debian's packages.{packaged} Characters for training: {sizes}; validation "
        "and test are of other files (of the plays the last tenth), windows spread over all of them."
    )
    yield (
        f"Base: Adam at {s['base_rate']:g}, {s['base_steps']:,} steps of {s['batch']} windows, half of each "
        f"text. Each fine-tune: Adam at {s['tuned_rate']:g}, {s['tuned_steps']:,} steps each; rates "
        "fall to zero along a cosine, as they do in all that is learned here."
    )
    yield (
        f"SLERP from the fine-tune to Lua to that to plays, t = {s['t']:g} as published; task arithmetic and TIES with a scale "
        f"of {s['scales']} by validation loss on both; NP Merge from the average and its control, the average with all weights "
        f"fine-tuned: Adam, {s['learning_steps']} steps of {s['batch']} windows of both, rates {s['merge_rates']} and "
        f"{s['weight_rates']} by validation loss."
    )
    yield (
        f"Autoencoders: {a['expansion']} features for each unit, L1 {a['l1']:g}, units scaled to a mean squared norm of their "
        f"number, Adam at {a['rate']:g}, {a['chunks'] * (a['steps'] // a['chunks']):,} steps of {a['batch']:,} tokens from "
        f"{a['tokens']:,}, decoder rows of length one. {a['chunks'] - 1} times features that were dead in a part of the "
        "training start anew where the "
        "reconstruction is bad. All see the same mixture of all four texts, so that what is missing is missing in the network; "
        "the paper trained each on its own network's text. The defaults of expansion and L1 were chosen before this run, with "
        "a base of 500 steps, by how much of the loss is recovered and how far two autoencoders of the base agree."
    )
    yield (
        f"Loss recovered: how much of what it costs to ablate all units their reconstruction gets back. Two features are the "
        f"same where their activations at the same {s['compared']:,} test tokens, a quarter of each text, correlate by "
        f"{s['threshold']:g} or more (Pearson); features active fewer than {s['fires']} times are left out. Mutual best: each "
        "is the other's best."
    )
    yield (
        "Every autoencoder has a seed of its own, for its start and its batches. Control: two of one network. What does not "
        "persist there is lost by the autoencoders, not by the networks."
    )


LIMITS = (
    "One layer, characters in the place of words, a few hundred features: what they stand for is spelling and syntax.",
    "Autoencoders of one network disagree, as the control says: shares of persisting features are to be read against it.",
    "Rates for coefficients and weights are half a decade above those of a first run, in which validation chose the highest in "
    "every seed; what that run found had been seen.",
    "SLERP is as published, with nothing chosen; scales, rates and the moments of what learns are chosen on validation data: "
    "differences of losses are partly that. Few features are taken for less than half of them, which the paper does not say.",
    "Only the base, SLERP and NP Merge have a second autoencoder: what the others keep stands beside no ceiling of their own.",
    "Test windows are the same for every seed: deviations tell of networks and autoencoders, not of texts.",
    "The paper's counts of features are not published, so none stands beside these.",
)
