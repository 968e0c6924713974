"""Regular expressions of strangers, matched in bounded time: some take longer than anyone waits."""

import time
from pathlib import Path

import regex

from npmerge.checkpoint.errors import CheckpointError, short

SECONDS = 10.0
"""That all patterns of a file may take together; PEFT's own take microseconds."""

LONGEST = 10_000
"""Characters of a pattern."""


class Patterns:
    """Matches the patterns of one file.

    Args:
        path: of the file, for messages.
    """

    def __init__(self, path: Path):
        self.path, self._left = path, SECONDS

    def check(self, key: str, pattern: str) -> None:
        """Raises CheckpointError for what is no regular expression, or a very long one."""
        if len(pattern) > LONGEST:
            raise CheckpointError(self.path, f"holds a pattern of {len(pattern)} characters, at most {LONGEST} are read", key)
        try:
            regex.compile(pattern)
        except (regex.error, RecursionError, OverflowError, MemoryError) as error:
            raise CheckpointError(self.path, f"holds {short(pattern)}, no regular expression: {error}", key) from None

    def match(self, pattern: str, text: str) -> bool:
        """Whether a pattern matches from the beginning of a text, as `re.match`.

        Raises:
            CheckpointError: patterns that take longer than `SECONDS` in all.
        """
        begun = time.monotonic()
        try:
            if self._left > 0:
                return regex.match(pattern, text, timeout=self._left) is not None
        except TimeoutError:
            pass
        finally:
            self._left -= time.monotonic() - begun
        raise CheckpointError(self.path, f"takes more than {SECONDS:.0f} seconds to match {short(pattern)}")
