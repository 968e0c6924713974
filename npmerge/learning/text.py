"""Text as windows of tokens: the targets are the tokens that follow."""

import json
from collections.abc import Mapping
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
    length = data.length or min(LENGTH, *(config.input_shape if config is not None else (LENGTH,)))
    windows = [_windows(_tokens(file, data, tokenizer), length) for file in files]
    tokens = np.concatenate(windows) if windows else np.zeros((0, length + 1), np.int32)
    if not len(tokens):
        raise ValueError(
            f"{path} has fewer tokens than the {length + 1} of one example: give a shorter data.length or more text"
        )
    return tokens[:, :-1], tokens[:, 1:]


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
    count = max(0, (len(tokens) - 1) // length)
    return (
        np.stack([tokens[k * length : (k + 1) * length + 1] for k in range(count)])
        if count
        else np.zeros((0, length + 1), np.int32)
    )


def _tokens(file: Path, data: Data, tokenizer: Path | Mapping[str, Any]) -> np.ndarray:
    stored = not isinstance(tokenizer, Path) or (tokenizer / FILE).is_file()
    kind = data.tokenizer or ("model" if stored else "bytes")
    try:
        raw = file.read_bytes()
        if kind == "bytes":
            return np.frombuffer(raw, np.uint8).astype(np.int32)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text: {error}") from None
    if not stored:
        raise ValueError(f"{tokenizer} has no tokenizer.json: say tokenizer: bytes for the numbers of bytes")
    return np.array(_loaded(tokenizer).encode(text, add_special_tokens=False).ids, np.int32)


def _loaded(tokenizer: Path | Mapping[str, Any]) -> Any:
    """Without truncation and padding."""
    import tokenizers  # not needed where there is no text

    kind = tokenizers.Tokenizer
    found = kind.from_file(str(tokenizer / FILE)) if isinstance(tokenizer, Path) else kind.from_str(json.dumps(tokenizer))
    found.no_truncation()
    found.no_padding()
    return found
