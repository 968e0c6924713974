"""Every committed page says what its rows say."""

import pytest

from experiments.gallery import gallery
from experiments.pages import PAGES, RESULTS
from experiments.run import read_rows


@pytest.mark.parametrize("name", [name for name in PAGES if (RESULTS / name).is_dir()])
def test_the_committed_page_is_that_of_its_rows(name):
    assert (RESULTS / name / "README.md").read_text(encoding="utf-8") == PAGES[name](RESULTS / name)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/rows.csv")), ids=lambda path: path.parent.name)
def test_no_committed_row_stands_twice(path):
    """Two runs at once in one folder would do that, and differ in nothing but times."""
    timed = ("seconds", "merging", "aligning")
    rows = [tuple((name, str(value)) for name, value in row.items() if name not in timed) for row in read_rows(path)]
    assert len(set(rows)) == len(rows)


@pytest.mark.skipif(not (RESULTS / "claims").is_dir(), reason="the page of claims is not there yet")
def test_the_committed_page_of_claims_is_that_of_its_rows():
    assert (RESULTS / "claims" / "README.md").read_text(encoding="utf-8") == gallery(RESULTS)
