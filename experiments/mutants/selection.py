"""Which tests run a line: read from what a run of the suite under coverage has recorded."""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.mutants.operators import Mutant

FEW = 40
"""Tests of the first round. Most faults are noticed by one of them."""


@dataclass(frozen=True)
class Covered:
    """For each file the tests of each line.

    Attributes:
        lines: node ids by file and line.
        files: node ids by file, for what is executed when it is imported.
    """

    lines: Mapping[str, Mapping[int, frozenset[str]]]
    files: Mapping[str, frozenset[str]]

    def tests(self, mutant: Mutant) -> list[str]:
        """All tests that execute the line; of a line that is executed on import only, all that execute the file."""
        found = self.lines.get(mutant.file, {}).get(mutant.line, frozenset())
        return sorted(found or self.files.get(mutant.file, frozenset()))

    def few(self, mutant: Mutant) -> list[str]:
        """Some of them: those of the file that mirrors the mutant's first, then near ones, of as many functions as possible."""
        draw = random.Random(mutant.name)
        tests = self.tests(mutant)
        draw.shuffle(tests)
        mirror = "tests/" + mutant.file.replace(Path(mutant.file).name, f"test_{Path(mutant.file).name}")
        seen: dict[str, int] = {}
        ranks: list[tuple[bool, bool, int, int, int]] = []
        for test in tests:
            function = test.split("[")[0]
            seen[function] = seen.get(function, 0) + 1
            near = len(Path(os.path.commonpath(["tests/" + mutant.file, test.split("::")[0]])).parts)
            ranks.append((seen[function] > 2, not test.startswith(mirror), seen[function], -near, len(ranks)))
        return [test for _, test in sorted(zip(ranks, tests, strict=True))][:FEW]


def covered(data: Path, files: Sequence[str], root: Path) -> Covered:
    """Read the record of `pytest --cov --cov-context=test`.

    Raises:
        ValueError: if there is none, or it does not say which test ran a line.
    """
    if not data.is_file():
        raise ValueError(
            f"{data} is not there: run the suite with --cov=alignment --cov=npmerge --cov-branch --cov-context=test"
        )
    from coverage import CoverageData

    record = CoverageData(str(data))
    record.read()
    lines = {}
    for file in files:
        found = record.contexts_by_lineno(str(root / file))
        lines[file] = {line: frozenset(c.rsplit("|", 1)[0] for c in contexts if "::" in c) for line, contexts in found.items()}
    if not any(tests for by_line in lines.values() for tests in by_line.values()):
        raise ValueError(f"{data} does not say which test ran a line of {files[0]}, ...: was it made with --cov-context=test?")
    return Covered(lines, {file: frozenset().union(*by_line.values()) for file, by_line in lines.items()})
