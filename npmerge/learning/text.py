"""Text as windows of tokens: the targets are the tokens that follow."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.folder.tokenizers import FILE
from npmerge.models import Config
from npmerge.recipe.examples import Data

LENGTH = 128
"""Tokens of an example where neither recipe nor network says less."""


def read_text(
    path: Path, data: Data, config: Config | None, tokenizer: Path | Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (examples, length) and those that follow each, in consecutive windows of a file, or of each file of a folder.

    Args:
        path: of the text.
        data: of the recipe.
        config: of the network, where it is known.
        tokenizer: folder in which that of the model lies, or its content.

    Raises:
        ValueError: no text, no tokenizer where the model's is asked for, fewer tokens than one example has.
    """
    files = sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path]
    try:
        texts = [file.read_bytes() for file in files]
    except OSError as error:
        raise ValueError(f"{path} cannot be read as text: {error}") from None
    return windows(str(path), texts, data, config, tokenizer)


def windows(
    name: str, texts: Sequence[bytes], data: Data, config: Config | None, tokenizer: Path | Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (examples, length) and those that follow each, in consecutive windows of every text.

    Args:
        name: what messages call the texts.
        texts: in UTF-8.
        data: of the recipe.
        config: of the network, where it is known.
        tokenizer: folder in which that of the model lies, or its content.

    Raises:
        ValueError: no text, no tokenizer where the model's is asked for, fewer tokens than one example has.
    """
    length = data.length or min(LENGTH, *(config.input_shape if config is not None else (LENGTH,)))
    found = [_windows(_tokens(name, text, data, tokenizer), length) for text in texts]
    tokens = np.concatenate(found) if found else np.zeros((0, length + 1), np.int32)
    if not len(tokens):
        raise ValueError(
            f"{name}, read as text, has fewer tokens than the {length + 1} of one example: give more text or, in a recipe, a "
            "shorter length of its data"
        )
    return tokens[:, :-1], tokens[:, 1:]


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
    starts = range(0, len(tokens) - length, length)
    return np.array([tokens[k : k + length + 1] for k in starts], np.int32).reshape(-1, length + 1)


def _tokens(name: str, raw: bytes, data: Data, tokenizer: Path | Mapping[str, Any]) -> np.ndarray:
    stored = not isinstance(tokenizer, Path) or (tokenizer / FILE).is_file()
    kind = data.tokenizer or ("model" if stored else "bytes")
    if kind == "bytes":
        return np.frombuffer(raw, np.uint8).astype(np.int32)
    if not stored:
        raise ValueError(f"{tokenizer} has no tokenizer.json: say tokenizer: bytes for the numbers of bytes")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} cannot be read as text: {error}") from None
    return np.array(_loaded(tokenizer).encode(text, add_special_tokens=False).ids, np.int32)


def _loaded(tokenizer: Path | Mapping[str, Any]) -> Any:
    """Without truncation and padding."""
    import tokenizers  # not needed where there is no text

    kind = tokenizers.Tokenizer
    found = kind.from_file(str(tokenizer / FILE)) if isinstance(tokenizer, Path) else kind.from_str(json.dumps(tokenizer))
    found.no_truncation()
    found.no_padding()
    return found
