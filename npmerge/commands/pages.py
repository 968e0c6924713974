"""What the pages of all methods of `npmerge align` have in common."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from npmerge.checkpoint.network import architecture
from npmerge.commands.align_inputs import Data
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_requests import Request
from npmerge.commands.align_run import Parents
from npmerge.reports.numbers import nats
from npmerge.reports.tables import markdown_table
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


def made_from(content: Mapping[str, Any]) -> list[str]:
    """The last lines of every page: the files, the command, the versions."""
    hashes = [(source["file"], f"`{source['sha256']}`") for source in content["sources"]]
    versions = f"npmerge {content['npmerge']}, jax {content['jax']}, numpy {content['numpy']}"
    table = markdown_table(("file", "SHA-256"), hashes)
    return ["## Made from", "", *table, "", f"Command: `{content['command']}`; {versions}.", ""]


def measured(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the terminal shows of networks by name."""
    return [f"{name}: accuracy {row['accuracy']:.3f}, loss {nats(row['loss'])}" for name, row in rows.items()]


def _described(data: Data | None) -> dict[str, Any] | None:
    """What a summary says of the examples."""
    if data is None:
        return None
    return {"file": data.path.name, "sha256": data.sha256, "examples": len(data.inputs), "labels": data.labels is not None}
