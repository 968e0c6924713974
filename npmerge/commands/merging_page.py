"""What the pages of all merges have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from npmerge.checkpoint.network import architecture
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_page import described
from npmerge.commands.merging import MERGED, Parents, Request
from npmerge.reports.folder import REPORT
from npmerge.reports.tables import markdown_table
from npmerge.version import __version__


def summary(request: Request, method: str, parents: Parents, figures: Sequence[str] = ()) -> dict[str, Any]:
    """What `summary.json` says of the request; `written` lists the files."""
    return {
        "npmerge": __version__,
        "jax": jax.__version__,
        "numpy": np.__version__,
        "command": request.command,
        "method": method,
        "seed": request.seed,
        "architecture": architecture(parents.config),
        "batch_statistics": has_statistics(parents.models[0]),
        "sources": [source.named for source in parents.sources],
        "data": described(parents.data),
        "written": [MERGED, *REPORT, *figures],
    }


def made_from(content: Mapping[str, Any]) -> list[str]:
    """The last lines of every page: the files, the command, the versions."""
    hashes = [(source["file"], f"`{source['sha256']}`") for source in content["sources"]]
    versions = f"npmerge {content['npmerge']}, jax {content['jax']}, numpy {content['numpy']}"
    table = markdown_table(("file", "SHA-256"), hashes)
    return ["## Made from", "", *table, "", f"Command: `{content['command']}`; {versions}.", ""]


def measured(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What the terminal shows of networks by name."""
    return [f"{name}: accuracy {row['accuracy']:.3f}, loss {row['loss']:.3f}" for name, row in rows.items()]
