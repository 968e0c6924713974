"""The page and the figure of the experiment on many models, from its rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.many_models_settings import (
    AVERAGE,
    CONTROL,
    CONTROLS,
    ENSEMBLE,
    JOINT,
    LONG,
    METHODS,
    PAIRS,
    PARENTS,
    REVERSED,
    SHORT,
    START,
    TENSORS,
    Settings,
)
from experiments.run import Rows, machine, mean_and_deviation
from npmerge.reports.drawing import Curve, draw_curves, new_figure
from npmerge.reports.tables import markdown_table

INTRODUCTION = """Networks that start alike and see other classes each are merged into one, two of them or up to 32. A
joint merge learns coefficients of all of them at once (a softmax over the models for each parameter or tensor), successive
pairs learn one sigmoid per parameter for each model that joins the merge so far, as NP Merge is published for more than two.
All learned rows and the controls see the same few labelled images and are tuned alike. The question is what the coefficients
of many models are worth beside the weights of their average, which are as free and have no box around them."""


def page(rows: Rows, command: str, settings: Settings, data: str) -> str:
    """The result as a page: every number in it comes from the rows."""
    counts = sorted({row["models"] for row in rows.all})
    seeds, seconds = sorted({row["seed"] for row in rows.all}), sum(row["seconds"] for row in rows.all)
    accuracies = [(name, *(_cell(rows, name, n, "accuracy") for n in counts)) for name in METHODS]
    losses = [(name, *(_cell(rows, name, n, "loss") for n in counts)) for name in METHODS]
    header = [f"{n} models" for n in counts]
    costs = [(name, *(f"{_mean(rows, name, n, 'learned'):,.0f}" for n in counts)) for name in (JOINT, TENSORS, PAIRS, CONTROL)]
    return "\n".join([
        "# Many models", "", INTRODUCTION, "", "![Test accuracy against the number of models](accuracy.png)", "",
        *markdown_table(("test accuracy", *header), accuracies), "",
        *markdown_table(("test loss", *header), losses), "",
        f"Mean and deviation over seeds {seeds}.", "",
        *markdown_table(("numbers learned at once", *header), costs), "",
        "## Protocol", "", *(f"- {line}" for line in _protocol(settings, data, rows)), "",
        "## Expected, and what came out", "", *(f"- {line}" for line in _findings(rows, counts)), "",
        f"`{command}`, {seconds:.0f} s, {machine()}.", "",
    ])  # fmt: skip


def _protocol(s: Settings, data: str, rows: Rows) -> list[str]:
    def chosen(*names: str) -> str:
        return ", ".join(f"{x:g}" for x in sorted({row["rate"] for row in rows.all if row["method"] in names}))

    return [
        f"Data: {data}; a tenth of the training images is for validation, {s.labelled} are labelled for merging, of the others "
        f"each network sees {s.part}, drawn by a distribution of classes of its own (Dirichlet, {s.skew:g}).",
        f"Networks: perceptrons with hidden layers {s.hidden} from one initialisation for each seed, Adam at "
        f"{s.training_rate:g}, {s.training_steps} steps of {s.batch}; no alignment, since they start alike.",
        f"Learning: Adam, batches of {s.batch} of the labelled images, {s.steps} steps; of pairs {s.steps} steps for each or "
        f"{s.steps} in all, of the longer control as many as all pairs together. The best of up to eleven moments on "
        "validation data is kept.",
        f"Rates on validation data: of {s.learned_rates} for coefficients (chosen: {chosen(JOINT, TENSORS, SHORT, PAIRS)}), of "
        f"{s.control_rates} for weights (chosen: {chosen(*CONTROLS)}). Nothing else is tuned, and the test set is read once "
        "for each row. A first try of one seed with 200 labelled images left learned rows and controls within the error of the "
        "test set, so fewer were taken.",
    ]


def _findings(rows: Rows, counts: Sequence[int]) -> list[str]:
    most = counts[-1]
    points = {name: 100 * _mean(rows, name, most, "accuracy") for name in METHODS}
    shares = [row["shares"] for row in _rows(rows, PAIRS, most)]
    low, high = (float(np.mean([extreme(x) for x in shares])) for extreme in (min, max))
    wins = [
        sum(_mean(rows, name, n, "accuracy") > _mean(rows, control, n, "accuracy") for n in counts)
        for name, control in ((JOINT, CONTROL), (PAIRS, LONG))
    ]
    count = f"{len(counts)} numbers of models"
    apart = max(abs(_mean(rows, JOINT, n, "accuracy") - _mean(rows, CONTROL, n, "accuracy")) for n in counts[1:])
    spread = np.mean([np.std([row["accuracy"] for row in _rows(rows, CONTROL, n)]) for n in counts[1:]])
    return [
        f"Expected: coefficients have a box around them and are no better than weights. {most} networks jointly: "
        f"{points[JOINT]:.1f} % per parameter, {points[TENSORS]:.1f} % per tensor; the average has {points[AVERAGE]:.1f} %, "
        f"fine-tuned {points[CONTROL]:.1f} %, and the common start fine-tuned, without any model, {points[START]:.1f} %. The "
        f"joint merge per parameter is above the fine-tuned average at {wins[0]} of {count}.",
        f"{most} networks in pairs: {points[SHORT]:.1f} % with as many steps in all, {points[PAIRS]:.1f} % with as many for "
        f"each pair, where the control of equal length has {points[LONG]:.1f} %; above it at {wins[1]} of {count}.",
        f"Merging in the reversed order gives {points[REVERSED]:.1f} % instead of {points[PAIRS]:.1f} % at {most} networks. "
        f"The mean share of a network, {1 / most:.4f} at the start, ends between {low:.4f} and {high:.4f} as given.",
        f"From {counts[1]} models on the joint merge and the fine-tuned average are at most {100 * apart:.1f} points apart, "
        f"and seeds {100 * spread:.1f} points: which of them is better these rows do not tell.",
        f"The ensemble of {most} networks has {points[ENSEMBLE]:.1f} %, the networks alone {points[PARENTS]:.1f} %.",
    ]


def _rows(rows: Rows, name: str, n: int) -> list[dict[str, Any]]:
    return [row for row in rows.all if row["method"] == name and row["models"] == n]


def _mean(rows: Rows, name: str, n: int, column: str) -> float:
    return float(np.mean([row[column] for row in _rows(rows, name, n)]))


def _cell(rows: Rows, name: str, n: int, column: str) -> str:
    return mean_and_deviation([row[column] for row in _rows(rows, name, n)])


def figure(rows: Rows) -> Any:
    """Test accuracy against the number of models, the mean over seeds with its deviation."""
    drawing, axes = new_figure(1)
    counts = sorted({row["models"] for row in rows.all})
    values = {name: [[row["accuracy"] for row in _rows(rows, name, n)] for n in counts] for name in METHODS}
    curves = [
        Curve(name, counts, [float(np.mean(v)) for v in found], [float(np.std(v)) for v in found], name in CONTROLS)
        for name, found in values.items()
    ]
    draw_curves(axes[0], curves)
    axes[0].set(xlabel="models merged", ylabel="test accuracy")
    return drawing
