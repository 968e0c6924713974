"""What is wrong with a checkpoint that cannot be read."""

from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A checkpoint that is damaged, lies about itself or holds what is not read.

    Attributes:
        path: of the file.
        reason: what was got and what was expected.
        key: the tensor or entry that it is about; None for the file itself.
    """

    def __init__(self, path: Path | str, reason: str, key: str | None = None):
        super().__init__(f"{path}: {reason}" if key is None else f"{path}: {short(key)} {reason}")
        self.path, self.reason, self.key = path, reason, key


def short(value: Any, most: int = 200) -> str:
    """A value of a stranger's file as Python writes it, cut to a length that a line can hold."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def from_hub(path: str | Path) -> str:
    """The end of a message on a path that is not there, where it may be the name of a model on a hub; else empty."""
    name = str(path)
    if "/" in name or "." in name:
        return ""
    return f"; a model of the hub is downloaded first: hf download {name} --local-dir {name}"
