"""The page and the figure of `experiments.closed_forms`: every number in them comes from the rows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import npmerge as nm
from experiments.closed_forms_settings import (
    BASE,
    CLOSED,
    CONTROL,
    LEARNED,
    MULTI,
    OWN,
    PER_TASK,
    REFERENCES,
    TUNED,
    UNMERGED,
    Settings,
)
from experiments.grids import way_of
from experiments.run import Rows, machine, mean_and_deviation
from experiments.tasks import Tasks
from npmerge.reports.drawing import new_figure
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Three fine-tunes of one base are merged by every method of `npmerge.METHODS`, each with the hyper-parameters
that validation data choose from its published grid. From each of these closed forms its coefficients are learned further, from
one per model to one per parameter; beside them stand all weights of the same merged network, fine-tuned on the same images with
as many steps and rates to choose from. The plain average fine-tuned is the control of every learned merge."""


def page(rows: Rows, command: str, settings: Settings, tasks: Tasks, seconds: float) -> str:
    """The result as a page: every number in it comes from the rows."""
    seeds = sorted({row["seed"] for row in rows.all})
    errors = sorted({f"`{row['method']}`, {row['stage']}: {row['error']}" for row in rows.all if row["error"]})
    said = sorted({text for row in rows.all if row["stage"] == CLOSED for text in row["said"]})
    return "\n".join([
        "# Every closed form of three fine-tunes, and what learning from it adds", "", INTRODUCTION, "",
        "![Accuracy of each method, closed form and learned](methods.png)", "",
        "## References", "", *_references(rows, tasks), "",
        "## Closed forms", "", *_closed_forms(rows, tasks), "",
        "Statistics and merge are operations, `+` where a part runs in host code that counts nothing; kept are the bytes of "
        "statistics and of the merge's own parameters, peak memory is the most held at once, what goes in included; seconds "
        "are those of statistics and one merge, compilation not included. `tried` merges were judged to choose the "
        "hyper-parameters, shown as chosen for the first seed.", "",
        f"## What {settings.learning_steps} steps of learning add", "", *_learned(rows, settings), "",
        "Test accuracy after learning, in brackets what it adds to the closed form, in points. A dash: the granularity cannot "
        f"represent the start, or the method is no choice of coefficients. The control is `{CONTROL[0]}`, {TUNED}.", "",
        *(["## Published learned merges", "", *_published(rows, settings, tasks), ""] if settings.published else []),
        *(["## What could not be done", "", *(f"- {line}" for line in errors), ""] if errors else []),
        *(["## What methods warned of", "", *(f"- {line}" for line in said), ""] if said else []),
        f"Means and deviations over seeds {seeds}.", "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings, tasks)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows, settings)), "",
        f"`{command}`, {seconds:.0f} s for the rows of all seeds, {machine()}.", "",
    ])  # fmt: skip


def _values(rows: Rows, method: str, stage: str, column: str = "accuracy") -> list[float]:
    """A column over the seeds; empty where there is no such row."""
    found = [row for row in rows.all if (row["method"], row["stage"]) == (method, stage) and not row["error"]]
    return [row[column] for row in sorted(found, key=lambda row: row["seed"])]


def _mean(rows: Rows, method: str, stage: str, column: str = "accuracy") -> float:
    return float(np.mean(_values(rows, method, stage, column)))


def _methods(rows: Rows) -> list[str]:
    """Those with a closed form, the most accurate first."""
    names = dict.fromkeys(row["method"] for row in rows.all if row["stage"] == CLOSED and not row["error"])
    return sorted(names, key=lambda name: -_mean(rows, name, CLOSED))


def _measured(rows: Rows, method: str, stage: str, tasks: Tasks) -> list[str]:
    columns = ("accuracy", "loss", *(task.name for task in tasks.each))
    return [mean_and_deviation(_values(rows, method, stage, column)) for column in columns]


def _references(rows: Rows, tasks: Tasks) -> list[str]:
    header = ("", "test accuracy", "test loss", *(task.name for task in tasks.each))
    return markdown_table(header, [(name, *_measured(rows, name, "", tasks)) for name in REFERENCES])


def _closed_forms(rows: Rows, tasks: Tasks) -> list[str]:
    tasked = [task.name for task in tasks.each]
    costs = ("statistics", "merge", "kept", "peak memory", "seconds")
    header = ("method", "test accuracy", "test loss", *tasked, "chosen", "tried", *costs)
    table = []
    for name in _methods(rows):
        for stage in (CLOSED, PER_TASK):
            if _values(rows, name, stage):
                label = f"`{name}`" + (f", {stage}" if stage == PER_TASK else "")
                table.append((label, *_measured(rows, name, stage, tasks), *_costs(rows, name, stage)))
    return markdown_table(header, table)


def _costs(rows: Rows, name: str, stage: str) -> tuple[str, ...]:
    first = next(r for r in rows.all if (r["method"], r["stage"]) == (name, stage))
    chosen = ", ".join(f"{field} {_short(value)}" for field, value in first["chosen"])
    if stage == PER_TASK:
        return chosen, str(first["tried"]), "", "", "", "", ""
    statistics = f"{first['statistics_flops']:.1e}" if first["statistics_flops"] else "-"
    seconds = _mean(rows, name, stage, "merge_seconds")
    return (
        chosen,
        str(first["tried"]),
        statistics,
        f"{first['merge_flops']:.1e}{'+' if first['uncounted'] else ''}",
        _kilo(first["bytes"]),
        _kilo(first["peak_bytes"]),
        f"{seconds:.1g}",
    )


def _short(value: Any) -> str:
    return (
        "/".join(map(_short, value)) if isinstance(value, list | tuple) else f"{value:g}" if _is_number(value) else str(value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kilo(size: float) -> str:
    return f"{size / 1e3:.0f} kB" if size < 1e6 else f"{size / 1e6:.1f} MB"


def _learned(rows: Rows, settings: Settings) -> list[str]:
    stages = (*settings.granularities, TUNED)

    def cell(name: str, stage: str) -> str:
        found, start = _values(rows, name, stage), _values(rows, name, CLOSED)
        return f"{np.mean(found):.3f} ({100 * (np.mean(found) - np.mean(start)):+.1f})" if found else "-"

    table = [(f"`{n}`", f"{_mean(rows, n, CLOSED):.3f}", *(cell(n, stage) for stage in stages)) for n in _methods(rows)]
    return markdown_table(("start", CLOSED, *stages), table)


def _published(rows: Rows, settings: Settings, tasks: Tasks) -> list[str]:
    header = ("", "test accuracy", "test loss", *(task.name for task in tasks.each), "rate", "steps")
    able = [name for name in settings.published if _values(rows, name, LEARNED)]
    chosen = {n: [_span(_values(rows, n, LEARNED, column)) for column in ("rate", "kept")] for n in able}
    return markdown_table(header, [(name, *_measured(rows, name, LEARNED, tasks), *chosen[name]) for name in able])


def _span(values: Sequence[float]) -> str:
    return " / ".join(f"{x:g}" for x in sorted(set(values)))


def _protocol(s: Settings, tasks: Tasks) -> list[str]:
    parts = ", ".join(f"{t.name} ({' / '.join(str(len(part.labels)) for part in t[1:])})" for t in tasks.each)
    digits = tasks.name == "digits"
    network = f"perceptron with hidden layers of {s.hidden}" if digits else f"ResNet-{6 * s.blocks + 2} of width {s.width}"
    return [
        f"Data: {tasks.name}; tasks, with images for fine-tuning / learning from a merge / selection / test: {parts}. "
        + ("Digits are turned by 90 degrees; an image is in one part only, upright and turned. " if digits else "")
        + "The test part is the same for all seeds, the others are cut anew. Test accuracy is over the images of all tasks.",
        f"Network: {network}; base: {s.base_steps} steps of Adam at {s.training_rate:g} with batches of {s.batch} on "
        f"{len(tasks.base.labels)} images "
        + ("of all tasks that are in no other part" if digits else "of photographs, which no task has")
        + f"; fine-tunes: {s.task_steps} steps each. All classes share one head."
        + " Sizes and steps were chosen in a pilot of seed 0, by the accuracies of five methods." * digits,
        "Statistics: of each model on the images for learning of its own task, one pass for all methods.",
        "Every choice (hyper-parameters, rates, the step to stop at) is by the loss on the selection images of all tasks, from "
        "which nothing is learned. Hyper-parameters: the published grid of `npmerge methods`, all values of those that have "
        "few, and values of ours (`experiments/grids.py`) where papers search without saying where; one after another, twice.",
        "Methods of two models merge the first two, then what came of it and the third, each with an equal share; "
        "`Passthrough` is the one model that validation chooses.",
        f"Learning: {s.learning_steps} steps of Adam with batches of {s.batch} of the images for learning and their labels, "
        f"coefficients free of constraints at rates {s.learned_rates}, all weights at rates {s.control_rates}; judged every 25 "
        "steps, the start included.",
        "Published learned merges have the same images, steps and rates, and objectives of their own: AdaMerging the entropy "
        "of predictions, DAM distillation, both without labels. Each rate stops where its objective is lowest on the selection "
        "images, whose labels choose between the rates. "
        * bool(s.published)
        + "Running statistics of BatchNorm are re-estimated from the images for learning. " * (not digits)
        + "The test images are read once for each row.",
    ]


def _findings(rows: Rows, settings: Settings) -> list[str]:
    """What was expected, written beforehand, and what the rows say."""
    names = _methods(rows)
    closed = {name: _mean(rows, name, CLOSED) for name in names}
    average, base = closed["Average"], _mean(rows, BASE, "")
    with_data = [name for name in names if any(_values(rows, name, CLOSED, "statistics_flops"))]
    best = names[0]
    return [
        f"Expected: methods that see data lead, as in Tam et al. 2024. Found: `{best}` leads with {closed[best]:.3f} (average "
        f"{average:.3f}, base {base:.3f}, each fine-tune on its own task {_mean(rows, OWN, ''):.3f}, multi-task "
        f"{_mean(rows, MULTI, ''):.3f}); places of methods with statistics, of {len(names)}: "
        f"{', '.join(f'`{n}` {names.index(n) + 1}' for n in with_data) or 'none'}; "
        f"{sum(closed[n] > average for n in names)} beat the average, in every seed "
        f"{sum(_always_above(rows, (n, CLOSED), ('Average', CLOSED)) for n in names)}; {sum(closed[n] < base for n in names)} "
        "are below the base.",
        "Expected: published grids were made for other networks, so that some choices sit at their ends. Found there in the "
        f"first seed: {', '.join(_at_ends(rows, names)) or 'none'}.",
        "Expected: learning adds more the finer the coefficients. Found, in points over the closed form, mean over the methods "
        f"that the granularity can represent: {', '.join(_gains(rows, names, (*settings.granularities, TUNED)))}.",
        "Expected: the control, whose weights are free, is at least as good as learned merges. Found: "
        + _against(rows, names, settings),
        f"Expected: after learning the start hardly matters. Found: accuracies of closed forms spread over "
        f"{_spread(rows, names, CLOSED)} (standard deviation over methods), "
        + ", ".join(f"{_spread(rows, names, stage)} after {stage}" for stage in (settings.granularities[-1], TUNED)) + ".",
        f"Expected: costs span two orders of magnitude (Tam et al. 2024). Found: {_cost_range(rows, names)}.",
    ]  # fmt: skip


def _always_above(rows: Rows, a: tuple[str, str], b: tuple[str, str]) -> bool:
    return all(x > y for x, y in zip(_values(rows, *a), _values(rows, *b), strict=True))


def _at_ends(rows: Rows, names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        grids = way_of(getattr(nm, name), 3, {"score": float}).grids
        for field, value in next(r["chosen"] for r in rows.all if (r["method"], r["stage"]) == (name, CLOSED)):
            values = [v for v in grids.get(field, ()) if _is_number(v)]
            if len(values) > 2 and field != "model" and value in (min(values), max(values)):
                found.append(f"`{name}` {field} {value:g}")
    return found


def _gains(rows: Rows, names: Sequence[str], stages: Sequence[str]) -> list[str]:
    found = []
    for stage in stages:
        gains = [_mean(rows, n, stage) - _mean(rows, n, CLOSED) for n in names if _values(rows, n, stage)]
        found += [f"{stage} {100 * np.mean(gains):+.1f} ({len(gains)} methods)"] if gains else []
    return found


def _against(rows: Rows, names: Sequence[str], settings: Settings) -> str:
    """Learned merges beside the average fine-tuned, and beside their own start fine-tuned."""
    control, finest = _mean(rows, *CONTROL), settings.granularities[-1]
    able = [n for n in names if _values(rows, n, finest)]
    learned = {(n, g): _mean(rows, n, g) for n in names for g in settings.granularities if _values(rows, n, g)}
    (best, granularity), accuracy = max(learned.items(), key=lambda item: item[1])
    better = sum(_always_above(rows, key, CONTROL) for key in learned)
    own = [_mean(rows, n, finest) - _mean(rows, n, TUNED) for n in able]
    tuned = max(names, key=lambda n: _mean(rows, n, TUNED))
    return (
        f"the fine-tuned average has {control:.3f} (the base, fine-tuned alike, {_mean(rows, UNMERGED, ''):.3f}); of "
        f"{len(learned)} learned merges "
        f"{sum(a > control for a in learned.values())} are above it, {better} in every seed; the best is `{best}` with "
        f"{granularity}, {accuracy:.3f}. {finest} against all weights from the same start: {100 * np.mean(own):+.1f} points on "
        f"average, above in {sum(x > 0 for x in own)} of {len(own)} methods. The best start to fine-tune is `{tuned}` with "
        f"{_mean(rows, tuned, TUNED):.3f}."
    )


def _spread(rows: Rows, names: Sequence[str], stage: str) -> str:
    return f"{100 * np.std([_mean(rows, n, stage) for n in names if _values(rows, n, stage)]):.1f} points"


def _cost_range(rows: Rows, names: Sequence[str]) -> str:
    flops = {n: _mean(rows, n, CLOSED, "merge_flops") + _mean(rows, n, CLOSED, "statistics_flops") for n in names}
    counted = {n: x for n, x in flops.items() if x > 0 and not any(_values(rows, n, CLOSED, "uncounted"))}
    if not counted:
        return "nothing was counted"
    low, high = min(counted, key=counted.__getitem__), max(counted, key=counted.__getitem__)
    return (
        f"from {counted[low]:.1e} operations (`{low}`) to {counted[high]:.1e} (`{high}`), "
        f"{math.log10(counted[high] / counted[low]):.1f} orders of magnitude, of {len(counted)} methods counted in full"
    )


def figure(rows: Rows, settings: Settings) -> Any:
    """Accuracy of each method in closed form, after learning and after fine-tuning; and of closed forms against operations."""
    names = _methods(rows)[::-1]
    drawing, axes = new_figure(2)
    drawing.set_size_inches(14, 2 + 0.3 * len(names))
    for stage, marker in zip((CLOSED, *settings.granularities, TUNED), "osv^Dx", strict=False):
        places = [(k, n) for k, n in enumerate(names) if _values(rows, n, stage)]
        axes[0].plot([_mean(rows, n, stage) for _, n in places], [k for k, _ in places], marker, label=stage, markersize=5)
    for (name, stage), style in {CONTROL: "--", (BASE, ""): ":", (MULTI, ""): "-."}.items():
        label = "control: average fine-tuned" if (name, stage) == CONTROL else name
        axes[0].axvline(_mean(rows, name, stage), color="black", linestyle=style, linewidth=1, label=label)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_xlabel("test accuracy over all tasks")
    axes[0].legend(fontsize="small", loc="upper left")
    for name in names:
        flops = _mean(rows, name, CLOSED, "merge_flops") + _mean(rows, name, CLOSED, "statistics_flops")
        axes[1].plot(max(flops, 1.0), _mean(rows, name, CLOSED), "o", color="C0")
        axes[1].annotate(
            name, (max(flops, 1.0), _mean(rows, name, CLOSED)), fontsize=7, xytext=(3, 3), textcoords="offset points"
        )
    axes[1].set(xscale="log", xlabel="operations of statistics and merge", ylabel="test accuracy of the closed form")
    return drawing
