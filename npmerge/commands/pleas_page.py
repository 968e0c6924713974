"""What `npmerge align --method pleas` says: its summary, its page and its words."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from npmerge.commands import pages
from npmerge.commands.align_requests import PleasRequest
from npmerge.commands.align_run import Parents
from npmerge.reports.figures import size_figure
from npmerge.reports.numbers import nats
from npmerge.reports.page import Figure, Headline, Page, Points, Table, Warnings, filled, section


def summary(request: PleasRequest, parents: Parents) -> dict[str, Any]:
    """What `summary.json` says of the request."""
    return pages.summary(request, parents) | {"budget": request.budget}


def provenance(content: Mapping[str, Any], point: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a merged checkpoint keeps, with the budget and the cost of its own size."""
    return pages.provenance({**content, **point}, "budget", "cost")


def page(content: Mapping[str, Any]) -> Page:
    """The report, from the content of `summary.json` alone."""
    files, sizes = [source["file"] for source in content["sources"]], content["sizes"]
    drawn = [_figure(content)] if len(sizes["points"]) > 1 else []
    worth = section("What each size is worth", *drawn, _by_size(content)) if sizes["points"] else section("")
    first = section("", Points(tuple(_notes(content))), Warnings(tuple(content["warnings"])))
    return Page(
        f"npmerge align: {', '.join(files)} in one network of {content['budget']:g} times the size",
        filled(first, worth, section("Units of every node", _by_node(content)), pages.made_from(content)),
        headlines=_headlines(content),
        foot=pages.versions(content),
    )


def _figure(content: Mapping[str, Any]) -> Figure:
    sizes, budget = content["sizes"], content["budget"]
    kept = next(p for p in sizes["points"] if p["budget"] == budget)
    words = (
        f"Accuracy and loss at {len(sizes['points'])} sizes. The one that was kept has {kept['cost']:.3f} times the operations "
        f"of one network, accuracy {kept['accuracy']:.4f} and loss {nats(kept['loss'])}."
    )
    return Figure("size", "Accuracy and loss by size", words, partial(size_figure, sizes["points"], sizes["levels"], budget))


def _headlines(content: Mapping[str, Any]) -> tuple[Headline, ...]:
    points = {p["budget"]: p for p in content["sizes"]["points"]}
    networks = content["sizes"]["levels"] | ({"merged": points[content["budget"]]} if points else {})
    size = Headline("Operations", f"{content['cost']:.3f} times", "those of one network")
    return (*pages.accuracy_headline({"networks": networks, "data": content["data"]}), size)


def told(content: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""
    lines = [
        f"{len(content['sources'])} x {content['architecture']['class']}, pleas at {content['budget']:g} times the size of one"
    ]
    points = {p["budget"]: p for p in content["sizes"]["points"]}
    merged = {"merged": points[content["budget"]]} if points else {}
    return [
        *lines,
        *pages.measured(merged | content["sizes"]["levels"]),
        *(f"- {line}" for line in [*_notes(content), *content["warnings"]]),
    ]


def _notes(content: Mapping[str, Any]) -> list[str]:
    notes = [
        f"Operations: {content['cost']:.3f} times those of one network, blocks of zeros between separate units not counted; "
        f"{content['dense']:.3f} times as the network runs.",
    ]
    if content["data"] is None:
        notes.append("Units matched by their weights, layers as the matching makes them: with --data they are solved anew.")
        if content["batch_statistics"]:
            notes.append("Running statistics are averages: re-estimate them from data before use.")
    else:
        solved = "Units matched by their activations, layers solved by sequential least squares"
        notes.append(f"{solved} on {content['solved_on']} examples of {content['data']['file']}.")
        if content["batch_statistics"]:
            notes.append("Running statistics were re-estimated from them, before each layer was solved and at the end.")
        if content["sizes"]["points"]:
            notes.append("Accuracy and loss are on the examples that the layers were solved on: keep others for a test.")
        if not content["data"]["labels"]:
            notes.append("No labels in the data: accuracy and loss cannot be measured.")
    if held := [row for row in content["nodes"] if row["held"]]:
        notes.append(
            "Nodes that cannot change their width: " + "; ".join(f"{row['node']} ({row['held']})" for row in held) + "."
        )
    if content["left"]:
        notes.append("Layers not solved: " + "; ".join(f"{site} ({why})" for site, why in content["left"].items()) + ".")
    if content["singular"]:
        notes.append(
            f"Layers whose inputs do not determine them, which stay near their start: {', '.join(content['singular'])}."
        )
    return notes


def _by_size(content: Mapping[str, Any]) -> Table:
    rows = [
        (f"{p['budget']:g}", f"{p['cost']:.3f}", f"{p['accuracy']:.4f}", nats(p["loss"])) for p in content["sizes"]["points"]
    ]
    rows += [(name, "", f"{v['accuracy']:.4f}", nats(v["loss"])) for name, v in content["sizes"]["levels"].items()]
    return Table(("budget", "operations", "accuracy", "loss"), tuple(rows))


def _by_node(content: Mapping[str, Any]) -> Table:
    header = ("node", "units of one network", "merged", "kept apart in each", "new units")
    keys = ("node", "old", "merged", "separate", "new")
    return Table(header, tuple(tuple(str(row[key]) for key in keys) for row in content["nodes"]))
