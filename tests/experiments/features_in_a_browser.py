"""The page of features in a real browser: `python -m pytest tests/experiments/features_in_a_browser.py`, with Chromium.

Screenshots stay in build/screenshots.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.pages import RESULTS
from experiments.run import read_rows
from experiments.universal_features.command import reproduce
from tests.chromium import BROWSER, Chromium

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

SHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The committed page where there is one, else one of the smallest run."""
    if (RESULTS / "universal_features" / "features.html").is_file():
        return RESULTS / "universal_features"
    out = tmp_path_factory.mktemp("features")
    reproduce("test", out, range(1))
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False)], ids=["desktop", "dark", "phone"])
def test_the_page_of_features_opens_from_disk(browser, folder, width, dark):
    path = folder / "features.html"
    browser.open(path, width=width, dark=dark)
    browser.screenshot(SHOTS / f"features-{'dark' if dark else width}.png")
    assert browser.told("Log.entryAdded") == browser.told("Runtime.exceptionThrown") == []
    assert [x["request"]["url"] for x in browser.told("Network.requestWillBeSent")] == [path.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark


def test_features_unfold_and_what_is_active_is_coloured(browser, folder):
    rows = read_rows(folder / "contexts.csv")
    browser.open(folder / "features.html", width=1200)
    assert browser.evaluate("document.querySelectorAll('details').length") == len(rows)
    height = "document.querySelector('details').getBoundingClientRect().height"
    before = browser.evaluate(height)
    browser.evaluate("document.querySelector('summary').click()")
    assert browser.evaluate(height) > before + 20
    colours = browser.evaluate("[...document.querySelectorAll('mark.h9')].map(x => getComputedStyle(x).backgroundColor)")
    assert len(colours) >= len(rows) and set(colours) == {"rgb(217, 98, 43)"}


def test_links_lead_to_each_network(browser, folder):
    browser.open(folder / "features.html", width=1200)
    names = list(dict.fromkeys(row["network"] for row in read_rows(folder / "contexts.csv")))
    assert browser.evaluate("[...document.querySelectorAll('nav a')].map(x => x.textContent)") == names
    found = browser.evaluate("[...document.querySelectorAll('nav a')].map(x => document.querySelector(x.hash).textContent)")
    assert found == names
