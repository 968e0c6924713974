"""One tokenizer with the tokens of several: those of the first keep their numbers, the others follow in order."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from npmerge.folder.tokenizers import Content, Tokenizer, pair_of

PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
"""Settings of a token that is added without any."""


@dataclass
class _Growing:
    """What is added to a tokenizer."""

    ids: dict[str, int]
    scores: dict[str, float] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)
    added: dict[str, Content] = field(default_factory=dict)

    following: int = 0

    def number(self, token: str) -> None:
        if token not in self.ids:
            self.ids[token] = self.following
            self.following += 1


def union(base: Tokenizer, others: Sequence[Tokenizer]) -> tuple[Tokenizer, list[str]]:
    """The base's tokenizer with every token of the others, and what has to be said of it.

    Tokens of a tokenizer that cuts text as the base does go into the base's model: words and pieces, BPE with the merges that
    make them (after the base's), Unigram with their scores. Text reaches them as it did in theirs. Where the kind, the
    normalisation or the cutting into words differ this cannot be: such tokens are added to be found literally, as mergekit
    adds all.

    Raises:
        ValueError: the base is Unigram and its numbers leave gaps (its path).
    """
    growing, notes = _grow(base), []
    for other in others:
        same = _cuts_alike(base, other)
        fresh = [token for token in _in_order(other.ids) if token not in growing.ids and token not in other.added]
        if fresh and not same:
            notes.append(
                f"{len(fresh)} tokens of {other.path} are only found literally: it cuts text into {other.kind} pieces "
                f"otherwise than {base.path}"
            )
        _add_pieces(growing, other, fresh, into_model=same)
    for other in others:
        for token in _in_order(other.added):
            growing.number(token)
            if token not in base.added:
                growing.added.setdefault(token, other.added[token])
    return _grown(base, growing) if len(growing.ids) > len(base.ids) or growing.added else base, notes


def with_tokens(base: Tokenizer, tokens: Mapping[str, Content | None]) -> Tokenizer:
    """The tokenizer with some more added tokens, each with settings or plain; those that it has stay as they are."""
    fresh = {token: settings for token, settings in tokens.items() if token not in base.ids}
    if not fresh:
        return base
    growing = _grow(base)
    for token, settings in fresh.items():
        growing.number(token)
        growing.added[token] = settings or PLAIN
    return _grown(base, growing)


def _add_pieces(growing: _Growing, other: Tokenizer, fresh: Sequence[str], into_model: bool) -> None:
    for token in fresh:
        growing.number(token)
        if not into_model:
            growing.added[token] = PLAIN
    model = other.content["model"]
    if into_model and other.kind == "BPE":
        growing.merges += [pair_of(merge) for merge in model["merges"]]
    if into_model and other.kind == "Unigram":
        growing.scores |= dict(model["vocab"])


def _grown(base: Tokenizer, growing: _Growing) -> Tokenizer:
    model = dict(base.content["model"])
    model["vocab"] = _vocab(model["vocab"], growing)
    if "merges" in model:
        model["merges"] = _merges(model["merges"], growing.merges)
    settings = [{**PLAIN, **settings, "id": growing.ids[token], "content": token} for token, settings in growing.added.items()]
    added = sorted([*(base.content.get("added_tokens") or ()), *settings], key=lambda token: token["id"])
    return base.with_content({**base.content, "model": model, "added_tokens": added})


def _vocab(vocab: Any, growing: _Growing) -> Any:
    """All tokens, added ones too: readers number an added token by the model's, and only then by its own number."""
    if not isinstance(vocab, list):
        return {token: growing.ids[token] for token in _in_order(growing.ids)}
    lowest = min((score for _, score in vocab), default=0.0)
    more = _in_order(growing.ids)[len(vocab) :]
    return [*vocab, *([token, growing.scores.get(token, lowest)] for token in more)]


def _merges(merges: Sequence[Any], more: Iterable[tuple[str, str]]) -> list[Any]:
    pairs = dict.fromkeys(map(pair_of, merges)) | dict.fromkeys(more)
    if len(pairs) == len(merges):
        return list(merges)
    spaced = any(" " in half for pair in pairs for half in pair)
    as_text = bool(merges) and isinstance(merges[0], str) and not spaced
    return [" ".join(pair) if as_text else list(pair) for pair in pairs]


def _in_order(tokens: Mapping[str, Any]) -> list[str]:
    """Tokens by their numbers, of `ids` or of the settings of added tokens."""
    return sorted(tokens, key=lambda token: _number(tokens[token]))


def _number(value: Any) -> int:
    return value if isinstance(value, int) else int(value["id"])


def _cuts_alike(a: Tokenizer, b: Tokenizer) -> bool:
    parts = ("normalizer", "pre_tokenizer")
    affixes = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    same_model = all(a.content["model"].get(part) == b.content["model"].get(part) for part in affixes)
    return a.kind == b.kind and same_model and all(a.content.get(part) == b.content.get(part) for part in parts)


def _grow(base: Tokenizer) -> _Growing:
    if base.kind == "Unigram" and base.size != len(base.ids):
        raise ValueError(
            f"{base.path} numbers {len(base.ids):,} tokens up to {base.size - 1:,}: tokens cannot be added to a Unigram "
            "tokenizer whose numbers leave gaps or are shared"
        )
    return _Growing(dict(base.ids), following=base.size)
