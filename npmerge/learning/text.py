"""Text as windows of tokens: the targets are the tokens that follow."""

from pathlib import Path

import numpy as np

from npmerge.models import Config
from npmerge.recipe.blocks import Data

LENGTH = 128
"""Tokens of an example where neither recipe nor network says less."""


def read_text(path: Path, data: Data, config: Config | None, reference: Path) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (examples, length) and those that follow each, in consecutive windows of a file, or of each file of a folder.

    Raises:
        ValueError: no text, no tokenizer where the model's is asked for, fewer tokens than one example has.
    """
    files = sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path]
    length = data.length or min(LENGTH, *(config.input_shape if config is not None else (LENGTH,)))
    windows = [_windows(_tokens(file, data, config, reference), length) for file in files]
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


def _tokens(file: Path, data: Data, config: Config | None, reference: Path) -> np.ndarray:
    own = reference / "tokenizer.json"
    kind = data.tokenizer or ("model" if own.is_file() else "bytes")
    try:
        raw = file.read_bytes()
        if kind == "bytes":
            return np.frombuffer(raw, np.uint8).astype(np.int32)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text: {error}") from None
    if not own.is_file():
        raise ValueError(f"{reference} has no tokenizer.json: say tokenizer: bytes for the numbers of bytes")
    import tokenizers  # not needed where there is no text

    tokenizer = tokenizers.Tokenizer.from_file(str(own))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
