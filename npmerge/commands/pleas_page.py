"""What `npmerge align --method pleas` says: its summary, its page and its words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from npmerge.checkpoint.network import architecture
from npmerge.commands.align_inputs import Data, Source
from npmerge.commands.align_measures import has_statistics
from npmerge.models import Config
from npmerge.report import markdown_table
from npmerge.version import __version__

if TYPE_CHECKING:
    from npmerge.commands.pleas import Request


def summary(request: "Request", config: Config, sources: Sequence[Source], data: Data | None) -> dict[str, Any]:
    """What `summary.json` says of the request; `written` lists the files."""
    given = data and {
        "file": data.path.name,
        "sha256": data.sha256,
        "examples": len(data.inputs),
        "labels": data.labels is not None,
    }
    drawn = ["size.png"] if data is not None and data.labels is not None else []
    return {
        "npmerge": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "command": request.command,
        "method": "pleas",
        "budget": request.budget,
        "seed": request.seed,
        "architecture": architecture(config),
        "batch_statistics": has_statistics(sources[0].variables),
        "sources": [source.named for source in sources],
        "data": given,
        "written": ["merged.safetensors", "report.md", "summary.json", *drawn],
    }


def provenance(content: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of the merged checkpoint keeps."""
    return {key: content[key] for key in ("npmerge", "jax", "numpy", "method", "budget", "seed", "sources", "data", "cost")}


def markdown(content: Mapping[str, Any]) -> str:
    """The page `report.md`."""
    files = [source["file"] for source in content["sources"]]
    lines = [f"# npmerge align: {', '.join(files)} in one network of {content['budget']:g} times the size", ""]
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in content["written"] if name.endswith(".png")]
    lines += ["", *(f"- {line}" for line in _notes(content)), ""]
    if content["sizes"]["points"]:
        lines += ["## What each size is worth", "", *_by_size(content), ""]
    lines += ["## Units of every node", "", *_by_node(content), ""]
    hashes = [(file, f"`{source['sha256']}`") for file, source in zip(files, content["sources"], strict=True)]
    lines += ["## Made from", "", *markdown_table(("file", "SHA-256"), hashes), ""]
    versions = f"npmerge {content['npmerge']}, jax {content['jax']}, numpy {content['numpy']}"
    return "\n".join([*lines, f"Command: `{content['command']}`; {versions}.", ""])


def told(content: Mapping[str, Any]) -> list[str]:
    """What the terminal shows."""
    lines = [
        f"{len(content['sources'])} x {content['architecture']['class']}, pleas at {content['budget']:g} times the size of one"
    ]
    measured = [("merged", p) for p in content["sizes"]["points"] if p["budget"] == content["budget"]]
    measured += content["sizes"]["levels"].items()
    lines += [f"{name}: accuracy {m['accuracy']:.3f}, loss {m['loss']:.3f}" for name, m in measured]
    return [*lines, *(f"- {line}" for line in _notes(content))]


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
    return [*notes, *content["warnings"]]


def _by_size(content: Mapping[str, Any]) -> list[str]:
    rows = [
        (f"{p['budget']:g}", f"{p['cost']:.3f}", f"{p['accuracy']:.4f}", f"{p['loss']:.4f}") for p in content["sizes"]["points"]
    ]
    rows += [(name, "", f"{v['accuracy']:.4f}", f"{v['loss']:.4f}") for name, v in content["sizes"]["levels"].items()]
    return markdown_table(("budget", "operations", "accuracy", "loss"), rows)


def _by_node(content: Mapping[str, Any]) -> list[str]:
    header = ("node", "units of one network", "merged", "kept apart in each", "new units")
    return markdown_table(
        header, [tuple(str(row[key]) for key in ("node", "old", "merged", "separate", "new")) for row in content["nodes"]]
    )
