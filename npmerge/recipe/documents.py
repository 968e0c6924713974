"""Recipe files: one recipe per document, each of which may use the results of others."""

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from npmerge.recipe.checks import check_recipe
from npmerge.recipe.groups import TOKENIZER_SOURCES, references_of
from npmerge.recipe.lines import read_documents
from npmerge.recipe.references import check_reference
from npmerge.recipe.schema import Recipe
from npmerge.recipe.strict import validated


def load_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, ...]:
    """The recipes of a file, in an order in which each comes after those whose results it uses; the last is the final one.

    The final one is the document without a name, or the last of the file. No model is opened.

    Raises:
        ValueError: a file that cannot be read, and whatever is wrong in it: with file, line, keys and the nearest valid name.
    """
    return parse_recipe(read_recipe(path), str(path))


def read_recipe(path: str | os.PathLike[str]) -> str:
    """The text of a recipe's file. Raises ValueError for one that cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, expected a recipe: a file of YAML") from None
    except FileNotFoundError:
        raise ValueError(f"{path}: no such recipe{_nearest(Path(path))}") from None
    except OSError as error:
        raise ValueError(f"{path}: the recipe cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the recipe cannot be read: byte {error.start} is no UTF-8, so it is no text") from None


def _nearest(path: Path) -> str:
    """The end of a message on a recipe that is not there: the file of YAML beside it whose name is nearest, if one is."""
    there = [str(file) for ending in ("*.yml", "*.yaml") for file in sorted(path.parent.glob(ending))]
    near = difflib.get_close_matches(str(path), there, n=1)
    return f": the nearest is {near[0]!r}" if near else ""


def parse_recipe(text: str, file: str = "recipe", *, there: bool = True) -> tuple[Recipe, ...]:
    """As `load_recipe`, of a recipe's text.

    Args:
        text: of the recipe.
        file: what errors call it.
        there: whether the models that it names must be there.
    """
    recipes = []
    for document, content in read_documents(text, file):
        recipe = validated(Recipe, content, document)
        recipe._document = document
        check_recipe(recipe)
        recipes.append(recipe)
    if not recipes:
        raise ValueError(f"{file}: expected a recipe, got an empty file")
    _check_names(recipes)
    for recipe in recipes if there else ():
        _check_references(recipe, [other.name for other in recipes if other.name])
    return _in_order(recipes)


def _check_names(recipes: Sequence[Recipe]) -> None:
    for i, recipe in enumerate(recipes):
        if recipe.name is None and any(other.name is None for other in recipes[:i]):
            raise recipe.error((), "a second document without a name: give all but the final one a name")
        if recipe.name is not None and any(other.name == recipe.name for other in recipes[:i]):
            raise recipe.error(("name",), f"the name {recipe.name!r} is that of an earlier document")


def _check_references(recipe: Recipe, names: Sequence[str]) -> None:
    for path, text in references_of(recipe):
        try:
            check_reference(text, names, ("union", "base") if path in TOKENIZER_SOURCES else (), folder=recipe.folder)
        except ValueError as error:
            raise recipe.error(path, str(error)) from None


def _in_order(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    named = {recipe.name: recipe for recipe in recipes if recipe.name}
    final = next((recipe for recipe in recipes if recipe.name is None), recipes[-1])
    done: list[Recipe] = []
    _visit(final, named, [], done)
    for recipe in recipes:
        if not any(recipe is other for other in done):
            _visit(recipe, named, [], [])  # which tells a cycle
            raise recipe.error(("name",), f"the result {recipe.name!r} is used by no document")
    return tuple(done)


def _visit(recipe: Recipe, named: Mapping[str, Recipe], under: list[Recipe], done: list[Recipe]) -> None:
    """Append the recipes that this one uses, and then itself, to `done`."""
    if any(recipe is other for other in done):
        return
    for path, text in references_of(recipe):
        used = named.get(text)
        if used is None:
            continue
        if used is recipe or any(used is other for other in under):
            raise recipe.error(path, f"uses the result {text!r}, which is made from this one: a cycle")
        _visit(used, named, [*under, recipe], done)
    done.append(recipe)
