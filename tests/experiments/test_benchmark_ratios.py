import re
from pathlib import Path

import pytest

from experiments.benchmarks.ratios import ASKED, Ratio, ratios, table

RESULTS = Path(__file__).parents[2] / "experiments/results/benchmarks"


@pytest.fixture(scope="module")
def found():
    return ratios(RESULTS)


@pytest.mark.parametrize("pattern", ASKED)
def test_every_limit_is_of_something_that_is_measured(found, pattern):
    limited = [r for r in found if r.asked is not None]
    names = [name for r in limited for name in (f"{r.what} against {r.against}", f"{r.what} against ")]
    assert any(re.fullmatch(pattern, name) for name in names)


def test_the_table_marks_what_is_above_its_limit():
    rows = [Ratio("a", "b", 1.4, 1.35, "../x"), Ratio("c", "d", 0.5, 1.0, ".."), Ratio("e", "f", 9.0, None, "..")]
    assert [r.short for r in rows] == [True, False, False]
    lines = table(rows)[2:]
    assert lines[0] == "| [a](../x/README.md) | b | 1.4 | 1.35 | more |"
    assert lines[2] == "| [e](../README.md) | f | 9 |  |  |"


def test_pages_of_the_rows_are_there(found):
    assert len(found) > 50
    for row in found:
        assert (RESULTS / "all" / row.page / "README.md").resolve().is_file()
