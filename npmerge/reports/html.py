"""A page as one HTML file: no network, no JavaScript, charts and styles inside."""

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template

from npmerge.reports.page import Figure, Headline, Listing, Page, Part, Points, Section, Table, Warnings

_CODE = re.compile(r"`([^`\n]*)`")


def html(page: Page, charts: Mapping[str, str]) -> str:
    """The text of `report.html`.

    Args:
        page: what it says.
        charts: SVG of each of its figures, by name, as `npmerge.reports.style.drawn` makes them.
    """
    here = files("npmerge.reports")
    sections = [_section(section, k, charts) for k, section in enumerate(page.sections)]
    return Template((here / "report.html").read_text(encoding="utf-8")).substitute(
        style=(here / "report.css").read_text(encoding="utf-8"),
        title=escape(page.title.replace("`", "")),
        heading=inline(page.title),
        lead=f'<p class="lead">{inline(page.lead)}</p>' if page.lead else "",
        headlines=_headlines(page.headlines),
        contents=_contents(page.sections),
        sections="\n".join(sections),
        foot=inline(page.foot),
    )


def inline(text: str) -> str:
    """Text in which nothing is HTML; what is between backticks is code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def _headlines(headlines: tuple[Headline, ...]) -> str:
    tiles = [
        f"<div><dt>{inline(x.label)}</dt><dd>{inline(x.value)}{f'<small>{inline(x.note)}</small>' if x.note else ''}</dd></div>"
        for x in headlines
    ]
    return f'<dl class="headlines">{"".join(tiles)}</dl>' if tiles else ""


def _contents(sections: tuple[Section, ...]) -> str:
    titled = [(k, section.title) for k, section in enumerate(sections) if section.title]
    if len(titled) < 3:
        return ""
    links = [f'<li><a href="#section-{k}">{inline(title)}</a></li>' for k, title in titled]
    return f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav>'


def _section(section: Section, number: int, charts: Mapping[str, str]) -> str:
    heading = f'<h2 id="section-{number}">{inline(section.title)}</h2>' if section.title else ""
    return "\n".join(["<section>", heading, *(_part(part, charts) for part in section.parts), "</section>"])


def _part(part: Part, charts: Mapping[str, str]) -> str:
    match part:
        case str():
            return f"<p>{inline(part)}</p>"
        case Points(lines):
            return f"<ul>{''.join(f'<li>{inline(line)}</li>' for line in lines)}</ul>"
        case Warnings(lines):
            return "".join(f'<p class="warning"><strong>Warning</strong> {inline(line)}</p>' for line in lines)
        case Table():
            return _folded(_table(part), part.folded)
        case Figure():
            box = _scrolling(charts[part.name], part.title, "chart")
            return f"<figure>{box}<figcaption><strong>{inline(part.title)}.</strong> {inline(part.words)}</figcaption></figure>"
        case Listing():
            return _folded(_scrolling(f"<pre>{escape(part.text.strip(chr(10)))}</pre>", part.folded or "text"), part.folded)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{inline(cell)}</th>' for cell in table.header)
    rows = [
        f'<tr><th scope="row">{inline(row[0])}</th>{"".join(f"<td>{inline(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    ]
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return _scrolling(body, f"table: {', '.join(filter(None, table.header))}")


def _scrolling(inside: str, label: str, kind: str = "") -> str:
    """A box of its own for what may be wider than the page; it can be scrolled by keyboard, too."""
    name = escape(label.replace("`", ""))
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{name}">{inside}</div>'


def _folded(inside: str, title: str) -> str:
    return f"<details><summary>{inline(title)}</summary>{inside}</details>" if title else inside
