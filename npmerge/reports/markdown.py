"""A page as Markdown, its figures as files beside it."""

import re
from collections.abc import Iterator

from npmerge.reports.page import Figure, Headline, Listing, Page, Part, Points, Section, Table, Warnings
from npmerge.reports.tables import markdown_table

_CODE = re.compile(r"(`[^`\n]*`)")


def markdown(page: Page) -> str:
    """The text of `report.md`."""
    lines = [f"# {inline(page.title)}", ""]
    lines += [inline(page.lead), ""] if page.lead else []
    lines += [*map(_headline, page.headlines), ""] if page.headlines else []
    for section in page.sections:
        lines += _section(section)
    return "\n".join([*lines, *([inline(page.foot), ""] if page.foot else [])])


def inline(text: str) -> str:
    """A line in which nothing is HTML, a link or an image, whatever names stand in it."""
    pieces = _CODE.split(" ".join(text.splitlines()))
    return "".join(piece if k % 2 else _plain(piece) for k, piece in enumerate(pieces))


def _plain(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("](", r"]\(").replace("*", r"\*")


def _headline(headline: Headline) -> str:
    note = f" ({inline(headline.note)})" if headline.note else ""
    return f"- {inline(headline.label)}: **{inline(headline.value)}**{note}"


def _section(section: Section) -> Iterator[str]:
    if section.title:
        yield from (f"## {inline(section.title)}", "")
    for part in section.parts:
        yield from (*_part(part), "")


def _part(part: Part) -> list[str]:
    match part:
        case str():
            return [inline(part)]
        case Points(lines):
            return [f"- {inline(line)}" for line in lines]
        case Warnings(lines):
            return [line for text in lines for line in (f"Warning: {inline(text)}{'' if text.endswith('.') else '.'}", "")][:-1]
        case Table():
            return _titled(part.folded) + markdown_table(
                [_cell(x) for x in part.header], [[_cell(x) for x in row] for row in part.rows]
            )
        case Figure():
            return [f"![{inline(part.title)}]({part.name}.png)", "", inline(part.words)]
        case Listing():
            return _titled(part.folded) + _fenced(part)


def _titled(title: str) -> list[str]:
    return [f"{inline(title)}:", ""] if title else []


def _cell(text: str) -> str:
    return inline(text).replace("|", r"\|")


def _fenced(listing: Listing) -> list[str]:
    longest = max(map(len, re.findall("`+", listing.text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{listing.language}", listing.text.strip("\n"), fence]
