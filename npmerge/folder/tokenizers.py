"""Tokenizers as `tokenizer.json` has them: which token has which number, and what they are made of."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npmerge.checkpoint.indices import read_json

FILE = "tokenizer.json"
KINDS = ("BPE", "WordPiece", "WordLevel", "Unigram")
Content = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A fast tokenizer of Hugging Face.

    Attributes:
        path: the folder that it was read from.
        content: of `tokenizer.json`.
        ids: the number of each token, those of added tokens included.
        as_stored: whether the files of the folder say the same.
    """

    path: Path
    content: Content
    ids: Mapping[str, int]
    as_stored: bool = True

    @property
    def kind(self) -> str:
        """Of the model: "BPE", "WordPiece", "WordLevel" or "Unigram"."""
        return self.content["model"]["type"]

    @property
    def added(self) -> dict[str, Content]:
        """Added tokens with their settings, in the order of the file."""
        return {token["content"]: token for token in self.content.get("added_tokens") or ()}

    @property
    def size(self) -> int:
        """One more than the largest number of a token."""
        return max(self.ids.values(), default=-1) + 1

    def with_content(self, content: Content) -> "Tokenizer":
        """The same with other content, that no folder has."""
        return replace(self, content=content, ids=_ids(content), as_stored=False)


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model's folder; None if it has no `tokenizer.json`.

    Raises:
        ValueError: a file that is no tokenizer, or one of a kind that is not known (its path).
    """
    file = folder / FILE
    if not file.is_file():
        return None
    content = read_json(file)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{file} is no tokenizer: it has no model")
    kind = model.get("type") or ("BPE" if "merges" in model else None)  # old files do not name it
    if kind not in KINDS:
        raise ValueError(f"{file} has a model of type {kind!r}, expected one of {', '.join(KINDS)}")
    content = {**content, "model": {**model, "type": kind}}
    try:
        return Tokenizer(file.parent, content, _ids(content))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is a damaged tokenizer: {error!r}") from None


def cut_to(tokenizer: Tokenizer, rows: int) -> Tokenizer:
    """Without the tokens that a table of so many rows has no row for."""
    if tokenizer.size <= rows:
        return tokenizer
    model, keep = dict(tokenizer.content["model"]), {token for token, k in tokenizer.ids.items() if k < rows}
    model["vocab"] = _kept(model["vocab"], rows)
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [merge for merge in model["merges"] if _made_of(pair_of(merge), prefix) <= keep]
    added = [token for token in tokenizer.content.get("added_tokens") or () if token["id"] < rows]
    return tokenizer.with_content({**tokenizer.content, "model": model, "added_tokens": added})


def check_loads(tokenizer: Tokenizer) -> None:
    """Check that the package `tokenizers` reads it, with the same numbers.

    Raises:
        ValueError: it does not (the path, and what it says).
    """
    import tokenizers  # not needed where no vocabulary is made

    try:
        loaded = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content))
    except Exception as error:  # the package raises no other
        raise ValueError(f"{tokenizer.path} is a tokenizer that cannot be loaded: {error}") from None
    numbers = loaded.get_vocab(with_added_tokens=True)
    wrong = next((token for token, number in tokenizer.ids.items() if numbers.get(token) != number), None)
    if wrong is not None:
        raise ValueError(
            f"{tokenizer.path} numbers its tokens otherwise than it is read: {wrong!r} is {tokenizer.ids[wrong]} in the file, "
            f"{numbers.get(wrong)} when it is loaded"
        )


def pair_of(merge: str | list[str]) -> tuple[str, str]:
    """The two halves of a merge, of which files have "a b" or ["a", "b"]."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _made_of(pair: tuple[str, str], prefix: str) -> set[str]:
    return {*pair, pair[0] + pair[1].removeprefix(prefix)}


def _kept(vocab: Any, rows: int) -> Any:
    return vocab[:rows] if isinstance(vocab, list) else {token: k for token, k in vocab.items() if k < rows}


def _ids(content: Content) -> dict[str, int]:
    vocab = content["model"]["vocab"]
    ids = _numbered(vocab) if isinstance(vocab, list) else dict(vocab)
    return ids | {token["content"]: int(token["id"]) for token in content.get("added_tokens") or ()}


def _numbered(pieces: Iterable[Any]) -> dict[str, int]:
    return {piece: k for k, (piece, _) in enumerate(pieces)}
