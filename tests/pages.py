"""The two renderings of a report, beside each other."""

import re
from html.parser import HTMLParser
from pathlib import Path


class Tables(HTMLParser):
    """The cells of all tables of a page, and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.rows, self.words, self.inside = list[list[str]](), "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data):
        self.words += data
        if self.inside:
            self.rows[-1][-1] += data


def both_pages(folder: Path) -> tuple[list[list[str]], str]:
    """The rows of all tables, which Markdown and HTML have alike, and the words of the page."""
    lines = (folder / "report.md").read_text().splitlines()
    rows = [[x.strip().strip("`") for x in line.strip("|").split(" | ")] for line in lines if re.match(r"\| ", line)]
    page = Tables((folder / "report.html").read_text())
    assert page.rows == rows
    return rows, page.words
