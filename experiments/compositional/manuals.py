"""Manual pages and strings of an interface as a corpus: four tasks, in the languages that both are translated into.

The tasks are the section of a passage (1, 5 or 7), whether a string is the translation of an English one, whether two
passages are of one page, and whether the words of a passage are in their order (characters, in Japanese). The base knows them
in English, where strings are beside their translation into Turkish, and of all languages which texts say the same: strings
of the others, and the k-th passages of a page where it has as many in both languages.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Int

from experiments.compositional.corpus import Corpus, Question, at, half, own_or_next, words_mixed
from experiments.compositional.roff import passages_of
from experiments.data.find import SHARED
from experiments.strings import STRINGS, read_strings

FOLDER = Path("/usr/share/man")
LANGUAGES = {"en": "English", "de": "German", "es": "Spanish", "fr": "French", "ja": "Japanese", "ru": "Russian"}
SECTIONS = ("1", "5", "7")
UNSPACED = ("ja",)
OTHER = {"en": "tr"}
"""Where a string stands beside what is none of the grid's languages."""

SECTION, TRANSLATION, PAGE, ORDER = range(4)
MOST = 16
"""Passages of a page that are read."""


class Passages(NamedTuple):
    """Passages of manual pages in one language.

    Attributes:
        texts: of each.
        pages: the number of the page of each, which is that of its translations, too; those of a page are in their order.
        sections: places in `SECTIONS`.
    """

    texts: Sequence[str]
    pages: Int[np.ndarray, " passages"]
    sections: Int[np.ndarray, " passages"]


@dataclass(frozen=True)
class Manuals(Corpus):
    """Passages and strings.

    Attributes:
        passages: by language.
        strings: of an interface, each by language.
        pages: how many there are, in whatever language.
    """

    passages: Mapping[str, Passages]
    strings: Sequence[Mapping[str, str]]
    pages: int

    languages: ClassVar[Mapping[str, str]] = LANGUAGES
    tasks: ClassVar[Mapping[str, int]] = {"section": len(SECTIONS), "translation": 2, "same page": 2, "word order": 2}

    @property
    def found(self) -> str:
        """How many passages there are in each language, and how many strings."""
        counts = ", ".join(f"{len(p.texts):,} in {self.languages[name]}" for name, p in self.passages.items())
        return f"passages of manual pages, {counts}; {len(self.strings):,} strings"

    def groups(self, category: int, language: str) -> Int[np.ndarray, " rows"]:
        """Pages; strings behind them."""
        if category == TRANSLATION:
            return self.pages + self._translated(language)
        return self.passages[language].pages[self._rows(category, language)]

    def texts(self, language: str, groups: Int[np.ndarray, " k"]) -> Iterator[str]:
        """Passages, and strings."""
        found = self.passages[language]
        yield from at(found.texts, np.flatnonzero(np.isin(found.pages, groups)))
        yield from (self.strings[k].get(language, "") for k in groups[groups >= self.pages] - self.pages)

    def question(self, category: int, language: str, rows: Int[np.ndarray, " n"], rng: np.random.Generator) -> Question:
        """As the tasks are said above; half of the translations, pages and orders are not what they are asked for."""
        drawn = half(len(rows), rng)
        if category == TRANSLATION:
            strings = [self.strings[k] for k in self._translated(language)[rows]]
            other = [string[OTHER.get(language, language)] for string in strings]
            alike = np.array([text == other[k - 1] for k, text in enumerate(other)], bool)
            return Question([string["en"] for string in strings], own_or_next(other, drawn), drawn | alike)
        found, places = self.passages[language], self._rows(category, language)[rows]
        texts = at(found.texts, places)
        if category == SECTION:
            return Question(texts, None, found.sections[places])
        if category == PAGE:
            following = at(found.texts, places + 1)
            alike = found.pages[places] == np.roll(found.pages[places], 1)
            return Question(texts, own_or_next(following, drawn), drawn | alike)
        return Question(words_mixed(texts, drawn, rng, "" if language in UNSPACED else " "), None, drawn)

    def same(self, groups: Int[np.ndarray, " k"]) -> Iterator[Mapping[str, str]]:
        """Strings but for English ones, as beside those a task asks for translations; passages of pages cut into as many."""
        yield from (
            {x: self.strings[k][x] for x in LANGUAGES if x in self.strings[k] and x != "en"}
            for k in groups[groups >= self.pages] - self.pages
        )
        bounds = {name: np.searchsorted(x.pages, np.arange(self.pages + 1)) for name, x in self.passages.items()}
        for page in groups[groups < self.pages]:
            counts = {name: x[page + 1] - x[page] for name, x in bounds.items()}
            for count in sorted(set(counts.values()) - {0}):
                names = [name for name in counts if counts[name] == count]
                yield from ({x: self.passages[x].texts[bounds[x][page] + k] for x in names} for k in range(count))

    def _translated(self, language: str) -> Int[np.ndarray, " rows"]:
        """The places of strings that there are in a language."""
        name = OTHER.get(language, language)
        return np.array([k for k, string in enumerate(self.strings) if "en" in string and name in string])

    def _rows(self, category: int, language: str) -> Int[np.ndarray, " rows"]:
        """The places of passages that a task is about: of each section as many; those that another of the page follows."""
        found = self.passages[language]
        if category == SECTION:
            count = min(np.bincount(found.sections, minlength=len(SECTIONS)))
            each = (np.flatnonzero(found.sections == k) for k in range(len(SECTIONS)))
            return np.concatenate([places[np.linspace(0, len(places) - 1, count).astype(int)] for places in each])
        if category == PAGE:
            return np.flatnonzero(found.pages[:-1] == found.pages[1:])
        return np.arange(len(found.texts))


def read_manuals(data: str = "") -> Manuals:
    """Manual pages that are translated, with their originals, and the strings.

    Args:
        data: a folder with both, manual pages as in /usr/share/man; empty to look for them.

    Raises:
        ValueError: no pages in one of the languages, no strings.
    """
    folder = Path(data) if data else FOLDER
    paths = {name: _paths(folder if name == "en" else folder / name) for name in LANGUAGES}
    translated = sorted(set().union(*(found for name, found in paths.items() if name != "en")))
    numbers = {page: k for k, page in enumerate(translated)}
    read = {
        name: {page: passages_of(path)[:MOST] for page, path in sorted(found.items()) if page in numbers}
        for name, found in paths.items()
    }
    said = Counter(text for pages in read.values() for texts in pages.values() for text in texts)
    passages = {name: _passages(folder, name, pages, numbers, said) for name, pages in read.items()}
    return Manuals(passages, read_strings((folder if data else SHARED) / STRINGS), len(translated))


def made_manuals(pages: int = 40) -> Manuals:
    """Passages and strings without sense, of words that tell their section, for tests; a language is a way to write words."""
    rng, passages = np.random.default_rng(0), {}
    numbers = np.repeat(np.arange(pages), 3)
    sections = numbers % len(SECTIONS)
    words = [[f"s{section}w{k}" for k in rng.integers(0, 8, 6)] for section in sections]
    for name in LANGUAGES:
        passages[name] = Passages([" ".join(f"{name}{w}" for w in x) for x in words], numbers, sections)
    strings = [{name: f"{name} string {k}" for name in (*LANGUAGES, "tr")} for k in range(pages)]
    return Manuals(passages, strings, pages)


_Page = tuple[str, str]
"""The section and the name of a page."""

_Pages = Mapping[_Page, Sequence[str]]


def _paths(folder: Path) -> dict[_Page, Path]:
    """Where the pages of a language are."""
    found = {}
    for section in SECTIONS:
        for path in sorted((folder / f"man{section}").glob(f"*.{section}*")):
            found[section, path.name.removesuffix(".gz").rpartition(".")[0]] = path
    return found


def _passages(folder: Path, language: str, read: _Pages, numbers: Mapping[_Page, int], said: Counter[str]) -> Passages:
    """Those of the pages of one language; what is said twice, on another page or not translated, is left out."""
    rows = [(text, numbers[page], SECTIONS.index(page[0])) for page, texts in read.items() for text in texts if said[text] == 1]
    if len({section for *_, section in rows}) < len(SECTIONS):
        raise ValueError(
            f"{folder} has no manual pages in {LANGUAGES[language]} of all sections {', '.join(SECTIONS)}: Debian has them in "
            "manpages, manpages-de, manpages-es, manpages-fr, manpages-ja and manpages-ru; a folder of them goes with --data"
        )
    texts, pages, sections = zip(*rows, strict=True)
    return Passages(texts, np.array(pages), np.array(sections))
