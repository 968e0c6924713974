"""Where in a recipe something stands."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import jax

from alignment.checks import first_line
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
def memory_told(recipe: Recipe) -> Iterator[None]:
    """XLA's error of memory that does not suffice becomes a line with the place of `learn:` and what would help."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or recipe.learn is None:
            raise
        got = f"batch_size is {recipe.learn.batch_size}, accumulate {recipe.learn.accumulate}"
        help_ = "give a smaller batch_size, or a larger accumulate, by which a batch goes through in parts"
        raise recipe.error(("learn", "batch_size"), f"{first_line(error)}; {help_}: {got}") from None


@contextmanager
def inside(recipe: Recipe, keys: Path) -> Iterator[None]:
    """Errors inside get the file and the line of the block."""
    try:
        yield
    except ValueError as error:
        raise recipe.error(keys, str(error)) from None
