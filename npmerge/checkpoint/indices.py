"""JSON beside weights: objects, and the indices that say which tensor lies in which file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from npmerge.checkpoint.errors import CheckpointError, short
from npmerge.checkpoint.headers import MOST


def read_json(path: Path, most: int = MOST) -> Any:
    """The content of a JSON file of at most so many bytes. Raises CheckpointError for a file that cannot be read or is none."""
    try:
        if path.stat().st_size > most:
            raise CheckpointError(path, f"cannot be read: it takes more than {most} bytes")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"cannot be read: it is no JSON: {str(error)[:200]}") from None


def read_object(path: Path, most: int = MOST) -> dict[str, Any]:
    """As `read_json`, of a file that holds an object. Raises CheckpointError for anything else, too."""
    content = read_json(path, most)
    if not isinstance(content, dict):
        raise CheckpointError(path, f"expected a JSON object, got {type(content).__name__}")
    return content


def tensors_by_file(index: Path) -> dict[str, set[str]]:
    """The tensors of each file that an index names. Raises CheckpointError for an index that is damaged."""
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(x, str) for x in where.values()):
        raise CheckpointError(index, "is a broken index: expected weight_map, an object from tensors to files")
    names: dict[str, set[str]] = {}
    for tensor, file in where.items():
        names.setdefault(file, set()).add(tensor)
    return names


def check_agreement(index: Path, file: Path, expected: set[str], got: Iterable[str]) -> None:
    """Raises CheckpointError unless a file holds the tensors that its index names."""
    for names, why in ((expected - set(got), "which is not in"), (set(got) - expected, "that it does not name lies in")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(index, f"is a broken index: {short(min(names))}{more}, {why} {file.name}")
