"""What `npmerge compare` says: its words, its page and its heat maps."""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.folder.card import name_of
from npmerge.recipe.layers import layers_of, place_of
from npmerge.reports.charts import literal, sequential, wrapped
from npmerge.reports.folder import REPORT, write_report
from npmerge.reports.numbers import number, plural
from npmerge.reports.page import Figure, Headline, Listing, Page, Points, Section, section, table
from npmerge.reports.text import columns

FILES = (*REPORT, "heatmap.png")
"""What the report may write."""

SHOWN = 20
"""Tensors and notes that are shown of one model unless all are asked for."""

HEADER = ("cosine", "distance", "norm", "differ", "NaN/Inf")
TASK_HEADER = ("task cosine", "sign conflict")

WORDS = (
    "distance: |x - a| / |a|; norm: |x| / |a| - 1; differ: entries that are not equal; NaN/Inf: entries of x, and of a if it "
    "has any"
)
TASK_WORDS = (
    "task cosine: of x - base and a - base; sign conflict: of the entries that both changed, those changed in opposite ways"
)


def told(content: Mapping[str, Any], *, verbose: bool = False) -> list[str]:
    """What the terminal shows: every model as a whole, by layer, and the tensors that differ most."""
    lines = [f"x against a = {content['reference']}{_base(content)}", ""]
    lines += columns(_table("x", content, ((model["path"], model["whole"]) for model in content["models"])))
    for model in content["models"]:
        if len(model["layers"]) > 1:
            lines += ["", *columns(_table(f"{model['path']}, by layer", content, model["layers"].items()))]
        shown = worst(model["tensors"], None if verbose else SHOWN)
        head = f"{model['path']}, {_of(len(shown), len(model['tensors']))}"
        lines += ["", *columns(_table(head, content, shown))]
    return [*lines, "", *_words(content), *_notes(content, None if verbose else SHOWN)]


def page(content: Mapping[str, Any]) -> Page:
    """The report, from the content of `summary.json` alone."""
    rows = ((model["path"], model["whole"]) for model in content["models"])
    base = content["base"]
    whole = section("As a whole", table(_table("model", content, rows)), Points(tuple(_words(content))), _figure(content))
    return Page(
        f"npmerge compare: against {name_of(content['reference'])}{f', base {name_of(base)}' if base else ''}",
        (
            whole,
            *(_of_model(content, model) for model in content["models"]),
            section("How it was made", Points(tuple(_notes(content, None))), "The command:", Listing(content["command"], "sh")),
        ),
        headlines=_headlines(content),
        foot=f"npmerge {content['npmerge']}.",
    )


def _headlines(content: Mapping[str, Any]) -> tuple[Headline, ...]:
    """The whole of each model, of the first few."""
    found = []
    for model in content["models"][:4]:
        whole = model["whole"]
        conflict = f"; {_percent(whole['sign_conflict'])} of signs in conflict" if content["base"] else ""
        note = f"distance {number(whole['distance'])} of the norm{conflict}"
        found.append(Headline(f"Cosine, {Path(model['path']).name}", _cosine(whole["cosine"]), note))
    return tuple(found)


def _of_model(content: Mapping[str, Any], model: Mapping[str, Any]) -> Section:
    shown = worst(model["tensors"], SHOWN)
    tensors = table(_table("tensor", content, shown), folded=f"{_of(len(shown), len(model['tensors'])).capitalize()}")
    return section(name_of(model["path"]), table(_table("layer", content, model["layers"].items())), tensors)


def _figure(content: Mapping[str, Any]) -> Figure:
    names = ", ".join(Path(model["path"]).name for model in content["models"])
    measures = "distance, cosine and conflict of signs" if content["base"] else "distance and cosine"
    words = f"By layer and kind of tensor: {measures} of {names} from {Path(content['reference']).name}."
    return Figure("heatmap", "Where the models differ", words, partial(heatmap, content))


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the page, the numbers and the heat maps."""
    write_report(folder, page=page(content), summary=content)


def worst(tensors: Mapping[str, Mapping[str, Any]], count: int | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The tensors of most distance, those with NaN and infinities before them."""

    def badness(item: tuple[str, Mapping[str, Any]]) -> tuple[float, float]:
        distance = item[1]["distance"]
        return -item[1]["broken"], -math.inf if distance is None else -distance

    return sorted(tensors.items(), key=badness)[:count]


def heatmap(content: Mapping[str, Any]) -> Any:
    """Layers by kinds of tensors: distance, cosine and, with a base, sign conflict; a row of axes for each model."""
    from matplotlib.figure import Figure  # slow to import, and needed nowhere else

    measures = ["distance", "cosine", *(["sign_conflict"] if content["base"] else [])]
    grids = [[grid(model["tensors"], measure) for measure in measures] for model in content["models"]]
    rows, kinds = grids[0][0][1:]
    longest = [max(map(len, names)) for names in (rows, kinds)]
    width, height = 2 + 0.06 * longest[0] + 0.25 * len(kinds), 1.5 + 0.06 * longest[1] + 0.16 * len(rows)
    size = (len(measures) * width, len(grids) * height)
    drawing = Figure(figsize=size, layout="constrained")
    every = drawing.subplots(len(grids), len(measures), squeeze=False)
    for axes_of_model, of_model, model in zip(every, grids, content["models"], strict=True):
        for axes, measure, (values, rows, kinds) in zip(axes_of_model, measures, of_model, strict=True):
            image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=sequential())
            axes.grid(visible=False)
            axes.set_title(wrapped(literal(f"{Path(model['path']).name}: {measure.replace('_', ' ')}"), 28), fontsize=8)
            axes.set_xticks(range(len(kinds)), labels=kinds, rotation=90, fontsize=6)
            axes.set_yticks(range(len(rows)), labels=rows, fontsize=6)
            drawing.colorbar(image, ax=axes)
    return drawing


def grid(tensors: Mapping[str, Mapping[str, Any]], measure: str) -> tuple[np.ndarray, list[str], list[str]]:
    """A measure as (layers, kinds), NaN where there is no such tensor, with names; without layers all tensors in one column."""
    layers = layers_of(tensors)
    cells = {}
    for name, measures in tensors.items():
        if place := layers.place(name):
            cells[f"{place.stack}{place.number}", place.rest.lstrip("./").removesuffix(".weight")] = measures[measure]
    cells = cells or {(name, measure): measures[measure] for name, measures in tensors.items()}
    rows, kinds = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    stacks = list(layers.numbers)
    places = {row: place_of(row) for row in rows}
    rows.sort(key=lambda row: (stacks.index(p.stack), p.number) if (p := places[row]) and p.stack in stacks else (0, 0))
    values = np.full((len(rows), len(kinds)), np.nan)
    for (row, kind), value in cells.items():
        values[rows.index(row), kinds.index(kind)] = np.nan if value is None else value
    return values, rows, kinds


Rows = Iterable[tuple[str, Mapping[str, Any]]]


def _table(name: str, content: Mapping[str, Any], rows: Rows) -> list[tuple[str, ...]]:
    head = (name, *HEADER, *(TASK_HEADER if content["base"] else ()))
    return [head, *((row, *_cells(measures, base=bool(content["base"]))) for row, measures in rows)]


def _cells(m: Mapping[str, Any], *, base: bool) -> tuple[str, ...]:
    norm = "-" if m["norm_change"] is None else f"{100 * m['norm_change']:+.3g} %"
    broken = f"{m['broken']:.0f}" + (f" (a: {m['broken_reference']:.0f})" if m["broken_reference"] else "")
    cells = (_cosine(m["cosine"]), number(m["distance"]), norm, _percent(m["differ"]), broken)
    return (*cells, _cosine(m["task_cosine"]), _percent(m["sign_conflict"])) if base else cells


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.5f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"


def _base(content: Mapping[str, Any]) -> str:
    return f", base {content['base']}" if content["base"] else ""


def _of(shown: int, count: int) -> str:
    return (
        f"the {shown} of {count} tensors of most distance"
        if shown < count
        else f"{plural(count, 'tensor')}, most distance first"
    )


def _words(content: Mapping[str, Any]) -> list[str]:
    return [WORDS, TASK_WORDS] if content["base"] else [WORDS]


def _notes(content: Mapping[str, Any], count: int | None) -> list[str]:
    """What is not compared: a line each, or for those of one reason together unless all are asked for (`count` None)."""
    reasons: dict[str, list[str]] = {}
    for line in content["left_out"]:
        name, _, reason = line.partition(" ")
        reasons.setdefault(reason if count is not None else line, []).append(name)
    lines = []
    for reason, names in reasons.items():
        said = f"{names[0]} {reason}" if count is not None else reason
        if len(names) > 1:
            said = f"{plural(len(names), 'tensor')}, such as {', '.join(names[:3])}: each {reason}"
        lines.append(f"not compared: {said}")
    return lines
