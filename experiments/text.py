"""Text as characters: windows of tokens for language models, split into train, validation and test."""

import hashlib
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

Tokens = Int[np.ndarray, " characters"]


class Text(NamedTuple):
    """A text as indices into its alphabet; the parts follow each other in the text. `sha256` is of all of it, in UTF-8."""

    sha256: str
    alphabet: str
    train: Tokens
    validation: Tokens
    test: Tokens


def read_text(path: Path, *, held_out: float = 0.05) -> Text:
    """Read a file (plain or .xz) as characters; the last `2 x held_out` of it are validation and test.

    Raises:
        ValueError: no such file.
    """
    return text_of(content_of(path), held_out=held_out)


def content_of(path: Path, option: str = "--data") -> str:
    """What stands in a file, plain or .xz. Raises ValueError where there is none, and names the option that gives another."""
    if not path.is_file():
        raise ValueError(
            f"no text at {path}: give a file with {option} (Tiny Shakespeare is tinyshakespeare.txt of karpathy/char-rnn)"
        )
    content = path.read_bytes()
    return (lzma.decompress(content) if path.suffix == ".xz" else content).decode("utf-8")


def text_of(text: str, alphabet: str = "", *, held_out: float = 0.05) -> Text:
    """A text in its own alphabet, or in a given one, of which it may have no other character."""
    alphabet = alphabet or "".join(sorted(set(text)))
    tokens = tokens_of(text, alphabet)
    ends = [round(len(tokens) * (1 - 2 * held_out)), round(len(tokens) * (1 - held_out))]
    return Text(hashlib.sha256(text.encode()).hexdigest(), alphabet, *np.split(tokens, ends))


def tokens_of(text: str, alphabet: str) -> Tokens:
    """The places of characters in an alphabet, of which there may be no others."""
    index = {character: k for k, character in enumerate(alphabet)}
    return np.array([index[character] for character in text], np.int32)


def random_windows(tokens: Tokens, length: int, batch: int, *, seed: int) -> Iterator[tuple]:
    """Endless batches `(tokens, next tokens)`, each (batch, length), from anywhere in the text."""
    rng, offsets = np.random.default_rng(seed), np.arange(length + 1)
    while True:
        windows = tokens[rng.integers(0, len(tokens) - length, batch)[:, None] + offsets]
        yield windows[:, :-1], windows[:, 1:]


def spread_windows(tokens: Tokens, length: int, batch: int, *, limit: int) -> list[tuple]:
    """At most `limit` batches of windows at even distances from the beginning of a text to its end, none in two of them."""
    count = _batches_in(tokens, length, batch, limit)
    starts = np.linspace(0, len(tokens) - 1 - length, count * batch).round().astype(int)
    windows = tokens[starts[:, None] + np.arange(length + 1)].reshape(count, batch, length + 1)
    return [(window[:, :-1], window[:, 1:]) for window in windows]


def all_windows(tokens: Tokens, length: int, batch: int, *, limit: int | None = None) -> list[tuple]:
    """Windows side by side, in order, as batches of one size; what is left over is dropped. At most `limit` batches."""
    count = _batches_in(tokens, length, batch, limit)
    size = count * batch * length
    inputs, targets = (tokens[k : k + size].reshape(count, batch, length) for k in (0, 1))
    return list(zip(inputs, targets, strict=True))


def _batches_in(tokens: Tokens, length: int, batch: int, limit: int | None) -> int:
    count = (len(tokens) - 1) // (length * batch)
    if count < 1:
        raise ValueError(f"a text of {len(tokens)} characters has no batch of {batch} windows of {length}")
    return count if limit is None else min(count, limit)
