"""What the report of a merge says: a page from the content of `report.json`, and of `history.json` where it has learned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from npmerge.commands import report_figures as figures
from npmerge.commands.plan_page import BESIDES
from npmerge.commands.report_headlines import RESULT, headlines, lead
from npmerge.commands.report_judged import interval
from npmerge.learning import page as learning
from npmerge.reports.intervals import Interval
from npmerge.reports.judgements import counted as examples
from npmerge.reports.numbers import counted, duration, nats, plural, size
from npmerge.reports.page import Listing, Page, Points, Section, Table, Warnings, code, filled, section

TITLES = {
    "evaluation": "Accuracy and loss",
    "alignment": "Alignment",
    "paths": "Loss between the models",
    "contributions": "What each model contributes",
    "nearness": "How near the result is to each model",
    "pairs": "How the models agree",
    "statistics": "Statistics of BatchNorm",
    "control": "The control, the average fine-tuned on the same data for as many steps",
    "cost": "Time and memory of the merge",
}

EARLIER = "Measured when the report was first made: what it takes is not there any more."

Content = Mapping[str, Any]


def page(content: Content, history: Mapping[str, Any] | None) -> Page:
    """The report of a merge."""
    merge = content["merge"]
    sections = (
        section("", Warnings(tuple(content["warnings"]))),
        _evaluation(content, history),
        _contributions(content, history),
        _nearness(content),
        _pairs(content),
        _alignment(content),
        _paths(content),
        _statistics(content),
        _merged(content),
        _cost(content),
        _left_out(content),
        _again(content),
    )
    versions = ", ".join(f"{name} {version}" for name, version in merge["versions"].items() if version)
    foot = f"Merged with {versions}; report of npmerge {content['npmerge']}."
    return Page(merge["name"], filled(*sections), lead(content), headlines(content, history), foot)


def told(content: Content) -> list[str]:
    """What the terminal shows."""
    found = [f"{x.label}: {x.value}{f' ({x.note})' if x.note else ''}" for x in headlines(content, None)]
    return [*found, *_missing(content), *(f"warning: {x}" for x in content["warnings"])]


def _evaluation(content: Content, history: Mapping[str, Any] | None) -> Section:
    found = content["evaluation"]
    if found is None:
        return section("") if history is None else learning.measured(history)
    rows = found["rows"]
    tokens = found["predictions"] > found["examples"]
    on = examples(found["examples"], found["predictions"], "held-out" * found["held_out"])
    how = "1.96 standard errors over the examples" if tokens else "Wilson's of accuracies, 1.96 standard errors of losses"
    words = (
        f"Measured on {on} of {found['data']}{'; each example counts once' * tokens}. Intervals are of 95 %: {how}. "
        "The gain is that of the merged network over each other one on the same examples."
    )
    better = [name for name, row in rows.items() if row["accuracy"]["value"] > rows[RESULT]["accuracy"]["value"]]
    tasks = () if history is None else learning.by_task(history)
    return section(
        "Evaluation",
        words,
        learning.chosen(history) if history is not None and found["held_out"] else "",
        Warnings(_trained(found)),
        _estimated(found),
        _earlier(content, "evaluation"),
        figures.accuracy(rows, RESULT),
        _accuracies(rows),
        f"More accurate than the result: {', '.join(better)}." if better else "",
        *tasks,
    )


def _trained(found: Content) -> tuple[str, ...]:
    count, lines = found["learned_from"], []
    if count:
        lines.append(f"{count:,} of these examples are among those that coefficients were learned from")
    if found["aligned_by"]:
        lines.append("these are the examples that the models were aligned by: keep others for a test")
    return tuple(lines)


def _estimated(found: Content) -> str:
    if not found["statistics"]:
        return ""
    return "Statistics of BatchNorm of the averages are re-estimated; those of models and result are as they are stored."


def _accuracies(rows: Content) -> Table:
    cells = []
    for name, row in rows.items():
        accuracy, loss = interval(row["accuracy"]), interval(row["loss"])
        gain = interval(row["gain"]) if "gain" in row else None
        gained = "" if gain is None else f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        cells.append((name, *_with(accuracy, "{:.4f}"), *_with(loss, None), gained))
    head = ("network", "accuracy", "95 % interval", "loss (nats)", "95 % interval", "gain of the result (points)")
    return Table(head, tuple(cells))


def _with(found: Interval, form: str | None) -> tuple[str, str]:
    value, low, high = (nats(x) if form is None else form.format(x) for x in found)
    return value, f"{low} to {high}" if math.isfinite(found.high) else "-"


def _contributions(content: Content, history: Mapping[str, Any] | None) -> Section:
    if history is not None:
        return learning.learned(history)
    found = content["contributions"]
    if found is None:
        return section("")
    explained = found.get("explained", {})
    rows = tuple(
        (name, *("-" if x is None else f"{x:.4f}" for x in values), *([f"{100 * explained[name]:.1f} %"] if explained else []))
        for name, values in found["modules"].items()
    )
    table = Table(("layer", *found["models"], *(["explained"] if explained else [])), rows, "Coefficients by layer")
    return section(
        TITLES["contributions"], _how(content), _earlier(content, "contributions"), figures.contributions(found), table
    )


def _how(content: Content) -> str:
    """Whose coefficients they are."""
    method, explained = content["merge"]["method"], content["contributions"].get("explained")
    if not explained:
        return "By what each model, or its difference from the base, is multiplied, as the recipe has it."
    least = min(explained, key=lambda x: explained[x])
    return (
        f"{method} decides from the values. These are the coefficients that explain the result best, by least squares in each "
        f"layer: as a sum of the models, or of their differences from the base. Least is explained in {least}: "
        f"{100 * explained[least]:.1f} % of the squared norm."
    )


def _nearness(content: Content) -> Section:
    found = content["nearness"]
    if found is None:
        return section("")
    rows = found["rows"]
    words = f"Distance is |x - merged| / |merged|{_aligned(content)}."
    title = "Distance of each model from the result by depth"
    label = "distance, as a fraction of the norm of the result"
    figure = figures.by_depth("nearness", title, rows, "distance", label)
    left = found["not_compared"]
    which = f"{', '.join(left[:3])}{f' and {len(left) - 3} more' if len(left) > 3 else ''}"
    lacking = f"Not compared, since no tensor of each model is merged there: {which}." if left else ""
    return section(TITLES["nearness"], words, lacking, _earlier(content, "nearness"), figure, *_tables(rows))


def _aligned(content: Content) -> str:
    return ", of the models as they are aligned" if content["merge"]["aligned_by"] else ""


def _pairs(content: Content) -> Section:
    found = content["pairs"]
    if found is None:
        return section("")
    rows, base = found["rows"], found["base"]
    left = f"{plural(found['left_out'], 'pair')} of models are not shown." if found["left_out"] else ""
    if base is None:
        words = (
            f"Cosine of the weights{_aligned(content)}; distance is |second - first| / |first|. To compare differences from a "
            "common base, name it with `--base`."
        )
        drawn = [figures.by_depth("agreement", "Cosine of the models by depth", rows, "cosine", "cosine of the weights")]
    else:
        words = f"Deltas are differences from {base}{_aligned(content)}. Signs conflict where both changed an entry contrarily."
        drawn = [
            figures.by_depth("agreement", "Cosine of the deltas by depth", rows, "task_cosine", "cosine of the deltas"),
            figures.by_depth(
                "conflict", "Conflict of signs by depth", rows, "sign_conflict", "fraction of entries in conflict"
            ),
        ]
    return section(TITLES["pairs"], words, left, _earlier(content, "pairs"), *drawn, *_tables(rows))


MEASURES = {"distance": "distance", "cosine": "cosine", "task_cosine": "cosine of deltas", "sign_conflict": "conflict of signs"}


def _tables(rows: Sequence[Content]) -> list[Table]:
    """The whole at once, the layers folded."""
    shown = [m for m in MEASURES if rows[0]["whole"][m] is not None]
    head = [MEASURES[m] for m in shown]
    whole = Table(
        ("models" if len(rows[0]["models"]) > 1 else "model", *head),
        tuple((" and ".join(row["models"]), *(_shown(row["whole"][m]) for m in shown)) for row in rows),
    )
    layers = [
        (" and ".join(row["models"]), layer, *(_shown(of[m]) for m in shown))
        for row in rows
        for layer, of in row["layers"].items()
    ]
    by_layer = Table((whole.header[0], "layer", *head), tuple(layers), "By layer")
    return [whole, by_layer]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"


def _alignment(content: Content) -> Section:
    found = content["alignment"]
    if found is None:
        return section("")
    from npmerge.commands import align_page  # imports JAX

    networks = found["networks"]
    on = f" Correlation and loss are measured on {_examples(found)}{_anew(content)}." if found["data"] else ""
    words = (
        f"By {found['method']}, to the units of {found['reference']}; before -> after. A random element of every node's group "
        f"moves the outputs by {found['verify']:.1e} of the largest: below 1e-5 the traced graph is right.{on}"
    )
    table = Table(align_page.HEADER, tuple(align_page.cells_of(x) for x in networks))
    return section(TITLES["alignment"], words, _earlier(content, "alignment"), table, *align_page.figures(networks))


def _anew(content: Content) -> str:
    """What is done at every network of a path, where there is BatchNorm."""
    return ", statistics of BatchNorm re-estimated from them for every network" if content["statistics"] else ""


def _examples(found: Content) -> str:
    return f"{plural(found['examples'], 'example')} of {found['data']}"


def _paths(content: Content) -> Section:
    found = content["paths"]
    if found is None:
        return section("")
    rows = tuple((x["file"], f"{x['barrier']:.4g}", f"{max(x['path']['loss']):.4g}") for x in found["networks"])
    table = Table((f"from {found['reference']} to", "barrier (nats)", "highest loss"), rows)
    words = (
        f"On {_examples(found)}{_anew(content)}. The barrier is the most that the loss rises above the line between its ends."
    )
    return section(TITLES["paths"], words, _earlier(content, "paths"), figures.paths(found), table)


def _statistics(content: Content) -> Section:
    found = content["statistics"]
    if found is None or not found["layers"]:
        return section("")
    rows = tuple((name, f"{x['shift']:.3f}", f"{x['ratio']:.3f}") for name, x in found["layers"].items())
    table = Table(("layer", "shift of the mean (deviations)", "ratio of variances"), rows, "By layer")
    words = (
        f"Running statistics re-estimated from {found['data']}, against the average of those of the models. Ratios below 1 are "
        "variance that averaging of weights has taken away."
    )
    return section(TITLES["statistics"], words, _earlier(content, "statistics"), figures.statistics(found["layers"]), table)


def _merged(content: Content) -> Section:
    merge = content["merge"]
    head = ("model", "role", "tensors", "parameters", "size")
    models = [
        (x["name"], x["role"], f"{x['tensors']:,}", counted(x["parameters"]), size(x["bytes"])) if "role" in x else (x["name"],)
        for x in merge["models"]
    ]
    table = Table(head if len(models[0]) > 1 else head[:1], tuple(models))
    made = {"copied" if how == "copied" else f"by {how}": count for how, count in (merge["steps"] or {}).items()}
    steps = ", ".join(f"{plural(count, 'tensor')} {how}" for how, count in made.items())
    words = (
        f"{plural(merge['tensors'], 'tensor')} of {counted(merge['parameters'])} parameters, {size(merge['bytes'])}"
        f"{f': {steps}' if steps else ''}. Seed {merge['seed']}{', the conventions of mergekit' * merge['mergekit_semantics']}."
    )
    files = tuple((x["path"], code(x["hash"].removeprefix("blake3:")[:16]), x["state"]) for x in merge["inputs"])
    inputs = Table(("file", "BLAKE3", "now"), files, "Files that it was made from") if files else None
    return section("What was merged", table, words, inputs, Listing(merge["recipe"], "yaml", "The recipe"))


def _cost(content: Content) -> Section:
    found = content["cost"]
    if found is None:
        return section("")
    predicted = found.get("predicted") or {}
    besides = BESIDES if predicted.get("aligned") else ""
    rows = (
        ("time", duration(found["seconds"]), f"{duration(predicted['seconds'])}{besides}" if predicted.get("seconds") else "-"),
        ("memory at most", size(found["memory"]), size(predicted["memory"]) if predicted.get("memory") else "-"),
        ("read", size(found["read"]), "-"),
        ("written", size(found["written"]), "-"),
    )
    words = f"On {plural(found['threads'], 'thread')} and the device {found['device']}, this report not counted."
    return section("What it took", words, Table(("", "taken", "predicted"), rows))


def _missing(content: Content) -> list[str]:
    """A line for each reason for which something is left out."""
    reasons: dict[str, list[str]] = {}
    for name, why in content["left_out"].items():
        reasons.setdefault(why, []).append(TITLES[name])
    return [f"{'; '.join(names)}: {why}." for why, names in reasons.items()]


def _left_out(content: Content) -> Section:
    return section("Not in this report", Points(tuple(_missing(content))))


def _again(content: Content) -> Section:
    return section(
        "How to do it again",
        "The same tensors, byte for byte, from the same inputs; then this report:",
        Listing(f"{content['merge']['again']}\n{content['command']}", "sh"),
    )


def _earlier(content: Content, name: str) -> str:
    return EARLIER if name in content["earlier"] else ""
