"""Strings of an interface in several languages."""

import json
import lzma
from collections.abc import Sequence
from pathlib import Path

STRINGS = Path("text_parallel_ui") / "django_ui_strings.jsonl.xz"
"""Where they are in the folder of data sets."""


def read_strings(path: Path, languages: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of strings by language, a JSON object on each line.

    Args:
        path: of the lines, plain or .xz.
        languages: that are kept; all if empty.

    Raises:
        ValueError: no such file.
    """
    if not path.is_file():
        raise ValueError(
            f"no strings at {path}, expected lines of JSON objects of strings by language: name a folder with --data"
        )
    content = path.read_bytes()
    text = (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line]
    return [{name: row[name] for name in languages or row if name in row} for row in rows]
