"""Where in a recipe something stands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from npmerge.recipe.examples import Data
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path

T = TypeVar("T")


def placed(keys: Path, given: Sequence[T]) -> list[tuple[Path, T]]:
    """Each of some data with its place: in a list, if it is one of several."""
    return [((*keys, k) if len(given) > 1 else keys, data) for k, data in enumerate(given)]


def data_of(recipe: Recipe) -> Iterator[tuple[Path, Data]]:
    """What a document reads, and where it stands there."""
    if recipe.align is not None and recipe.align.data is not None:
        yield ("align", "data"), recipe.align.data
    if recipe.learn is not None:
        yield from placed(("learn", "data"), recipe.learn.data)
        if isinstance(recipe.learn.held_out, tuple):
            yield from placed(("learn", "held_out"), recipe.learn.held_out)


@contextmanager
def inside(recipe: Recipe, keys: Path) -> Iterator[None]:
    """Errors inside get the file and the line of the block."""
    try:
        yield
    except ValueError as error:
        raise recipe.error(keys, str(error)) from None
