"""The figures of the experiment on strangers' networks."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.run import read_rows
from experiments.strangers.results import Results, read
from experiments.strangers.settings import ENSEMBLE, PARENTS, PLAIN
from experiments.strangers.ways import WAYS
from npmerge import Path as Line
from npmerge.reports.drawing import Curve, draw_curves, draw_paths, new_figure


def figures(folder: Path) -> dict[str, Any]:
    """Test accuracy against images, and loss along the lines between the first networks, by name of the file."""
    name, main = next(iter(read(folder).items()))
    lines = [row for row in read_rows(folder / "paths.csv") if row["networks"] == name]
    drawing, axes = new_figure(2 if lines else 1)
    _accuracies(axes[0], main)
    if lines:
        paths: dict[str, list[Line]] = {row["alignment"]: [] for row in lines}
        for row in lines:
            paths[row["alignment"]].append(Line(*(np.array(row[column]) for column in Line._fields)))
        draw_paths(axes[1], paths, baseline=PLAIN)
    return {"accuracy": drawing}


def _accuracies(axes: Any, main: Results) -> None:
    curves = []
    for name in WAYS:
        values = {n: list(main.accuracies(name, n).values()) for n in main.images([name])}
        if len(values) > 1:
            middle, spread = ([float(100 * f(v)) for v in values.values()] for f in (np.mean, np.std))
            curves.append(Curve(name, list(values), middle, spread, name.startswith("control")))
    draw_curves(axes, curves, levels={name: 100 * main.mean(name) for name in (PARENTS, ENSEMBLE)})
    axes.set(xlabel="training images", ylabel="test accuracy (%)", title=f"Learned merges, mean of seeds {main.seeds}")
