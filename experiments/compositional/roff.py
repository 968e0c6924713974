"""Passages of manual pages: the text between two macros that begin a paragraph, without what only formats it."""

import gzip
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

SHORTEST, LONGEST = 60, 400
"""Characters of a passage: shorter ones are headings, what is longer is cut."""

INLINE = frozenset(("B", "I", "BI", "BR", "IB", "IR", "RB", "RI", "SM", "SB", "Nm", "Ar", "Fl", "Pa"))
"""Macros whose arguments are words of the text."""

OPENING, CLOSING = frozenset(("nf", "EX", "TS", "de", "am", "Bd")), frozenset(("fi", "EE", "TE", ".", "Ed"))
"""What is between them is no running text: examples, tables, definitions of macros."""

ESCAPE = re.compile(
    r'\\(?:"[^\n]*|f(?:\[[^]]*\]|\(..|.)|m\[[^]]*\]|s[-+]?\d+|\*?(?:\[(?P<long>[^]]*)\]|\((?P<short>..))|(?P<sign>.)|$)'
)
"""A comment, a font, a colour, a size; a glyph or a string by its name; a sign by itself."""

SIGNS = {"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "'", "`": "`", ".": "."}
GLYPHS = dict.fromkeys(("aq", "cq", "oq", "Aq"), "'") | dict.fromkeys(("lq", "rq", "dq", "Bq", "bq"), '"')
GLYPHS |= {"ss": "ß", "Fo": "«", "Fc": "»", "en": "-", "em": "-", "hy": "-", "rs": "\\", "at": "@", "ha": "^", "ti": "~"}
ACCENTS = {":": "\N{COMBINING DIAERESIS}", "'": "\N{COMBINING ACUTE ACCENT}", "`": "\N{COMBINING GRAVE ACCENT}"}
ACCENTS |= {"^": "\N{COMBINING CIRCUMFLEX ACCENT}", ",": "\N{COMBINING CEDILLA}", "~": "\N{COMBINING TILDE}"}
"""What a name has before the letter that it is on."""

SECTION = re.compile(r"\(\d\w*\)")
"""What would tell the section of the pages that a passage names."""


def passages_of(path: Path) -> list[str]:
    """The passages of a page, in their order. None of a page that only names another one."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", "ignore")
    found = (" ".join(SECTION.sub("", " ".join(words)).split()) for words in _paragraphs(text))
    return list(dict.fromkeys(passage[:LONGEST] for passage in found if len(passage) >= SHORTEST))


def _paragraphs(text: str) -> Iterator[list[str]]:
    """The lines of each, without macros and escapes."""
    lines: list[str] = []
    closed = True
    for line in text.splitlines():
        if line[:1] not in (".", "'"):
            lines += [plain(line)] if closed else []
            continue
        name, _, arguments = line[1:].strip().partition(" ")
        if name in INLINE and closed:
            lines.append(plain(arguments.replace('"', "")))
            continue
        closed = name in CLOSING or (closed and name not in OPENING)
        if name and not name.startswith('\\"'):
            yield lines
            lines = []
    yield lines


def plain(line: str) -> str:
    """A line with letters for the glyphs that are named, and without all other escapes."""
    return ESCAPE.sub(_letters, line) if "\\" in line else line


def _letters(escape: re.Match[str]) -> str:
    name = escape["long"] or escape["short"] or ""
    if len(name) == 2 and name[0] in ACCENTS and name[1].isalpha():
        return unicodedata.normalize("NFC", name[1] + ACCENTS[name[0]])
    return GLYPHS.get(name, "") or SIGNS.get(escape["sign"] or "", "")
