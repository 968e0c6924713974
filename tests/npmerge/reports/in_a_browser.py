"""Reports in a real browser: `python -m pytest tests/npmerge/reports/in_a_browser.py`, for which Chromium must be installed.

Screenshots stay in build/screenshots.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from tests.chromium import BROWSER, Chromium
from tests.npmerge.learning.digits import learn, recipe, run, write_all

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

SHOTS = Path(__file__).resolve().parents[3] / "build" / "screenshots"
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, Path]:
    """A learned merge with all of its sections, a plain one with a base, a comparison, an alignment."""
    here = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        write_all(here)
        blocks = {"learn": learn(steps=10), "align": {"method": "activation_matching"}}
        (here / "learned.yml").write_text(recipe(**blocks))
        run("merge", "learned.yml", "learned", "--report", "-q")
        rng = np.random.default_rng(0)
        names = [f"layers.{k}.{x}" for k in range(12) for x in ("attention.weight", "mlp.weight")]
        for model in ("base", "a model with a name that is much longer than others", EVIL.replace("/", "")):
            save_file({x: rng.standard_normal((8, 8)).astype(np.float32) for x in names}, here / f"{model}.safetensors")
        models = [
            {"model": str(x), "parameters": {"weight": 0.5}}
            for x in sorted(here.glob("*[e>rs].safetensors"))
            if x.stem not in "ab"
        ]
        models = [x for x in models if "base" not in x["model"]]
        (here / "plain.yml").write_text(
            yaml.safe_dump({"merge_method": "task_arithmetic", "base_model": "base.safetensors", "models": models})
        )
        run("merge", "plain.yml", "plain", "--report", "-q")
        run("compare", *(str(x["model"]) for x in models), "--base", "base.safetensors", "--out", "compared")
        run("align", "a.safetensors", "b.safetensors", "--data", "test.npz", "--points", "3", "--out", "aligned")
    return {name: here / name / "report.html" for name in ("learned", "plain", "compared", "aligned")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.mark.parametrize("name", ["learned", "plain", "compared", "aligned"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False)], ids=["desktop", "dark", "phone"])
def test_a_report_opens_from_disk(browser, reports, name, width, dark):
    browser.open(reports[name], width=width, dark=dark)
    browser.screenshot(SHOTS / f"{name}-{'dark' if dark else width}.png")
    assert browser.told("Log.entryAdded") == browser.told("Runtime.exceptionThrown") == []
    assert browser.told("Runtime.consoleAPICalled") == browser.told("Page.javascriptDialogOpening") == []
    asked = [x["request"]["url"] for x in browser.told("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [reports[name].as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('script').length") == 0
    sizes = browser.evaluate(
        "[...document.querySelectorAll('svg.chart')].map(x => [x.getBoundingClientRect().width, "
        "x.getBoundingClientRect().height, x.querySelectorAll('path, use').length, x.querySelectorAll('text').length])"
    )
    assert sizes and all(w > 200 and h > 80 and paths > 4 and texts > 2 for w, h, paths, texts in sizes)
    figures = browser.evaluate("document.querySelectorAll('figure').length")
    assert len(sizes) == figures == len(list(reports[name].parent.glob("*.png")))
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark


@pytest.mark.parametrize("name", ["learned", "compared"])
def test_no_text_of_a_chart_is_cut_off(browser, reports, name):
    browser.open(reports[name], width=1200)
    outside = browser.evaluate(
        "[...document.querySelectorAll('svg.chart')].flatMap(svg => { const box = svg.getBoundingClientRect(); "
        "return [...svg.querySelectorAll('text')].filter(x => { const b = x.getBoundingClientRect(); "
        "return b.left < box.left - 4 || b.right > box.right + 4 || b.top < box.top - 4 || b.bottom > box.bottom + 4; })"
        ".map(x => x.textContent); })"
    )
    assert outside == []


def test_wide_parts_scroll_in_their_own_box_and_by_keyboard(browser, reports):
    browser.open(reports["learned"], width=360)
    wide = browser.evaluate("[...document.querySelectorAll('.scroll')].filter(x => x.scrollWidth > x.clientWidth).length")
    assert wide > 2
    assert browser.evaluate("[...document.querySelectorAll('.scroll')].every(x => x.tabIndex === 0 && x.ariaLabel)")


@pytest.mark.parametrize(("name", "scrolling"), [("learned", 0), ("plain", 0), ("compared", 1)])
def test_charts_are_whole_on_a_phone_but_for_wide_maps(browser, reports, name, scrolling):
    browser.open(reports[name], width=360)
    boxes = "[...document.querySelectorAll('figure .scroll')]"
    assert browser.evaluate(f"{boxes}.filter(x => x.scrollWidth > x.clientWidth + 1).length") == scrolling


def test_names_of_models_are_shown_as_they_are(browser, reports):
    browser.open(reports["plain"], width=1200)
    assert "<script>alert(1)<script>" in browser.evaluate("document.body.innerText")


def test_the_page_prints_in_light_colours_with_everything_unfolded(browser, reports):
    browser.open(reports["learned"], width=800, dark=True, media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert browser.evaluate("document.querySelector('details table').getBoundingClientRect().height") > 20
    assert len(browser.send("Page.printToPDF")["data"]) > 20_000
