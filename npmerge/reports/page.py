"""A page as values: what every report says, once, however it is rendered.

`npmerge.reports.markdown` and `npmerge.reports.html` render the same page. Texts are plain, but for names and commands between
backticks; whatever else is in them, such as `<` in a model's name, is shown as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells as text, the first column of names, the others of numbers.

    Attributes:
        header: of each column.
        rows: as long as the header.
        folded: in the HTML page behind this line, for tables of many rows; empty to show it at once.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart that is drawn when the page is written.

    Attributes:
        name: of its file, without ending.
        title: what it shows.
        words: the same in a sentence or two, for those who do not see it.
        draw: returns a figure of matplotlib.
    """

    name: str
    title: str
    words: str
    draw: Callable[[], Any] = field(compare=False)


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file or on a command line.

    Attributes:
        text: as it is.
        language: of it, for Markdown.
        folded: as of a table.
    """

    text: str
    language: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Points:
    """A list, a line each."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Warnings:
    """What readers must not overlook, a line each."""

    lines: tuple[str, ...]


Part = str | Points | Warnings | Table | Figure | Listing


@dataclass(frozen=True)
class Section:
    """A part of a page; the first may do without a title."""

    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Headline:
    """A result in numbers, at the top of the page: what it is of, the numbers, and what they were measured on."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: of it.
        lead: what came out, in a sentence or two; may be empty.
        headlines: the results in numbers.
        sections: in order.
        foot: the last line: command and versions.
    """

    title: str
    sections: tuple[Section, ...]
    lead: str = ""
    headlines: tuple[Headline, ...] = ()
    foot: str = ""

    @property
    def figures(self) -> Iterator[Figure]:
        """All of them, in order."""
        return (part for section in self.sections for part in section.parts if isinstance(part, Figure))


def section(title: str, *parts: Part | None) -> Section:
    """A section of those parts that there are: None, empty texts and lists without lines are left out."""
    return Section(title, tuple(part for part in parts if part and getattr(part, "lines", True)))


def filled(*sections: Section) -> tuple[Section, ...]:
    """Those that have parts."""
    return tuple(x for x in sections if x.parts)


def table(rows: Sequence[tuple[str, ...]], *, folded: str = "") -> Table:
    """A table whose first row is its header."""
    return Table(rows[0], tuple(rows[1:]), folded)


def code(text: object) -> str:
    """A name or a command between backticks, of which it must have none inside."""
    return f"`{str(text).replace('`', chr(0x2019))}`"
