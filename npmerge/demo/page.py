"""What the demo says: its table, its words, its page and its figure."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from npmerge.demo.pipeline import Row, Run
from npmerge.reports.drawing import Curve, draw_curves, draw_paths, new_figure
from npmerge.reports.page import Figure, Listing, Page, Points, Table, section
from npmerge.version import __version__

CONTROL = "fine-tuned average, aligned"
HEADER = ("name", "val. %", "test %", "test loss", "sec.")

KINDS = {"parent": "Parents", "ensemble": "Ensemble (twice the cost)", "closed_form": "Closed-form merges"}


def summary(runs: Sequence[Run], *, split: str, command: str) -> dict[str, Any]:
    """The content of `summary.json`: one row per method and fraction, means over the seeds, and every single run."""
    rows = []
    for group in _grouped(runs):
        name, kind, fraction = group[0][:3]
        columns = {key: np.array([getattr(r, key) for r in group]) for key in Row._fields[3:]}
        row = {"name": name, "kind": kind, "fraction": fraction, **{k: float(v.mean()) for k, v in columns.items()}}
        if len(group) > 1:
            row |= {f"{k}_deviation": float(columns[k].std(ddof=1)) for k in Row._fields[3:6]}
        rows.append(row | {"seeds": len(group)})
    return {
        "npmerge": __version__,
        "jax": jax.__version__,
        "command": command,
        "seeds": [run.seed for run in runs],
        "split": split,
        "rows": rows,
        "runs": [
            {
                "seed": run.seed,
                "verify": run.verified,
                "chosen": run.chosen,
                "rates": run.rates,
                "kept": run.kept,
                "barriers": {name: path.barrier for name, path in run.paths.items()},
                "rows": [r._asdict() for r in run.rows],
            }
            for run in runs
        ],
    }


def _grouped(runs: Sequence[Run]) -> list[list[Row]]:
    """Rows of the same method and fraction from all seeds, in the order in which they were first measured.

    The best alignment is chosen anew for each seed, so a learned merge is named without it here.
    """
    groups: dict[tuple, list[Row]] = {}
    for run in runs:
        best = run.chosen.get("best alignment", "")
        for row in run.rows:
            name = row.name.replace(f", {best}", ", aligned").replace(f"{best} + Fisher", "best alignment + Fisher")
            groups.setdefault((name, row.fraction), []).append(row._replace(name=name))
    return list(groups.values())


def table(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of a summary as text: section, name, validation and test accuracy in per cent, test loss, seconds."""
    return [
        (
            KINDS.get(row["kind"]) or f"With {row['fraction']:.0%} of the labels",
            row["name"],
            _with_deviation(row, "validation_accuracy", 100, "{:.1f}"),
            _with_deviation(row, "test_accuracy", 100, "{:.1f}"),
            _with_deviation(row, "test_loss", 1, "{:.3f}"),
            f"{row['seconds']:.1f}",
        )
        for row in content["rows"]
    ]


def _with_deviation(row: Mapping[str, Any], key: str, scale: float, form: str) -> str:
    text = form.format(row[key] * scale)
    deviation = row.get(f"{key}_deviation")
    return text if deviation is None else f"{text} ±{form.format(deviation * scale)}"


def verdict(content: Mapping[str, Any]) -> list[str]:
    """In words, for each labelled fraction: every aligned learned merge against its control, the fine-tuned average."""
    fractions = sorted({r["fraction"] for r in content["rows"] if r["fraction"] is not None})
    return [_verdict_at(content, fraction) for fraction in fractions]


def _verdict_at(content: Mapping[str, Any], fraction: float) -> str:
    """Who beats whom, and by how much; a difference within the spread of the seeds, or of nothing learned, is called so."""
    rows = [r for r in content["rows"] if r["fraction"] == fraction]
    control = next(r for r in rows if r["name"] == CONTROL)
    words: dict[str, list[str]] = {"the control beats": [], "the control loses to": [], "equal to the control:": []}
    for row in (r for r in rows if r["kind"] == "learned" and r["name"].endswith(", aligned")):
        gaps = 100 * (_accuracies(content, row, fraction) - _accuracies(content, control, fraction))
        mean, spread = float(gaps.mean()), float(gaps.std(ddof=1)) if len(gaps) > 1 else None
        text = f"{row['name'].removesuffix(', aligned')} ({mean:+.1f}{'' if spread is None else f' ±{spread:.1f}'}"
        text += ", within the spread)" if mean and spread is not None and abs(mean) <= spread else ")"
        text += ", which kept its start" if _kept_start(content, row, fraction) else ""
        key = "the control beats" if mean < 0 else "the control loses to" if mean > 0 else "equal to the control:"
        words[key].append(text)
    clauses = "; ".join(f"{key} {_listed(names)}" for key, names in words.items() if names)
    start = ", its start kept" if _kept_start(content, control, fraction) else ""
    return f"With {fraction:.0%} of the labels (control {100 * control['test_accuracy']:.1f} %{start}) {clauses}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _name_in(run: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    return row["name"].replace(", aligned", f", {run['chosen']['best alignment']}")


def _kept_start(content: Mapping[str, Any], row: Mapping[str, Any], fraction: float) -> bool:
    """Whether no step of any seed was better than the start on validation data: nothing was learned."""
    return not any(run["kept"][_name_in(run, row)][f"{fraction:.0%}"] for run in content["runs"])


def _accuracies(content: Mapping[str, Any], row: Mapping[str, Any], fraction: float) -> np.ndarray:
    """Test accuracy of a summary row's method in each run."""
    found = []
    for run in content["runs"]:
        name = _name_in(run, row)
        found += [r["test_accuracy"] for r in run["rows"] if r["name"] == name and r["fraction"] == fraction]
    return np.array(found)


def page(content: Mapping[str, Any], runs: Sequence[Run], notes: Sequence[str]) -> Page:
    """The report."""
    if len(runs) == 1:
        spread = "with one seed there is no spread to hold them against; one digit is 0.28 points"
    else:
        spread = "with their deviation over the seeds"
    control = (
        "The control is the aligned average, fine-tuned on the same examples for the same number of steps, its learning rate "
        f"chosen alike. Differences are of test accuracy in points, {spread}."
    )
    seconds = (
        "Seconds include compilation where it is the first of its kind; of learned merges and controls they are those of one "
        "learning rate, of alignments those of the statistics and the whole grid. Means are given with the sample deviation "
        "over the seeds."
    )
    sections = (
        section("What learning is worth", control, Points(tuple(verdict(content))), _curves(content, runs)),
        section("Every step", Table(HEADER, tuple((x[0].strip("*"), *x[1:]) for x in sectioned(table(content)))), seconds),
        section("How it was measured", Points(tuple(notes)), *(part for run in runs for part in _of_seed(run))),
        section("The symmetry graph that was traced", Listing(runs[0].graph)),
        section("How to do it again", Listing(content["command"], "sh")),
    )
    title = f"npmerge demo: two networks, split {content['split']}"
    return Page(title, sections, foot=f"npmerge {content['npmerge']}, jax {content['jax']}.")


def _of_seed(run: Run) -> tuple[str, Table]:
    barriers = ", ".join(f"{name} {path.barrier:.3f}" for name, path in run.paths.items())
    chosen = ", ".join(f"{name} {value}" for name, value in run.chosen.items())
    words = f"Seed {run.seed}: verify {run.verified:.1e}; loss barriers in nats: {barriers}; chosen: {chosen}; rates:"
    rates = tuple((name, *map(str, by_fraction.values())) for name, by_fraction in run.rates.items())
    return words, Table(("learning rate", *next(iter(run.rates.values()))), rates)


def _curves(content: Mapping[str, Any], runs: Sequence[Run]) -> Figure:
    words = "Left: test loss on the way between the two networks, by alignment. Right: test accuracy by the share of labels."
    return Figure("curves", "Before and after alignment, and what learning adds", words, partial(figure, content, runs))


def sectioned(rows: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows without their section, which stands on a row of its own where it begins."""
    out: list[tuple[str, ...]] = []
    begun = None
    for row in rows:
        if row[0] != begun:
            begun = row[0]
            out.append((f"**{begun}**", *("" for _ in row[2:])))
        out.append(row[1:])
    return out


def figure(content: Mapping[str, Any], runs: Sequence[Run]) -> Any:
    """Loss along the path before and after alignment; test accuracy against the labelled fraction."""
    drawing, (left, right) = new_figure(2)
    draw_paths(left, {name: [run.paths[name] for run in runs] for name in runs[0].paths}, baseline="unaligned")
    curves: dict[str, list[Mapping[str, Any]]] = {}
    for row in content["rows"]:
        if row["fraction"] is not None:
            curves.setdefault(row["name"], []).append(row)
    levels = {r["name"]: 100 * r["test_accuracy"] for r in content["rows"] if r["kind"] == "ensemble"}
    draw_curves(right, [_curve(name, rows) for name, rows in curves.items()], levels=levels)
    shown = [r["test_accuracy"] for r in content["rows"] if r["fraction"] is not None and "scratch" not in r["name"]]
    right.set_ylim(100 * min(shown) - 3, 100)  # a network trained from scratch on few labels would flatten all else
    right.set(xlabel="labelled training data (%)", ylabel="test accuracy (%)", title="Learned merges and controls")
    return drawing


def _curve(name: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    return Curve(
        label=name,
        x=[100 * r["fraction"] for r in rows],
        y=[100 * r["test_accuracy"] for r in rows],
        error=[100 * r.get("test_accuracy_deviation", 0.0) for r in rows],
        control=rows[0]["kind"] == "control",
    )
