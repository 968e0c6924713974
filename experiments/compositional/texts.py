"""Sentences as a grid: four tasks on XNLI, in the languages that its sentences are translated into.

The tasks are the label of a pair (3 classes), whether a hypothesis belongs to its premise, whether the words of a sentence
are in their order, and whether a sentence is a premise or a hypothesis. The base knows them in English, and the genre of a
sentence (10 classes) in all languages, which is no task of the grid.
"""

import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from experiments.compositional.cells import Cells, HeldIn, Part, divided, joined
from experiments.compositional.grid import Cell, Grid
from experiments.compositional.settings import Sizes, Task
from experiments.data.find import SHARED

FOLDER = SHARED / "xnli_en_sw_ur_my"
LANGUAGES = {"en": "English", "sw": "Swahili", "ur": "Urdu", "my": "Burmese"}
TASKS = {"label": 3, "pair": 2, "word order": 2, "premise": 2}
"""The categories, and how many classes each has. The genre comes behind them, for the base."""

GENRES = 10
CLASSES = (*TASKS.values(), GENRES)
PAD, FIRST, SECOND, SPECIAL = 0, 1, 2, 3
"""What fills up, what begins, what stands between two sentences; tokens of bytes come behind them."""


class Corpus(NamedTuple):
    """Rows of XNLI, which are pairs of sentences.

    Attributes:
        premises: by language.
        hypotheses: by language.
        labels: of the pairs.
        genres: of the premises.
        groups: the premise of each row: several hypotheses have one.
    """

    premises: Mapping[str, Sequence[str]]
    hypotheses: Mapping[str, Sequence[str]]
    labels: Int[np.ndarray, " rows"]
    genres: Int[np.ndarray, " rows"]
    groups: Int[np.ndarray, " rows"]


class Encoder(NamedTuple):
    """Sentences as tokens.

    Attributes:
        pairs: byte pairs, learned from the sentences that networks learn from.
        length: tokens of an example.
    """

    pairs: tokenizers.ByteLevelBPETokenizer
    length: int

    def __call__(self, first: Sequence[str], second: Sequence[str] | None = None) -> Int[np.ndarray, "n length"]:
        """One sentence, or two, each cut where it has more than its share of the tokens."""
        sides = [first] if second is None else [first, second]
        share = (self.length - len(sides)) // len(sides)
        found = np.full((len(first), self.length), PAD, np.int32)
        encoded = [[x.ids[:share] for x in self.pairs.encode_batch(list(side))] for side in sides]
        for row, ids in enumerate(zip(*encoded, strict=True)):
            tokens = [FIRST, *(SPECIAL + token for token in ids[0])]
            tokens += [SECOND, *(SPECIAL + token for token in ids[1])] if len(ids) > 1 else []
            found[row, : len(tokens)] = tokens
        return found


def corpus_of(name: str, folder: str = "") -> Corpus:
    """XNLI, or sentences that are made up. Raises ValueError where there is no XNLI."""
    if name == "made":
        return made_corpus()
    found = Path(folder) if folder else FOLDER
    return read_corpus(found / FOLDER.name if (found / FOLDER.name).is_dir() else found)


def made_corpus(premises: int = 60) -> Corpus:
    """Sentences without sense, of words that tell their genre, for the smallest run; a language is a way to write words."""
    rng, ways = np.random.default_rng(0), {"en": "{}", "sw": "ki{}", "ur": "{}un", "my": "mya{}ta"}
    genres = np.repeat(np.arange(premises) % GENRES, 3)
    words = [[f"w{genre}{k}" for k in rng.integers(0, 8, 6)] for genre in genres[::3]]
    first = [sentence for sentence in words for _ in range(3)]
    second = [[x[:3], ["no", *x[:3]], [*x[:2], "maybe"]][k % 3] for k, x in enumerate(first)]
    premise, hypothesis = (
        {name: [" ".join(way.format(w) for w in x) for x in side] for name, way in ways.items()} for side in (first, second)
    )
    return Corpus(premise, hypothesis, np.arange(3 * premises) % 3, genres, np.repeat(np.arange(premises), 3))


def read_corpus(folder: Path) -> Corpus:
    """Development and test part of XNLI together, in all languages.

    Raises:
        ValueError: no such files.
    """
    rows = {language: list(_rows(folder, language)) for language in ("my", "sw", "ur")}
    columns = {language: [list(column) for column in zip(*found, strict=True)] for language, found in rows.items()}
    genre, label, premise, hypothesis, *burmese = columns["my"]
    premises, hypotheses = {"en": premise, "my": burmese[0]}, {"en": hypothesis, "my": burmese[1]}
    for language in ("sw", "ur"):
        if columns[language][1] != label:
            raise ValueError(f"{folder}: the rows in {language} are not those in my")
        premises[language], hypotheses[language] = columns[language][2:4]
    numbers = [np.unique(x, return_inverse=True)[1] for x in (label, genre, premise)]
    return Corpus(premises, hypotheses, *numbers)


def text_cells(task: Task, corpus: Corpus, seed: int) -> Cells:
    """The tasks in all languages but English.

    Args:
        task: whose grid it is.
        corpus: the sentences.
        seed: of the held-in cells and of the division.
    """
    languages = [name for name in LANGUAGES if name != task.base_domain]
    grid = Grid(tuple(TASKS), tuple(LANGUAGES[name] for name in languages))
    rest, test = divided(corpus.groups, (0.8,), seed=0)
    parts = divided(corpus.groups[rest], (task.sizes.learning, task.sizes.validation), seed=seed)
    learning, validation, train = (rest[places] for places in parts)
    pairs = tokenizers.ByteLevelBPETokenizer()
    sentences = (side[language][row] for side in corpus[:2] for language in LANGUAGES for row in train)
    pairs.train_from_iterator(sentences, vocab_size=task.vocabulary - SPECIAL, show_progress=False)
    writer = Writer(corpus, Encoder(pairs, task.length), task.sizes)

    def of(cell: Cell, rows: np.ndarray, draw: int) -> Part:
        return writer.part(cell.category, languages[cell.domain], rows, draw).first(task.sizes.cell)

    held_in = {cell: HeldIn(*(of(cell, rows, seed) for rows in (train, learning, validation))) for cell in grid.held_in(seed)}
    base, judged = (writer.base(task.base_domain, rows, seed) for rows in (train, validation))
    found = f"{len(corpus.labels):,} pairs of sentences in {len(LANGUAGES)} languages"
    return Cells(grid, held_in, {cell: of(cell, test, 0) for cell in grid.cells}, base, judged.first(1000), found)


class Writer(NamedTuple):
    """Examples out of rows."""

    corpus: Corpus
    encode: Encoder
    sizes: Sizes

    def part(self, category: int, language: str, rows: np.ndarray, draw: int) -> Part:
        """One task in one language, on rows in random order, at most as many as a cell may have."""
        rng = np.random.default_rng([draw, category, list(LANGUAGES).index(language)])
        rows = rng.permutation(rows)[: self.sizes.cell]
        premises, hypotheses = (_at(side[language], rows) for side in self.corpus[:2])
        make: Callable[..., tuple[np.ndarray, np.ndarray]] = (self._label, self._pair, self._order, self._premise)[category]
        tokens, labels = make(rows, premises, hypotheses, rng)
        return _asked(tokens, labels, category)

    def base(self, language: str, rows: np.ndarray, seed: int) -> Part:
        """All tasks in one language, and genres in all of them."""
        tasks = [self.part(k, language, rows, seed) for k in range(len(TASKS))]
        genres = [self.genre(language, rows) for language in LANGUAGES]
        whole = joined([*tasks, *genres])
        order = np.random.default_rng([seed, 13]).permutation(len(whole))[: self.sizes.base]
        return Part({name: x[order] for name, x in whole.inputs.items()}, whole.targets[order])

    def genre(self, language: str, rows: np.ndarray) -> Part:
        """The genres of premises."""
        tokens = self.encode(_at(self.corpus.premises[language], rows))
        return _asked(tokens, self.corpus.genres[rows], len(TASKS))

    def _label(self, rows: np.ndarray, premises: list[str], hypotheses: list[str], rng: np.random.Generator) -> tuple:
        return self.encode(premises, hypotheses), self.corpus.labels[rows]

    def _pair(self, rows: np.ndarray, premises: list[str], hypotheses: list[str], rng: np.random.Generator) -> tuple:
        """Half of the hypotheses are those of other rows."""
        others, mine = np.roll(np.arange(len(rows)), 1), rng.random(len(rows)) < 0.5
        chosen = [hypotheses[k if own else other] for k, (own, other) in enumerate(zip(mine, others, strict=True))]
        same = self.corpus.groups[rows] == self.corpus.groups[rows][others]
        return self.encode(premises, chosen), (mine | same).astype(np.int64)

    def _order(self, rows: np.ndarray, premises: list[str], hypotheses: list[str], rng: np.random.Generator) -> tuple:
        """The words of half of the premises are shuffled."""
        mixed = rng.random(len(rows)) < 0.5
        texts = [" ".join(rng.permutation(x.split())) if mix else x for x, mix in zip(premises, mixed, strict=True)]
        return self.encode(texts), mixed.astype(np.int64)

    def _premise(self, rows: np.ndarray, premises: list[str], hypotheses: list[str], rng: np.random.Generator) -> tuple:
        first = rng.random(len(rows)) < 0.5
        texts = [a if one else b for a, b, one in zip(premises, hypotheses, first, strict=True)]
        return self.encode(texts), first.astype(np.int64)


def _asked(tokens: np.ndarray, labels: np.ndarray, category: int) -> Part:
    categories = np.full(len(tokens), category, np.int32)
    return Part({"x": tokens, "category": categories}, (sum(CLASSES[:category]) + labels).astype(np.int32))


def _at(texts: Sequence[str], rows: np.ndarray) -> list[str]:
    return [texts[row] for row in rows]


def _rows(folder: Path, language: str) -> Iterator[list[str]]:
    for part in ("dev", "test"):
        path = folder / f"{language}.genre.{part}.tsv.xz"
        if not path.is_file():
            raise ValueError(f"no XNLI at {path}: it comes from github.com/akhtet/myXNLI; give its folder with --data")
        lines = lzma.decompress(path.read_bytes()).decode("utf-8").rstrip("\n").split("\n")
        yield from (line.split("\t") for line in lines[1:])
