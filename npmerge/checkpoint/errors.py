"""What readers of checkpoints raise."""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint that cannot be read.

    Attributes:
        path: of the file, or what stands for it.
        key: the tensor or entry that is at fault, if one is.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path | str, reason: str, key: str | None = None):
        self.path, self.reason, self.key = path, reason, key
        super().__init__(f"{path}: {reason}" if key is None else f"{path}: {key!r} {reason}")
