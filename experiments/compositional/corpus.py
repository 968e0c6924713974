"""What a grid of sentences is made of: rows in several languages, and questions that are asked about them."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Int


class Question(NamedTuple):
    """Examples of one task in one language.

    Attributes:
        first: a text of each.
        second: another of each, None where the task is about one text.
        labels: the class of each.
    """

    first: Sequence[str]
    second: Sequence[str] | None
    labels: Int[np.ndarray, " n"]


class Corpus(abc.ABC):
    """Rows of several languages. Rows of one group, in whatever language, are in the same part of the data.

    Attributes:
        languages: names of the languages, by their code.
        tasks: the categories, and how many classes each has.
    """

    languages: ClassVar[Mapping[str, str]]
    tasks: ClassVar[Mapping[str, int]]

    @property
    @abc.abstractmethod
    def found(self) -> str:
        """What there is, in words."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Of all tasks."""
        return tuple(self.tasks.values())

    @abc.abstractmethod
    def groups(self, category: int, language: str) -> Int[np.ndarray, " rows"]:
        """The group of each row of a task in a language."""

    @abc.abstractmethod
    def question(self, category: int, language: str, rows: Int[np.ndarray, " n"], rng: np.random.Generator) -> Question:
        """What is asked about rows; what is drawn at random is drawn from `rng`."""

    @abc.abstractmethod
    def texts(self, language: str, groups: Int[np.ndarray, " k"]) -> Iterator[str]:
        """All texts of these groups, for tokens to be learned from."""

    @abc.abstractmethod
    def same(self, groups: Int[np.ndarray, " k"]) -> Iterator[Mapping[str, str]]:
        """What is said in several languages in these groups, by language."""


def half(n: int, rng: np.random.Generator) -> Bool[np.ndarray, " n"]:
    """A coin for each row."""
    return rng.random(n) < 0.5


def own_or_next(texts: Sequence[str], mine: Bool[np.ndarray, " n"]) -> list[str]:
    """The text of each row where it is to be its own, elsewhere that of the row before."""
    return [texts[k if own else k - 1] for k, own in enumerate(mine)]


def at(texts: Sequence[str], rows: Int[np.ndarray, " n"]) -> list[str]:
    """The texts of rows."""
    return [texts[row] for row in rows]


def words_mixed(texts: Sequence[str], mixed: Bool[np.ndarray, " n"], rng: np.random.Generator, space: str = " ") -> list[str]:
    """The words of some in random order; characters, where no space sets words apart."""
    return [_mixed(text, rng, space) if mix else text for text, mix in zip(texts, mixed, strict=True)]


def _mixed(text: str, rng: np.random.Generator, space: str) -> str:
    return space.join(rng.permutation(text.split() if space else list(text)))
