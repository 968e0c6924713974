"""The page of what was tried: how many faults tests notice, room by room, and what stands against those they do not."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REASONS = Path(__file__).with_name("reasons.toml")
"""Of faults that no test noticed, by name: why none is needed (nothing changes that is promised), or which notices it since."""


def page(rows: Sequence[Mapping[str, Any]], reasons: Mapping[str, str], about: str) -> str:
    """Markdown: counts by room, then every fault that was not noticed.

    Args:
        rows: a fault each with its outcome.
        reasons: by name of the fault.
        about: the command and what it ran on.
    """
    from npmerge.reports.tables import markdown_table  # not before the faults were in the packages

    rooms: dict[str, list[str]] = {}
    for row in rows:
        parts = Path(row["file"]).parts
        rooms.setdefault("/".join(parts[:2]) if len(parts) > 2 else f"{parts[0]}/", []).append(row["outcome"])
    header = ("room", "faults", "noticed", "of them by time", "not noticed", "share noticed")
    table = [_counts(room, found) for room, found in sorted(rooms.items())]
    table.append(_counts("all", [row["outcome"] for row in rows]))
    lines = ["# Faults and whether tests notice them", "", *markdown_table(header, table), ""]
    left = [row for row in rows if row["outcome"] == "survived"]
    if left:
        lines += ["## Not noticed", ""]
        lines += [f"- line {row['line']} of {row['name']}: {reasons.get(row['name'], 'no reason is known')}" for row in left]
        lines += [""]
    return "\n".join([*lines, about, ""])


def reasons() -> dict[str, str]:
    """What is known of faults that no test notices."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}


def _counts(room: str, outcomes: Sequence[str]) -> tuple[str, ...]:
    late, left = outcomes.count("timed out"), outcomes.count("survived")
    noticed = len(outcomes) - left
    return room, str(len(outcomes)), str(noticed), str(late), str(left), f"{noticed / len(outcomes):.1%}"
