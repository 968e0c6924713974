"""What a learned merge says: `report.md`, `report.html`, `history.json` and figures, the same bytes for the same merge."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.reports import charts
from npmerge.reports.folder import PAGES, write_page
from npmerge.reports.intervals import Interval, wilson
from npmerge.reports.judgements import BEST, examples_of, most_accurate
from npmerge.reports.numbers import nats, plural
from npmerge.reports.page import Figure, Headline, Page, Section, Table, Warnings, section
from npmerge.reports.tables import json_text

UNFIT = "The labels are not of what the networks predict, one for each prediction: no accuracy can be told."
FILES = (*PAGES, "history.json", "accuracy.png", "loss.png", "shares.png", "coefficients.png")
INTERVALS = "Intervals are of 95 %, Wilson's."
START, RESULT = "start", "learned"
"""What networks are called that did not go into the merge."""

History = Mapping[str, Any]


def write_pages(folder: Path, history: History) -> None:
    """Write all files of a learned merge into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json_text(history)
    (folder / "history.json").write_text(text + "\n", encoding="utf-8")
    write_page(folder, page(json.loads(text)))


def page(history: History) -> Page:
    """The report of a learned merge alone, from the content of its `history.json`."""
    return Page("A learned merge", (measured(history), learned(history)), lead(history), headlines(history))


def lead(history: History) -> str:
    """What learning did, in a sentence."""
    asked, models = history["asked"], history["shares"]["models"]
    return f"{plural(len(models), 'model')} from {asked['method']} on: {ended(history)}"


def headlines(history: History) -> tuple[Headline, ...]:
    """The result in numbers; none where no accuracy could be told."""
    rows = history["evaluation"]["networks"]
    if not rows:
        return _objective_headline(history)
    start, result = rows[START], rows[RESULT]
    best = most_accurate({name: x["accuracy"] for name, x in rows.items() if name not in (START, RESULT)})
    on = f"of {examples_of(history['evaluation'])}"
    found = _accuracy(history, result)
    return (
        Headline(
            "Accuracy, start → learned",
            f"{100 * start['accuracy']:.1f} → {100 * result['accuracy']:.1f} %",
            _between(found, on),
        ),
        Headline("Loss, start → learned", f"{_nats(start['loss'])} → {_nats(result['loss'])}", "cross entropy in nats, " + on),
        Headline(BEST.removeprefix("the ").capitalize(), f"{100 * rows[best]['accuracy']:.1f} %", best),
    )


def _objective_headline(history: History) -> tuple[Headline, ...]:
    judged = history["evaluation"].get("objective")
    if not judged:
        return ()
    value = f"{_nats(judged[START])} → {_nats(judged[RESULT])}"
    return (Headline("Objective, start → learned", value, "on what is held out"),)


def _between(found: Interval | None, on: str) -> str:
    return on if found is None else f"learned {100 * found.low:.1f} to {100 * found.high:.1f} %, {on}"


def measured(history: History) -> Section:
    """How good the models, the start and the result are."""
    found = history["evaluation"]
    rows = found["networks"]
    if not rows:
        return section(
            "Evaluation",
            UNFIT if found["labelled"] else "The examples have no labels: no accuracy can be told.",
            *_objectives(found),
        )
    parts: list[Any] = [f"{measured_on(history)} {INTERVALS if not found['sequences'] else ''}".strip(), chosen(history)]
    parts.append(_statistics(history))
    if not found["sequences"]:
        parts.append(_accuracy_figure(history))
    parts += [_accuracies(history, rows), better(rows)]
    return section("Evaluation", *parts, *by_task(history))


def by_task(history: History) -> list[str | Table]:
    """The same of each task, where there are several."""
    tasks = history["evaluation"].get("tasks", {})
    return [part for task, rows in tasks.items() for part in (f"On {task}:", _accuracies(history, rows))]


def _accuracy_figure(history: History) -> Figure:
    rows = {
        name: wilson(row["accuracy"] * row["examples"], row["examples"])
        for name, row in history["evaluation"]["networks"].items()
    }
    words = f"Accuracy with its 95 % interval of {plural(len(rows), 'network')}; {_said(rows)}."
    return Figure(
        "accuracy", "Accuracy of every network", words, partial(charts.ranges, rows, "accuracy (%)", RESULT, percent=True)
    )


def _said(rows: Mapping[str, Interval]) -> str:
    return ", ".join(f"{name} {100 * x.value:.1f} %" for name, x in rows.items())


def _accuracy(history: History, row: Mapping[str, Any]) -> Interval | None:
    """With its interval, unless predictions are those of tokens that stand in one text."""
    return None if history["evaluation"]["sequences"] else wilson(row["accuracy"] * row["examples"], row["examples"])


def _accuracies(history: History, rows: Mapping[str, Any]) -> Table:
    intervals = {name: _accuracy(history, row) for name, row in rows.items()}
    cells = [
        (name, f"{x['accuracy']:.4f}", *([f"{i.low:.4f} to {i.high:.4f}"] if (i := intervals[name]) else []), _nats(x["loss"]))
        for name, x in rows.items()
    ]
    with_interval = () if history["evaluation"]["sequences"] else ("95 % interval",)
    return Table(("network", "accuracy", *with_interval, "loss (nats)"), tuple(cells))


def _objectives(found: Mapping[str, Any]) -> list[Any]:
    """What is minimised, of each network on what is held out, and which of them the result does not reach."""
    judged = found.get("objective")
    if not judged:
        return []
    rows = tuple((name, _nats(value)) for name, value in judged.items())
    return ["On what is held out:", Table(("network", "objective"), rows), _lower(judged)]


def _lower(judged: Mapping[str, float | None]) -> str:
    least = _number(judged[RESULT])
    lower = [name for name, value in judged.items() if _number(value) < least]
    return f"Lower than what was learned: {', '.join(lower)}." if lower else ""


def better(rows: Mapping[str, Any]) -> str:
    """What the result does not reach, if anything."""
    found = [name for name, x in rows.items() if x["accuracy"] > rows[RESULT]["accuracy"]]
    return f"More accurate than what was learned: {', '.join(found)}." if found else ""


def _statistics(history: History) -> str:
    """Why the held-out objective is not the loss of the same network, where there is BatchNorm."""
    if not history["asked"]["batch_statistics"]:
        return ""
    return (
        "Accuracy and loss of start and result are with running statistics, estimated from what was learned from; the "
        "held-out objective of the fit is with the statistics of each batch, and differs from that loss."
    )


def measured_on(history: History) -> str:
    """On how many examples, and which."""
    found = history["evaluation"]
    return f"Measured on {examples_of(found)} of {found['examples']}."


def chosen(history: History) -> str:
    """That the result was chosen by what it is measured on, where there was more than one to choose from."""
    looks = len(history["held_out_loss"])
    if not history["evaluation"]["held_out"] or looks < 2:
        return ""
    return (
        f"The best theta was chosen on these same examples, of {looks} that were judged: the result may look better on them "
        "than on others. Take other examples for a test."
    )


def learned(history: History) -> Section:
    """What was learned, and the way there."""
    asked = history["asked"]
    how = f"From {asked['method']} on: {asked['granularity']}, {asked['constraint']}, {asked['objective']}. "
    how += (
        f"{plural(asked['steps'], 'step')} of {asked['batch_size']} of {_examples(asked['examples'])}, seed {asked['seed']}; "
    )
    fixed = asked["tensors"]
    part = (
        f"Learned: {fixed['learned']} of {fixed['all']} tensors; the others are merged by {asked['method']}." if fixed else ""
    )
    return section(
        "What was learned",
        how + ended(history),
        part,
        Warnings((*history["warnings"], *history["repeated"])),
        *_figures(history),
        _table(history),
    )


def _figures(history: History) -> list[Figure]:
    shares, counts = history["shares"], history["coefficients"]
    models, values = shares["models"], np.array(list(shares["modules"].values()))
    loss, held = ([_number(x) for x in history[key]] for key in ("loss", "held_out_loss"))
    mean = ", ".join(f"{name} {x:.3f}" for name, x in zip(models, values.mean(0), strict=True))
    found = [
        Figure(
            "shares",
            "What each model contributes by depth",
            f"Mean coefficient of each model in {plural(len(values), 'module')}, inputs first; over all modules: {mean}.",
            partial(charts.depth_map, values, list(shares["modules"]), models, "mean coefficient"),
        ),
        Figure(
            "coefficients",
            "All coefficients",
            f"How many coefficients of each model have which value, {counts['edges'][0]:.3g} to {counts['edges'][-1]:.3g}.",
            partial(charts.histogram, counts["edges"], dict(zip(models, counts["counts"], strict=True))),
        ),
    ]
    went, draw = ended(history), partial(charts.losses, loss, history["held_out_step"], held)
    curve = Figure("loss", "The objective while learning", f"{went[0].upper()}{went[1:]}", draw)
    return [found[0], curve, found[1]]


def _table(history: History) -> Table:
    shares, theirs = history["shares"], history["shares"]["in_files"]
    rows = [
        (name, *([theirs.get(name, "")] if theirs else []), *(f"{v:.4f}" for v in values))
        for name, values in shares["modules"].items()
    ]
    head = ("module", *(("in the files",) if theirs else ()), *shares["models"])
    return Table(head, tuple(rows), "Mean coefficient of each model, from the inputs to the outputs")


def told(history: History) -> list[str]:
    """What the terminal shows."""
    rows = history["evaluation"]["networks"]
    lines = [f"{name}: accuracy {x['accuracy']:.4f}, loss {nats(x['loss'])}" for name, x in rows.items()]
    said = [measured_on(history), *filter(None, [_statistics(history), better(rows)])] if rows else []
    if judged := history["evaluation"].get("objective"):
        lines = [f"{name}: objective {nats(value)}" for name, value in judged.items()]
        said = ["Measured on what is held out.", *filter(None, [_lower(judged)])]
    warned = [f"warning: {x}" for x in history["warnings"]]
    return [f"learned: {ended(history)}", *lines, *said, *warned]


def ended(history: History) -> str:
    """How the fit went."""
    losses, status = history["loss"], history["status"]
    held, steps = [_number(x) for x in history["held_out_loss"]], history["held_out_step"]
    said = f"{status} after {plural(len(losses), 'step')}"
    if not losses:
        return "no steps were taken: the result is the start."
    if status == "diverged":
        said = f"diverged: the loss of step {len(losses)} or its gradient is not finite, and the last good theta is kept"
    if status == "diverged" and not held:
        return f"{said}."
    if not held:
        if len(losses) > 1:
            said += f"; loss of the batch {losses[0]:.4g} in the first step, {losses[-1]:.4g} in the last"
        return f"{said}; without held-out examples the last theta is kept, not the best."
    best = int(np.nanargmin(held)) if np.isfinite(held).any() else 0
    if not best:
        return f"{said}; held-out objective {nats(held[0])} at the start, and never below it: the result is the start."
    return f"{said}; held-out objective {nats(held[0])} at the start, {nats(held[best])} at its best, after step {steps[best]}."


def _examples(counts: Sequence[tuple[str, int]]) -> str:
    found = [f"the {count:,} examples of {name}" for name, count in counts]
    return found[0] if len(found) == 1 else f"each of {', '.join(found)}"


def _number(value: float | None) -> float:
    """JSON has null for what is not finite."""
    return math.nan if value is None else value


def _nats(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else nats(value)
