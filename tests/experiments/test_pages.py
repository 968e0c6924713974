"""Every committed page says what its rows say."""

import pytest

from experiments.pages import PAGES, RESULTS


@pytest.mark.parametrize("name", [name for name in PAGES if (RESULTS / name).is_dir()])
def test_the_committed_page_is_that_of_its_rows(name):
    assert (RESULTS / name / "README.md").read_text(encoding="utf-8") == PAGES[name](RESULTS / name)
