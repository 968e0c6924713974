"""A page and its two renderings: what is in one is in the other, and nothing of a name becomes markup."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from npmerge.reports import charts
from npmerge.reports.folder import write_page
from npmerge.reports.html import html
from npmerge.reports.intervals import Interval
from npmerge.reports.markdown import markdown
from npmerge.reports.page import Figure, Headline, Listing, Page, Points, Table, Warnings, code, filled, section, table
from npmerge.reports.style import SERIES, VARIABLES, drawn, for_page

EVIL = "<script>alert('1')</script>"
ROWS = {"a": Interval(0.5, 0.4, 0.6), "_b $x$": Interval(0.75, 0.7, float("inf"))}


def chart(name: str = "curve") -> Figure:
    return Figure(name, f"Of {EVIL}", "Two <b>words</b>.", lambda: charts.ranges(ROWS, "accuracy", "a"))


def everything(name: str) -> Page:
    """Each part, with a name of a user in all of its texts."""
    parts = (
        f"words of {name} and {code(name)}",
        Points((f"point {name}",)),
        Warnings((f"beware of {name}",)),
        Table((f"head {name}", "n"), ((f"row {name}", "12.5"),), folded=f"fold {name}"),
        Listing(f"listing {name}", "yaml", f"recipe {name}"),
    )
    return Page(
        f"title {name}", (section(f"section {name}", *parts),), f"lead {name}", (Headline(f"l {name}", name, name),), name
    )


class Seen(HTMLParser):
    """The tags and the text of a page, with a check that every tag is closed."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text, self.open, self.attributes = list[str](), "", list[str](), list[tuple]()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_nothing_that_a_user_names_becomes_markup():
    plain, evil = Seen(html(everything("NAME"), {})), Seen(html(everything(EVIL), {}))
    assert plain.tags == evil.tags and "script" not in evil.tags
    assert evil.text.count(EVIL) == plain.text.count("NAME") > 10
    found = markdown(everything(EVIL + " [x](http://y) *z* a|b\nc"))
    outside = re.sub(r"```.*?```|`[^`\n]*`", "", found, flags=re.DOTALL)
    assert "<script" not in outside and "&lt;script>" in outside
    assert "](http" not in outside and "| row" in outside and r"a\|b c" in outside
    assert "listing <script>" in found  # as it is, between fences


def test_backticks_of_a_name_end_no_code():
    assert code("a`b") == "`a\u2019b`"
    fenced = markdown(Page("t", (section("s", Listing("a\n```\nb", "sh")),)))
    assert "````sh\na\n```\nb\n````" in fenced


def test_markdown_of_each_part():
    said = markdown(everything("x"))
    for line in (
        "# title x",
        "lead x",
        "- l x: **x** (x)",
        "## section x",
        "words of x and `x`",
        "- point x",
        "Warning: beware of x.",
        "fold x:\n\n| head x | n |\n|---|---:|\n| row x | 12.5 |",
        "recipe x:\n\n```yaml\nlisting x\n```",
    ):
        assert f"\n{line}\n" in f"\n{said}\n"


def test_parts_that_are_not_there_are_left_out():
    kept = section("t", None, "", Points(()), Warnings(()), "words")
    assert kept.parts == ("words",)
    assert filled(kept, section("empty", None)) == (kept,)
    assert table([("a", "b"), ("1", "2")]) == Table(("a", "b"), (("1", "2"),))


def test_contents_are_told_of_three_sections_or_more():
    several = tuple(section(f"part {k}", "words") for k in range(3))
    assert Seen(html(Page("t", several), {})).text.count("part 2") == 2
    assert "nav" not in Seen(html(Page("t", several[:2]), {})).tags


def test_charts_are_named_and_described_and_take_the_colours_of_the_page():
    svg = drawn(chart()).svg
    seen = Seen(svg)
    attributes = dict(seen.attributes)
    assert attributes["aria-labelledby"] == "curve-title curve-desc" and attributes["role"] == "img"
    assert f"Of {EVIL}" in seen.text and "Two <b>words</b>." in seen.text
    assert seen.tags.count("svg") == seen.tags.count("title") == seen.tags.count("desc") == 1
    assert not [colour for colour in VARIABLES if colour in svg] and "var(--s1)" in svg and "var(--soft)" in svg
    assert "metadata" not in seen.tags and "<?xml" not in svg
    ids = [value for key, value in seen.attributes if key == "id"]
    assert all(x.startswith("curve-") for x in ids)
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
    assert used and set(used) <= set(ids)
    assert {"a", "accuracy"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert any("$x$" in text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg))  # no mathematics


@pytest.mark.parametrize(("points", "least"), [(480, ""), (720, "min-width:691px;")])
def test_a_chart_shrinks_to_the_page_and_only_a_wide_one_stops(points, least):
    found = for_page(f'<svg width="{points}pt" height="30pt" viewBox="0 0 1 1"></svg>', chart())
    assert f'style="width:100%;{least}max-width:{points * 4 // 3}px"' in found


def test_names_in_any_script_are_text_of_a_chart():
    rows = {"模型 $\\bad{ $": Interval(0.5, 0.4, 0.6)}
    svg = drawn(Figure("a", "t", "w", lambda: charts.ranges(rows, "accuracy", ""))).svg
    assert "模型 $\\bad{ $" in svg


def test_the_same_numbers_give_the_same_bytes(tmp_path):
    page = Page("t", (section("s", chart("one"), chart("two")),))
    files = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_page(folder, page)
        files.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert files[0] == files[1] and set(files[0]) == {"report.md", "report.html", "one.png", "two.png"}
    text = files[0]["report.html"].decode()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids) > 20
    assert not re.search(r'(src|href)="(?!#|data:)', text) and "@import" not in text and "url(http" not in text


def test_a_map_has_a_cell_for_each_number_and_leaves_others_empty():
    values = np.array([[0.1, 0.2], [np.nan, 0.4], [0.3, 0.5]])
    figure = charts.depth_map(values, ["in", "mid", "out"], ["a", "_b"], "share")
    axes = figure.axes[0]
    assert [x.get_text() for x in axes.get_yticklabels()] == ["in", "mid", "out"] and axes.yaxis_inverted()
    assert [x.get_text() for x in axes.texts] == ["0.1", "0.2", "0.4", "0.3", "0.5"]
    np.testing.assert_array_equal(np.ma.filled(axes.collections[0].get_array(), np.nan), values)
    assert not charts.depth_map(np.zeros((200, 2)), [str(k) for k in range(200)], ["a", "b"], "share").axes[0].texts


@pytest.mark.parametrize(("percent", "scale"), [(False, 1), (True, 100)])
def test_ranges_show_values_and_their_ends(percent, scale):
    (axes,) = charts.ranges({"a": ROWS["a"], "b": ROWS["_b $x$"]}, "accuracy", "a", percent=percent).axes
    dots = [container.lines[0] for container in axes.containers]
    assert [float(x.get_xdata()[0]) for x in dots] == [0.5 * scale, 0.75 * scale]
    assert [x.get_color() for x in dots] == ["C0", "C7"]
    ends = axes.containers[0].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(ends[:, 0], [0.4 * scale, 0.6 * scale])
    assert axes.containers[1].lines[2] == () or not axes.containers[1].has_xerr  # an interval without end is not drawn
    assert [x.get_text() for x in axes.get_yticklabels()] == ["a", "b"]


def test_other_charts_show_what_they_are_given():
    (axes,) = charts.losses([3.0, 2.0, 1.0], [0, 3], [2.5, 1.5]).axes
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    np.testing.assert_array_equal(axes.lines[1].get_xydata(), [[0, 2.5], [3, 1.5]])
    (axes,) = charts.by_depth({"a": [1.0, 2.0], "b": [3.0, 4.0]}, ["x", "y"], "share", level=0.5).axes
    assert [line.get_ydata()[0] for line in axes.lines] == [1.0, 3.0, 0.5]
    assert [x.get_text() for x in axes.get_xticklabels()] == ["x", "y"]
    for count, scale in ((8, "linear"), (800, "log")):
        assert charts.histogram([0, 1, 2], {"a": [5, 6], "b": [7, count]}).axes[0].get_yscale() == scale
    (axes,) = charts.histogram([0, 1, 2], {"a": [5, 6], "b": [7, 8]}).axes
    assert [x.get_data().values.tolist() for x in axes.patches] == [[5, 6], [7, 8]]
    (axes,) = charts.paths({"b": ([0, 1], [2.0, 3.0])}, "a").axes
    assert axes.get_legend().get_texts()[0].get_text() == "to b" and axes.get_xlabel().endswith("from a")


def test_long_names_are_broken_where_words_end_or_anywhere():
    assert charts.wrapped("a name of words", 8) == "a name\nof words"
    assert charts.wrapped("x" * 20, 8) == "\n".join(["x" * 8, "x" * 8, "x" * 4])
    assert charts.wrapped("", 8) == ""


def test_colours_of_models_are_told_apart():
    assert len(set(SERIES)) == len(SERIES) == 8
