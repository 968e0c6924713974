"""Two tasks on sentences, in the tokens of a model's folder: the genre of English ones, and the language of short texts."""

import json
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

TEST, LEARNING, SELECTION = 0.2, 0.15, 0.1
"""Shares of the premises, or of the texts that are translated, that each part has; fine-tuning has the others."""

LANGUAGES = ("de", "en", "es", "fr", "sw", "tr")
"""Those in Latin letters: others are told apart by their letters alone."""


class Part(NamedTuple):
    """Sentences filled up with zeros, and labels that count the classes of all tasks, one task after another."""

    tokens: Int[np.ndarray, "n length"]
    labels: Int[np.ndarray, " n"]


class TextTask(NamedTuple):
    """A task, whose labels begin at `first`; no premise is in two parts, and no text in one language and another."""

    name: str
    classes: tuple[str, ...]
    first: int
    train: Part  # for its fine-tune
    learning: Part  # for merges and controls
    selection: Part  # for every choice
    test: Part  # the same for every seed


class Sources(NamedTuple):
    """Where model and texts are: a folder with a tokenizer.json, one with XNLI by genre, and a file of translations."""

    model: Path
    xnli: Path
    strings: Path


class Sizes(NamedTuple):
    """Tokens of a sentence, and the most sentences of each part of a task."""

    length: int
    train: int
    learning: int
    selection: int
    test: int


class Texts(NamedTuple):
    """Sentences with their classes, and the group of each, which stays in one part."""

    sentences: list[str]
    labels: list[str]
    groups: list[str]


def load_text_tasks(sources: Sources, sizes: Sizes, *, seed: int) -> tuple[TextTask, TextTask]:
    """Genre and language. The test part is the same for every seed.

    Raises:
        ValueError: files that are missing.
    """
    encode = _encoder(sources.model, sizes.length)
    seen: set[bytes] = set()
    genre = _task("genre", genres(sources.xnli), 0, encode, seen)
    language = _task("language", translations(sources.strings), len(genre.classes), encode, seen)
    return _split(genre, sizes, seed), _split(language, sizes, seed)


def genres(folder: Path) -> Texts:
    """Premises and hypotheses of XNLI with the genre of the premise, which is their group."""
    found: dict[tuple[str, str], str] = {}
    for part in ("dev", "test"):
        header, *rows = _text(folder / f"my.genre.{part}.tsv.xz").rstrip("\n").split("\n")
        names = header.split("\t")
        premise, hypothesis = names.index("sentence1_en"), names.index("sentence2_en")
        for row in rows:
            cells = row.split("\t")
            for k in (premise, hypothesis):
                found[cells[premise], cells[k]] = cells[names.index("genre")]
    return Texts([sentence for _, sentence in found], list(found.values()), [premise for premise, _ in found])


def translations(path: Path) -> Texts:
    """Short texts in each of the languages; one of JSON in each line, {"en": ..., "de": ...}, which is the group."""
    found = [
        (text, language, str(k)) for k, line in enumerate(_text(path).splitlines())
        for language, text in json.loads(line).items() if language in LANGUAGES
    ]  # fmt: skip
    return Texts(*(list(column) for column in zip(*found, strict=True)))


def _text(path: Path) -> str:
    plain = path.with_suffix("") if path.suffix == ".xz" and not path.is_file() else path
    if not plain.is_file():
        raise ValueError(f"no text at {path}: give the folder of XNLI with --xnli and translations with --strings")
    content = plain.read_bytes()
    return (lzma.decompress(content) if plain.suffix == ".xz" else content).decode("utf-8")


def _encoder(folder: Path, length: int) -> tokenizers.Tokenizer:
    found = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found.enable_truncation(length)
    found.enable_padding(length=length)
    return found


class _Whole(NamedTuple):
    """A task before it is cut into parts, with the group of each sentence."""

    name: str
    classes: tuple[str, ...]
    first: int
    everything: Part
    groups: np.ndarray


def _task(name: str, texts: Texts, first: int, encode: tokenizers.Tokenizer, seen: set[bytes]) -> _Whole:
    """Sentences whose tokens were not seen before: so none is in two parts, or in two tasks."""
    rows = np.array([x.ids for x in encode.encode_batch(texts.sentences)], np.int32)
    keys = [row.tobytes() for row in rows]
    kept = np.array([k for k, key in enumerate(keys) if not (key in seen or seen.add(key))])  # type: ignore[func-returns-value]
    classes, labels = np.unique(texts.labels, return_inverse=True)
    everything = Part(rows[kept], (first + labels[kept]).astype(np.int32))
    return _Whole(name, tuple(map(str, classes)), first, everything, np.array(texts.groups)[kept])


def _split(task: _Whole, sizes: Sizes, seed: int) -> TextTask:
    most = (sizes.train, sizes.learning, sizes.selection, sizes.test)
    parts = zip(parted(task.groups, seed), most, strict=True)
    cut = [Part(*(x[places[:count]] for x in task.everything)) for places, count in parts]
    return TextTask(task.name, task.classes, task.first, *cut)


def parted(groups: np.ndarray, seed: int) -> list[np.ndarray]:
    """Places of the examples of train, learning, selection and test, in a random order."""
    different = np.random.default_rng(0).permutation(np.unique(groups))
    test, others = np.split(different, [round(TEST * len(different))])
    ends = np.cumsum([round(share * len(different)) for share in (LEARNING, SELECTION)])
    learning, selection, train = np.split(np.random.default_rng([seed, 1]).permutation(others), ends)
    rng = np.random.default_rng([seed, 2])
    places = [np.flatnonzero(np.isin(groups, part)) for part in (train, learning, selection)]
    return [*map(rng.permutation, places), np.random.default_rng(2).permutation(np.flatnonzero(np.isin(groups, test)))]
