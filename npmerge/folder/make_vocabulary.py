"""From what a recipe says of tokens and the tokenizers of its models to the vocabulary of the merged model."""

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignment.checks import unknown
from npmerge.checkpoint.stored import StoredModel
from npmerge.folder.tables import rows_of_tables, tables
from npmerge.folder.templates import check_template, template_of
from npmerge.folder.tokenizers import FILE, Content, Tokenizer, check_loads, cut_to, read_tokenizer
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


def make_vocabulary(recipe: Recipe, models: Mapping[str, StoredModel]) -> Vocabulary | None:
    """The vocabulary that a recipe asks for; None if it says nothing of tokenizers: tables are then tensors like others.

    The recipe's chat template is checked too: it is written when all else is done, and to fail then would be late.

    Args:
        recipe: with `tokenizer_source` or `tokenizer`. The tokens of its base, or without one of the first model, keep their
            numbers in a union.
        models: by their names in the recipe, in the order of `Plan.models`.

    Raises:
        ValueError: tokenizers that are missing, damaged or cannot be joined; tokens and models that the recipe names and that
            are not there, a chat template of an unknown name (with the line).
    """
    _check_template(recipe, models)
    source = recipe.tokenizer.source if recipe.tokenizer else recipe.tokenizer_source
    if source is None:
        return None
    known, notes = _read(models, recipe.base_model)
    chosen, said = _chosen(recipe, known, source)
    tokens = (recipe.tokenizer.tokens if recipe.tokenizer else None) or {}
    tokenizer = with_tokens(chosen, {token: _settings(known, token, asked) for token, asked in tokens.items()})
    check_loads(tokenizer)
    multiple = (recipe.tokenizer.pad_to_multiple_of if recipe.tokenizer else None) or 1
    return Vocabulary(
        tokenizer=tokenizer,
        rows=-(-tokenizer.size // multiple) * multiple,
        places=_places(tokenizer, known.tokenizers),
        tables=tuple(tables(model, size) for model, size in zip(known.stored, known.sizes, strict=True)),
        sizes=known.sizes,
        base=known.place(recipe.base_model) if recipe.base_model else None,
        given={
            tokenizer.ids[token]: _given(recipe, known, token, asked)
            for token, asked in tokens.items()
            if asked.source or asked.force
        },
        reference=known.tokenizers[known.reference],
        old_rows=known.sizes[known.reference],
        folder=tokenizer.path if tokenizer.as_stored else None,
        notes=(*notes, *said),
    )


def _check_template(recipe: Recipe, models: Mapping[str, StoredModel]) -> None:
    for model in models.values() if recipe.chat_template else ():
        template_of(model.folder)  # an error in their files
    try:
        check_template(recipe.chat_template or "auto")
    except ValueError as error:
        raise recipe.error(("chat_template",), str(error)) from None


def disagreements(models: Sequence[StoredModel]) -> list[str]:
    """A line for each model whose tokenizer numbers tokens otherwise than the first's: its rows stand for others."""
    reference, *others = models
    ours, notes = read_tokenizer(reference.folder), []
    for model in others:
        same = ours is None or _same_file(model, reference)
        theirs = None if same else read_tokenizer(model.folder)
        if ours and theirs and (count := _moved(ours, theirs)):
            notes.append(
                f"{model.name} numbers {count:,} tokens otherwise than {reference.name}: rows that stand for different "
                "tokens were merged. tokenizer_source: union or base puts them in one order"
            )
    return notes


def _moved(ours: Tokenizer, theirs: Tokenizer) -> int:
    return sum(ours.ids.get(token, number) != number for token, number in theirs.ids.items())


def _same_file(a: StoredModel, b: StoredModel) -> bool:
    one, other = a.folder / FILE, b.folder / FILE
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _read(models: Mapping[str, StoredModel], base: str | None) -> tuple[_Models, list[str]]:
    names, stored, notes = tuple(models), tuple(models.values()), []
    reference = next((k for k, name in enumerate(names) if same(name, base)), 0)
    read = [read_tokenizer(model.folder) for model in stored]
    if (fallback := read[reference]) is None:
        raise ValueError(f"{names[reference]} has no {FILE}: save its tokenizer with transformers as a fast one first")
    tokenizers, sizes = [], []
    for name, model, own in zip(names, stored, read, strict=True):
        if own is None:
            notes.append(f"{name} has no {FILE}: its tokens are taken to be those of {names[reference]}")
        rows = rows_of_tables(model, (own or fallback).size)
        if (own or fallback).size > rows:
            notes.append(f"{name} has tokens beyond the {rows:,} rows of its tables: they are left out")
        tokenizers.append(cut_to(own or fallback, rows))
        sizes.append(rows)
    return _Models(names, stored, tuple(tokenizers), tuple(sizes), reference), notes


def _chosen(recipe: Recipe, known: _Models, source: str) -> tuple[Tokenizer, list[str]]:
    reference = known.tokenizers[known.reference]
    if source == "base":
        return reference, []
    if source == "union":
        return union(reference, [other for k, other in enumerate(known.tokenizers) if k != known.reference])
    place = known.place(source)
    if place is not None:
        return known.tokenizers[place], []
    path = Path(source)
    found = read_tokenizer(path if path.is_dir() else path.parent) if path.exists() else None
    if found is None:
        key = ("tokenizer", "source") if recipe.tokenizer else ("tokenizer_source",)
        message = unknown("source of tokens", source, ("union", "base", *known.names))
        raise recipe.error(key, f"{message} (no folder with a {FILE})")
    return found, []


def _settings(known: _Models, token: str, asked: Token) -> Content | None:
    """Of an added token: as in the model it comes from, else in the first model where it is one."""
    named = asked.source if isinstance(asked.source, str) else getattr(asked.source, "model", None)
    first = known.place(named) if named else None
    order = [first] if first is not None else []
    found = (known.tokenizers[k].added.get(token) for k in [*order, *range(len(known.names))])
    return next((settings for settings in found if settings), None)


def _given(recipe: Recipe, known: _Models, token: str, asked: Token) -> Given:
    def refuse(message: str) -> ValueError:
        return recipe.error(("tokenizer", "tokens", token), message)

    source = asked.source
    if source is None:
        raise refuse("force needs a source")
    if not isinstance(source, str) and source.kind == "zero":
        return Given(None, ABSENT, asked.force)
    name = source if isinstance(source, str) else str(source.model)
    place = known.place(name)
    if place is None:
        raise refuse(unknown("model", name, known.names))
    wanted = token if isinstance(source, str) or source.token is None else source.token
    given_number = None if isinstance(source, str) else source.token_id
    row = known.tokenizers[place].ids.get(wanted) if given_number is None else given_number
    if row is None:
        raise refuse(f"{name} has no token {wanted!r}")
    if row >= known.sizes[place]:
        raise refuse(f"{name} has {known.sizes[place]:,} rows, got token_id {row}")
    return Given(place, row, asked.force)


def _places(tokenizer: Tokenizer, of_models: Sequence[Tokenizer]) -> np.ndarray:
    places = np.full((tokenizer.size, len(of_models)), ABSENT, np.int32)
    numbers = np.fromiter(tokenizer.ids.values(), np.int64, len(tokenizer.ids))
    for column, other in enumerate(of_models):
        rows = (other.ids.get(token, ABSENT) for token in tokenizer.ids)
        places[numbers, column] = np.fromiter(rows, np.int32, len(numbers))
    return places
