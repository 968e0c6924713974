"""From what a recipe says of tokens and the tokenizers of its models to the vocabulary of the merged model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignment.checks import unknown
from npmerge.checkpoint.stored import StoredModel
from npmerge.folder.tables import rows_of_tables, tables
from npmerge.folder.tokenizers import Content, Tokenizer, check_loads, cut_to, folder_of, read_tokenizer
from npmerge.folder.union import union, with_tokens
from npmerge.folder.vocabulary import ABSENT, Given, Vocabulary
from npmerge.recipe.references import same
from npmerge.recipe.schema import Recipe, Token


class _Models(NamedTuple):
    """The models of a recipe with their tokenizers, cut to the rows that they have."""

    names: tuple[str, ...]
    stored: tuple[StoredModel, ...]
    tokenizers: tuple[Tokenizer, ...]
    sizes: tuple[int, ...]
    reference: int

    def place(self, name: str) -> int | None:
        """Of the model that the recipe calls so."""
        return next((k for k, other in enumerate(self.names) if same(name, other)), None)


def make_vocabulary(recipe: Recipe, models: Mapping[str, StoredModel], base: str | None = None) -> Vocabulary | None:
    """The vocabulary that a recipe asks for; None if it says nothing of tokenizers, and tables are merged like any other tensor.

    Args:
        recipe: with `tokenizer_source` or `tokenizer`.
        models: by their names in the recipe, in the order of `Plan.models`.
        base: name of the base, or of the first model, which is the reference; its tokens keep their numbers in a union.

    Raises:
        ValueError: tokenizers that are missing, damaged or cannot be joined; tokens and models that the recipe names and that are
            not there (with the line).
    """
    source = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    if source is None:
        return None
    known, notes = _read(models, base)
    chosen, said = _chosen(recipe, known, source)
    tokens = (recipe.tokenizer.tokens if recipe.tokenizer else None) or {}
    tokenizer = with_tokens(chosen, {token: _settings(known, token, asked) for token, asked in tokens.items()})
    check_loads(tokenizer)
    multiple = (recipe.tokenizer.pad_to_multiple_of if recipe.tokenizer else None) or 1
    unchanged = tokenizer.content is read_content(chosen)
    return Vocabulary(
        tokenizer=tokenizer,
        rows=-(-tokenizer.size // multiple) * multiple,
        places=_places(tokenizer, known.tokenizers),
        tables=tuple(tables(model, size) for model, size in zip(known.stored, known.sizes, strict=True)),
        sizes=known.sizes,
        base=known.place(base) if base else None,
        given={tokenizer.ids[t]: _given(recipe, known, t, asked) for t, asked in tokens.items() if asked.source is not None},
        reference=known.tokenizers[known.reference],
        old_rows=known.sizes[known.reference],
        folder=tokenizer.path if unchanged else None,
        notes=(*notes, *said),
    )
