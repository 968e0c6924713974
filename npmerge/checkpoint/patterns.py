"""Regular expressions of strangers, matched in bounded time: some take longer than anyone waits."""

import math
import re
import time
from pathlib import Path

import regex

from npmerge.checkpoint.errors import CheckpointError, short

SECONDS = 10.0
"""That all patterns of a file may take together."""

LONGEST = 10_000
"""Characters of a pattern."""

MOST_REPEATS = 10_000
"""All its counts multiplied: `(a{100}){100}` is laid out as so many."""


class Patterns:
    """Matches the patterns of one file.

    Args:
        path: of the file, for messages.
    """

    def __init__(self, path: Path):
        self.path, self._left = path, SECONDS

    def check(self, key: str, pattern: str) -> None:
        """Raises CheckpointError for what is no regular expression of Python, or one that is very long or repeats too much."""
        if len(pattern) > LONGEST:
            raise CheckpointError(self.path, f"holds a pattern of {len(pattern)} characters, at most {LONGEST} are read", key)
        counts = [int(x[:20]) for x in re.findall(r"(?<=[{,])\s*(\d+)", pattern)]
        if math.prod(max(x, 1) for x in counts) > MOST_REPEATS:
            raise CheckpointError(self.path, f"holds {short(pattern)}, which repeats more than {MOST_REPEATS} times", key)
        try:
            re.compile(pattern)  # knows less than `regex`, such as no recursion
            regex.compile(pattern)
        except (re.error, regex.error, RecursionError, OverflowError, MemoryError) as error:
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
        except (TimeoutError, MemoryError):
            pass
        finally:
            self._left -= time.monotonic() - begun
        raise CheckpointError(self.path, f"takes more than {SECONDS:.0f} seconds, or all memory, to match {short(pattern)}")
