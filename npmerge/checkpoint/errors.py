"""What is wrong with a checkpoint that cannot be read."""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that is damaged, lies about itself or holds what is not read.

    Attributes:
        path: of the file.
        reason: what was got and what was expected.
        key: the tensor or entry that it is about; None for the file itself.
    """

    def __init__(self, path: Path | str, reason: str, key: str | None = None):
        super().__init__(f"{path}: {reason}" if key is None else f"{path}: {key!r} {reason}")
        self.path, self.reason, self.key = path, reason, key
