"""What the pages of all methods of `npmerge align` have in common."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from npmerge.checkpoint.network import architecture
from npmerge.commands.align_inputs import Data
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_requests import ACCURACY, Request
from npmerge.commands.align_run import Parents
from npmerge.reports.charts import ranges
from npmerge.reports.intervals import wilson
from npmerge.reports.numbers import nats
from npmerge.reports.page import Figure, Headline, Listing, Section, Table, code
from npmerge.version import __version__


def summary(request: Request, parents: Parents) -> dict[str, Any]:
    """What `summary.json` says of every run."""
    return {
        "npmerge": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "command": request.command,
        "method": request.method,
        "seed": request.seed,
        "architecture": architecture(parents.config),
        "batch_statistics": has_statistics(parents.models[0]),
        "sources": [source.named for source in parents.sources],
        "data": _described(parents.data),
    }


def provenance(content: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """What the record of a network keeps of a summary."""
    return {key: content[key] for key in ("npmerge", "jax", "numpy", "method", *more, "seed", "sources", "data")}


def made_from(content: Mapping[str, Any]) -> Section:
    """The last section of every page: the files and the command."""
    hashes = tuple((source["file"], code(source["sha256"])) for source in content["sources"])
    return Section(
        "Made from", (Table(("file", "SHA-256"), hashes), "The command that makes it again:", Listing(content["command"], "sh"))
    )


def versions(content: Mapping[str, Any]) -> str:
    """The last line of every page."""
    return f"npmerge {content['npmerge']}, jax {content['jax']}, numpy {content['numpy']}."


def worth(networks: Mapping[str, Mapping[str, float]]) -> Table:
    """Accuracy and loss of networks by name."""
    rows = ((name, f"{row['accuracy']:.4f}", nats(row["loss"])) for name, row in networks.items())
    return Table(("network", "accuracy", "loss"), tuple(rows))


def drawn_accuracy(data: Data | None) -> list[str]:
    """The file of `accuracy_figure`, where accuracy is measured."""
    return [] if data is None or data.labels is None else [ACCURACY]


def accuracy_figure(content: Mapping[str, Any]) -> Figure:
    """Accuracy of each network with its interval, the merged one among them."""
    count = content["data"]["examples"]
    rows = {name: wilson(row["accuracy"] * count, count) for name, row in content["networks"].items()}
    each = ", ".join(f"{name} {100 * x.value:.1f} %" for name, x in rows.items())
    draw = partial(ranges, rows, "accuracy (%)", "merged", percent=True)
    return Figure(
        "accuracy", "Accuracy of every network", f"With Wilson's interval of 95 % on {count:,} examples: {each}.", draw
    )


def accuracy_headline(content: Mapping[str, Any]) -> tuple[Headline, ...]:
    """Accuracy of the merged network beside the best of what it was made from; none where it was not measured."""
    rows = dict(content["networks"])
    if "merged" not in rows:
        return ()
    merged, count = rows.pop("merged"), content["data"]["examples"]
    found, best = wilson(merged["accuracy"] * count, count), max(rows, key=lambda name: rows[name]["accuracy"])
    note = (
        f"{100 * found.low:.1f} to {100 * found.high:.1f} % on {count:,} examples; {best}: {100 * rows[best]['accuracy']:.1f} %"
    )
    return (Headline("Accuracy, merged", f"{100 * found.value:.1f} %", note),)


def measured(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the terminal shows of networks by name."""
    return [f"{name}: accuracy {row['accuracy']:.3f}, loss {nats(row['loss'])}" for name, row in rows.items()]


def _described(data: Data | None) -> dict[str, Any] | None:
    """What a summary says of the examples."""
    if data is None:
        return None
    return {"file": data.path.name, "sha256": data.sha256, "examples": len(data.inputs), "labels": data.labels is not None}
