"""The figures of the report of a merge, from the content of `report.json`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from npmerge.commands.report_judged import interval
from npmerge.reports import charts
from npmerge.reports.numbers import number, plural
from npmerge.reports.page import Figure

Rows = Sequence[Mapping[str, Any]]


def accuracy(rows: Mapping[str, Any], marked: str) -> Figure:
    """Accuracy of every network with its interval."""
    found = {name: interval(row["accuracy"]) for name, row in rows.items()}
    said = ", ".join(f"{name} {100 * x.value:.1f} %" for name, x in found.items())
    draw = partial(charts.ranges, found, "accuracy (%)", marked, percent=True)
    return Figure("accuracy", "Accuracy of every network", f"With intervals of 95 %: {said}.", draw)


def contributions(content: Mapping[str, Any]) -> Figure:
    """Planned coefficients by depth."""
    models, modules = content["models"], content["modules"]
    values = np.array([[np.nan if x is None else x for x in row] for row in modules.values()])
    there = values[~np.isnan(values).any(1)]
    means = there.mean(0) if len(there) else np.zeros(len(models))
    said = ", ".join(f"{name} {x:.3g}" for name, x in zip(models, means, strict=True))
    words = f"Mean coefficient of each model, from the inputs to the outputs. Mean over {plural(len(there), 'layer')}: {said}."
    draw = partial(charts.depth_map, values, list(modules), models, "mean coefficient")
    return Figure("shares", "What each model contributes by depth", words, draw)


def by_depth(name: str, title: str, rows: Rows, measure: str, label: str) -> Figure:
    """A measure of models or pairs of them as a heat map over depth.

    Args:
        name: of the file.
        title: of the figure.
        rows: of `report.json`: models, their layers and the whole.
        measure: of `Sums.measures`.
        label: what it is.
    """
    layers, columns = list(rows[0]["layers"]), [" and ".join(row["models"]) for row in rows]
    said = ", ".join(f"{column} {number(row['whole'][measure])}" for column, row in zip(columns, rows, strict=True))
    words = f"{label[0].upper()}{label[1:]}, from the inputs to the outputs. Of the whole: {said}."
    values = _grid(rows, layers, measure)
    if len(columns) == 1:
        return Figure(name, title, words, partial(charts.by_depth, {columns[0]: values[:, 0].tolist()}, layers, label))
    return Figure(name, title, words, partial(charts.depth_map, values, layers, columns, label))


def _grid(rows: Rows, layers: Sequence[str], measure: str) -> Float[np.ndarray, "layers columns"]:
    values = [[row["layers"].get(layer, {}).get(measure) for row in rows] for layer in layers]
    return np.array([[np.nan if x is None else x for x in row] for row in values], np.float64)


def paths(content: Mapping[str, Any]) -> Figure:
    """Loss on the way from the first model to each other one."""
    lines = {row["file"]: (row["path"]["fractions"], row["path"]["loss"]) for row in content["networks"]}
    said = ", ".join(f"to {row['file']} {row['barrier']:.3g}" for row in content["networks"])
    words = f"Cross entropy between {content['reference']} and each other model. Barriers in nats: {said}."
    return Figure("paths", "Loss on the straight line", words, partial(charts.paths, lines, content["reference"]))


def statistics(layers: Mapping[str, Mapping[str, float]]) -> Figure:
    """Variances re-estimated against averaged, by depth."""
    ratios = [row["ratio"] for row in layers.values()]
    low, high = min(layers, key=lambda x: layers[x]["ratio"]), max(layers, key=lambda x: layers[x]["ratio"])
    words = (
        f"Variance of the features as re-estimated, divided by the average of the models', in {plural(len(layers), 'layer')}: "
        f"from {layers[low]['ratio']:.3g} ({low}) to {layers[high]['ratio']:.3g} ({high})."
    )
    draw = partial(charts.by_depth, {"re-estimated / averaged": ratios}, list(layers), "ratio of variances", level=1.0)
    return Figure("statistics", "Variances, re-estimated against averaged", words, draw)
