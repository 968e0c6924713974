"""The site is made without a warning, from docstrings, and needs no network when it is read."""

import html
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site is made with the extra docs")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings")

import npmerge as nm
from alignment import ALIGNMENTS
from docs import hooks
from tests.docs.pages import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder of the site, made once."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not re.search("^WARNING", ran.stderr, re.M), ran.stderr
    return folder


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_every_public_name_has_its_place_in_the_reference(site):
    for package, names in hooks.homes().items():
        page = text(site / "reference" / f"{package}.html")
        missing = [name for name, x in names.items() if f'id="{hooks.place(package, name, x)}"' not in page]
        assert not missing, package
    page = text(site / "reference" / "npmerge.html")
    assert "Trim, elect signs" not in page  # the module's own words stay in the file
    assert "of largest magnitude are kept" in page
    assert "lost the election" in page  # the example


def test_every_method_has_its_paper_and_a_page_where_it_was_measured(site):
    catalogue = text(site / "catalogue.html")
    rows = {re.findall(r"<code>(\w+)</code>", row)[0]: row for row in re.findall(r"<tr>\n<td>.*?</tr>", catalogue, re.S)}
    names = [x.__name__ for x in (*nm.METHODS, nm.np_merge, nm.ada_merging, nm.dam, *ALIGNMENTS)]
    assert list(rows) == names
    for name in names:
        assert re.search(r"arxiv.org/abs/\d|19\d\d|mergekit", rows[name]), name
    assert all("experiments/results/closed_forms/" in rows[x.__name__] for x in nm.METHODS)
    assert "experiments/results/transformer_alignment/" in rows["GroupMatching"]
    assert "experiments/results/width/" in rows["ZipIt"]


def test_papers_are_those_that_docstrings_name():
    members = {"npmerge": (*nm.METHODS, nm.np_merge, nm.ada_merging, nm.dam), "alignment": ALIGNMENTS}
    for package, things in members.items():
        sources = hooks.papers(f"{package}/methods/README.md")
        for thing in things:
            source, words = sources[thing.__name__], " ".join(thing.__doc__.split())
            authors = re.match(r"[^,;]*? (?:19|20)\d\d", source)
            assert authors[0] in words if authors else source.startswith("mergekit"), thing.__name__


def test_pages_need_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link|iframe)[^>]*?(?:src|href)=\"(https?:[^\"]*)", html.unescape(text(page)))
        assert not loaded, page


def test_tutorials_and_results_are_pages(site):
    page = text(site / "tutorials" / "own_loss.html")
    assert "The control" in page
    assert (site / "tutorials" / "own_loss.ipynb").is_file()
    assert (site / "experiments" / "results" / "demo" / "80-20" / "curves.png").is_file()
    assert 'href="guide/alignments.html"' in text(site / "index.html")
