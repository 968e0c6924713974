"""What `npmerge align` says: its summary, its page and its words."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import numpy as np

from npmerge.commands import pages
from npmerge.commands.align_measures import Change, Measured
from npmerge.commands.align_requests import FIGURES, AlignRequest
from npmerge.commands.align_run import Parents
from npmerge.commands.sources import Source, written_name
from npmerge.paths import Path
from npmerge.reports.figures import barrier_figure, correlation_figure
from npmerge.reports.folder import REPORT
from npmerge.reports.numbers import plural
from npmerge.reports.page import Figure, Headline, Page, Points, Table, Warnings, filled, section, table

HEADER = ("network", "squared distance", "matched correlation", "own loss (nats)", "barrier (nats)", "outputs moved by")
_WHEN = ("before", "after")


def summary(request: AlignRequest, parents: Parents, measured: Measured) -> dict[str, Any]:
    """The content of `summary.json`; null where the data did not allow a measurement."""
    return pages.summary(request, parents) | {
        "approximate": request.approximate,
        "modules": parents.sources[0].modules,
        "verify": measured.verified,
        "networks": [row_of(x.path.name, k, measured) for k, x in enumerate(parents.sources[1:])],
        "written": _written(parents.sources, measured),
    }


def provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of an aligned checkpoint keeps."""
    return pages.provenance(content, "approximate")


def page(content: Mapping[str, Any]) -> Page:
    """The report, from the content of `summary.json` alone."""
    reference, *others = [source["file"] for source in content["sources"]]
    networks = content["networks"]
    how = f"By {content['method']}{' (approximate)' if content['approximate'] else ''}; before -> after:"
    came: tuple[Any, ...] = (how, table([HEADER, *map(cells_of, networks)]), *figures(networks), Points(tuple(_notes(content))))
    sections = [section("How near they came", *came)]
    if networks[0]["matched_correlation"]:
        sections.append(section("Matched correlation by node", _by_node(networks, content["modules"])))
    warned = section("", Warnings(tuple(content["warnings"])))
    return Page(
        f"npmerge align: {', '.join(others)} in the units of {reference}",
        filled(warned, *sections, pages.made_from(content)),
        headlines=_headlines(content),
        foot=pages.versions(content),
    )


def _headlines(content: Mapping[str, Any]) -> tuple[Headline, ...]:
    """How far the networks have come, on average where there are several."""
    networks, found = content["networks"], []
    whose = "" if len(networks) == 1 else f"mean of {len(networks)} networks"

    def mean(changes: Sequence[Mapping[str, float]], form: str) -> str:
        return " → ".join(f"{np.mean([x[when] for x in changes]):{form}}" for when in ("before", "after"))

    if networks[0]["matched_correlation"]:
        nodes = [change for network in networks for change in network["matched_correlation"].values()]
        found.append(Headline("Matched correlation", mean(nodes, ".3f"), whose or "mean over the nodes"))
    if networks[0]["barrier"]:
        found.append(Headline("Barrier (nats)", mean([x["barrier"] for x in networks], ".3g"), whose or "on the straight line"))
    found.append(
        Headline("Squared distance", mean([x["squared_distance"] for x in networks], ".4g"), whose or "of all weights")
    )
    return (
        *found,
        Headline("Function preserved to", f"{content['verify']:.1e}", "of the largest output, under random symmetries"),
    )


def figures(networks: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """What was measured of networks before and after: correlation by depth, and loss along the path, where they are there."""
    names, found = [FilePath(network["file"]).stem for network in networks], []
    if networks[0]["matched_correlation"]:
        nodes = networks[0]["matched_correlation"]
        both = [{n: np.array([x["matched_correlation"][n][when] for x in networks]) for n in nodes} for when in _WHEN]
        before, after = (np.mean([*values.values()], axis=0) for values in both)
        means = ", ".join(f"{name} from {b:.3f} to {a:.3f}" for name, b, a in zip(names, before, after, strict=True))
        at = plural(len(nodes), "node")
        words = f"Mean correlation of matched units at {at}, dashed before the alignment. On average {means}."
        draw = partial(correlation_figure, both[0], both[1], names)
        found.append(Figure("correlation", "Matched correlation by depth", words, draw))
    if networks[0]["path"]:
        paths = [[_path(network["path"][when]) for network in networks] for when in _WHEN]
        barriers = ", ".join(
            f"{name} from {b.barrier:.3g} to {a.barrier:.3g}" for name, b, a in zip(names, *paths, strict=True)
        )
        words = f"Loss from the reference to each network, dashed before the alignment. Barriers in nats: {barriers}."
        draw = partial(barrier_figure, paths[0], paths[1], names, label="loss (nats)")
        found.append(Figure("barrier", "Loss along the path", words, draw))
    return found


def _path(points: Mapping[str, Sequence[float]]) -> Path:
    return Path(**{key: np.array(values) for key, values in points.items()})


def told(content: Mapping[str, Any]) -> list[str]:
    """What the terminal shows: a line for each network, and what could not be measured."""
    lines = [f"{len(content['networks']) + 1} x {content['architecture']['class']}, {content['method']}; before -> after"]
    for network in content["networks"]:
        name, *cells = cells_of(network)
        cells = [f"{head} {cell}" for head, cell in zip(HEADER[1:], cells, strict=True) if cell != "-"]
        lines.append(f"{name}: {'; '.join(cells)}")
    ends = [*_ends(content), *_worse(content)] if content["data"] and content["data"]["labels"] else []
    return [*lines, *(f"- {line}" for line in [*_moves(content), *ends, *_missing(content), *content["warnings"]])]


def row_of(name: str, k: int, measured: Measured) -> dict[str, Any]:
    """The numbers of the network at this place among those that are not the reference."""
    nodes, paths = measured.correlations, measured.paths
    return {
        "file": name,
        "outputs_moved_by": measured.moved[k],
        "squared_distance": _change([values[k] for values in measured.distances]),
        "matched_correlation": nodes and {n: _change([float(v[n][k]) for v in nodes]) for n in nodes.before},
        "barrier": paths and _change([found[k].barrier for found in paths]),
        "path": paths and _change([points_of(found[k]) for found in paths]),
    }


def _change(values: Sequence[Any]) -> dict[str, Any]:
    return Change(*values)._asdict()


def points_of(path: Path) -> dict[str, list[float]]:
    """A path as JSON has it."""
    return {key: values.tolist() for key, values in path._asdict().items()}


def _written(sources: Sequence[Source], measured: Measured) -> list[str]:
    drawn = [name for name, found in zip(FIGURES, (measured.correlations, measured.paths), strict=True) if found]
    return [*(written_name(source.path) for source in sources), *REPORT, *drawn]


def cells_of(network: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of the table under HEADER."""
    correlation = network["matched_correlation"]
    if correlation:
        means = {key: float(np.mean([node[key] for node in correlation.values()])) for key in ("before", "after")}
    return (
        network["file"],
        _arrow(network["squared_distance"], ".4g"),
        _arrow(means, ".3f") if correlation else "-",
        _arrow(_own_loss(network), ".3f") if network["path"] else "-",
        _arrow(network["barrier"], ".3g") if network["barrier"] else "-",
        f"{network['outputs_moved_by']:.1e}",
    )


def _own_loss(network: Mapping[str, Any]) -> dict[str, float]:
    """That of the network itself, at the end of the paths to it."""
    return {when: path["loss"][-1] for when, path in network["path"].items()}


def _arrow(change: Mapping[str, float], form: str) -> str:
    return f"{change['before']:{form}} -> {change['after']:{form}}"


def _by_node(networks: Sequence[Mapping[str, Any]], modules: Mapping[str, str]) -> Table:
    """Nodes are called by the name that what makes them has in the file of the reference, and beside it by its path."""
    rows = [
        (_called(node, modules), *(_arrow(network["matched_correlation"][node], ".3f") for network in networks))
        for node in networks[0]["matched_correlation"]
    ]
    return Table(("node", *(network["file"] for network in networks)), tuple(rows))


def _called(node: str, modules: Mapping[str, str]) -> str:
    path, number, which = node.partition("#")
    theirs = modules.get(path)
    return f"`{theirs}{number}{which}` ({node})" if theirs else f"`{node}`"


def _notes(content: Mapping[str, Any]) -> list[str]:
    data = content["data"]
    inputs = f"of {data['file']}" if data else "drawn at random"
    moved = max(network["outputs_moved_by"] for network in content["networks"])
    notes = [
        f"Function preservation: a random element of every node's group moves the outputs of the reference by "
        f"{content['verify']:.1e} of the largest, on inputs {inputs}: below 1e-5 the traced graph is right.",
        "The alignment changes what the networks compute: --approximate lets maps leave the groups."
        if content["approximate"]
        else f"Exact alignments move outputs by rounding only: here by {moved:.1e} of the largest at most.",
        "Squared distance: of all weights to those of the reference. Matched correlation: Pearson's, of unit i with unit i "
        "of the reference, mean over the units and, in the first table, over the nodes.",
    ]
    if data and data["labels"]:
        notes.append(f"Barriers: {data['examples']} examples of {data['file']}, cross entropy above the line between the ends.")
        notes += [*_ends(content), *_worse(content)]
    if content["batch_statistics"] and data:
        notes.append(f"BatchNorm: {_normalised(content)}")
    return [*notes, *_moves(content), *_missing(content)]


def _moves(content: Mapping[str, Any]) -> list[str]:
    """Networks whose units had their places already, and those that were brought away from the reference."""
    distances = {network["file"]: network["squared_distance"] for network in content["networks"]}
    still = [file for file, change in distances.items() if change["before"] == change["after"]]
    found = [f"Nothing had to move in {', '.join(still)}: it is as near to the reference as it was."] if still else []
    away = [file for file, change in distances.items() if change["after"] > 1.01 * change["before"]]
    help_ = "fine-tunes of one base need no alignment, and weight-matching leaves them where they are"
    return [*found, *(f"{file} is farther from the reference than it was: {help_}." for file in away)]


def _ends(content: Mapping[str, Any]) -> list[str]:
    """A barrier says nothing of an end that was moved uphill."""
    if not content["approximate"]:
        return []
    ends = {network["file"]: _own_loss(network) for network in content["networks"]}
    return [
        f"{file} was changed{' for the worse' * (loss['after'] > loss['before'])}, and the barrier is of the way to what it "
        f"became. Its own loss: {_arrow(loss, '.3f')}."
        for file, loss in ends.items()
    ]


def _worse(content: Mapping[str, Any]) -> list[str]:
    """Networks that have not come nearer, and what may bring them nearer."""
    changes = {network["file"]: network["barrier"] for network in content["networks"]}
    worse = [file for file, change in changes.items() if change["after"] > max(change["before"], 0)]
    if not worse:
        return []
    weights = content["method"] == "weight-matching"
    advice = "activation-matching, which compares what units do on the data" if weights else "more examples, or another method"
    return [f"Worse than before: the barrier to {', '.join(worse)} is higher after the alignment. Try {advice}."]


def _normalised(content: Mapping[str, Any]) -> str:
    where = ["at every point of the paths, ends included"] if content["data"]["labels"] else []
    where += ["in the aligned checkpoints"] if content["approximate"] else []
    moved = f"statistics were re-estimated {' and '.join(where)}" if where else "nothing was re-estimated"
    return moved + ("." if content["approximate"] else "; those in the aligned checkpoints moved with their units.")


def _missing(content: Mapping[str, Any]) -> list[str]:
    if content["data"] is None:
        return ["No data: no matched correlation, no barrier (--data FILE.npz with inputs and labels)."]
    notes = []
    if content["data"]["examples"] < 2:
        notes.append(f"One example in {content['data']['file']}: correlation cannot be measured.")
    elif content["networks"][0]["matched_correlation"] is None:
        notes.append("No node has features in a forward pass: no matched correlation.")
    if not content["data"]["labels"]:
        notes.append(f"No labels in {content['data']['file']}: no barrier.")
    return notes
