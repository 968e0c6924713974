"""XNLI as a corpus: four tasks about pairs of sentences, in the languages that they are translated into.

The tasks are the label of a pair (3 classes), whether the words of a sentence are in their order, whether a sentence is a
premise or a hypothesis, and the genre of a premise (10 classes). The base knows them in English, and of all languages which
sentences say the same.
"""

import itertools
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from experiments.compositional.corpus import Corpus, Question, at, half, words_mixed
from experiments.data.find import SHARED

FOLDER = SHARED / "xnli_en_sw_ur_my"
GENRES = 10

LABEL, ORDER, PREMISE, GENRE = range(4)


@dataclass(frozen=True)
class Xnli(Corpus):
    """Rows of XNLI, which are pairs of sentences.

    Attributes:
        premises: by language.
        hypotheses: by language.
        labels: of the pairs.
        genres: of the premises.
        premise: the number of the premise of each row, its group: several hypotheses have one.
    """

    premises: Mapping[str, Sequence[str]]
    hypotheses: Mapping[str, Sequence[str]]
    labels: Int[np.ndarray, " rows"]
    genres: Int[np.ndarray, " rows"]
    premise: Int[np.ndarray, " rows"]

    languages: ClassVar[Mapping[str, str]] = {"en": "English", "sw": "Swahili", "ur": "Urdu", "my": "Burmese"}
    tasks: ClassVar[Mapping[str, int]] = {"label": 3, "word order": 2, "premise": 2, "genre": GENRES}

    @property
    def found(self) -> str:
        """Rows and languages."""
        return f"{len(self.labels):,} pairs of sentences in {len(self.languages)} languages"

    def groups(self, category: int, language: str) -> Int[np.ndarray, " rows"]:
        """Premises, whatever is asked."""
        return self.premise

    def texts(self, language: str, groups: Int[np.ndarray, " k"]) -> Iterator[str]:
        """Premises and hypotheses."""
        rows = np.flatnonzero(np.isin(self.premise, groups))
        yield from itertools.chain(at(self.premises[language], rows), at(self.hypotheses[language], rows))

    def same(self, groups: Int[np.ndarray, " k"]) -> Iterator[Mapping[str, str]]:
        """Premises and hypotheses."""
        for row in np.flatnonzero(np.isin(self.premise, groups)).tolist():
            yield from ({name: side[name][row] for name in self.languages} for side in (self.premises, self.hypotheses))

    def question(self, category: int, language: str, rows: Int[np.ndarray, " n"], rng: np.random.Generator) -> Question:
        """As the tasks are said above; half of the orders and premises are not what they are asked for."""
        premises, hypotheses = at(self.premises[language], rows), at(self.hypotheses[language], rows)
        if category == LABEL:
            return Question(premises, hypotheses, self.labels[rows])
        if category == GENRE:
            return Question(premises, None, self.genres[rows])
        drawn = half(len(rows), rng)
        if category == ORDER:
            return Question(words_mixed(premises, drawn, rng), None, drawn)
        return Question([a if one else b for a, b, one in zip(premises, hypotheses, drawn, strict=True)], None, drawn)


def made_corpus(premises: int = 60) -> Xnli:
    """Sentences without sense, of words that tell their genre, for the smallest run; a language is a way to write words."""
    rng, ways = np.random.default_rng(0), {"en": "{}", "sw": "ki{}", "ur": "{}un", "my": "mya{}ta"}
    genres = np.repeat(np.arange(premises) % GENRES, 3)
    words = [[f"w{genre}{k}" for k in rng.integers(0, 8, 6)] for genre in genres[::3]]
    first = [sentence for sentence in words for _ in range(3)]
    second = [[x[:3], ["no", *x[:3]], [*x[:2], "maybe"]][k % 3] for k, x in enumerate(first)]
    premise, hypothesis = (
        {name: [" ".join(way.format(w) for w in x) for x in side] for name, way in ways.items()} for side in (first, second)
    )
    return Xnli(premise, hypothesis, np.arange(3 * premises) % 3, genres, np.repeat(np.arange(premises), 3))


def read_corpus(folder: Path) -> Xnli:
    """Development and test part of XNLI together, in all languages.

    Raises:
        ValueError: no such files.
    """
    folder = folder / FOLDER.name if (folder / FOLDER.name).is_dir() else folder
    rows = {language: list(_rows(folder, language)) for language in ("my", "sw", "ur")}
    columns = {language: [list(column) for column in zip(*found, strict=True)] for language, found in rows.items()}
    genre, label, premise, hypothesis, *burmese = columns["my"]
    premises, hypotheses = {"en": premise, "my": burmese[0]}, {"en": hypothesis, "my": burmese[1]}
    for language in ("sw", "ur"):
        if columns[language][1] != label:
            raise ValueError(f"{folder}: the rows in {language} are not those in my")
        premises[language], hypotheses[language] = columns[language][2:4]
    numbers = [np.unique(x, return_inverse=True)[1] for x in (label, genre, premise)]
    return Xnli(premises, hypotheses, *numbers)


def _rows(folder: Path, language: str) -> Iterator[list[str]]:
    for part in ("dev", "test"):
        path = folder / f"{language}.genre.{part}.tsv.xz"
        if not path.is_file():
            raise ValueError(f"no XNLI at {path}: it comes from github.com/akhtet/myXNLI; give its folder with --data")
        lines = lzma.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n")
        yield from (line.split("\t") for line in lines[1:])
