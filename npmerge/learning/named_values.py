"""Values of the library by the names that recipes have for them; their errors get the line."""

import dataclasses
from collections.abc import Callable
from typing import Any

from npmerge.learning.user_code import check_arguments
from npmerge.recipe.named import Named
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path


def at(recipe: Recipe, path: Path, make: Callable[[], Any]) -> Any:
    """What `make` returns; its errors get the file and the line of what stands at the path."""
    try:
        return make()
    except (ValueError, TypeError) as error:
        raise recipe.error(path, str(error)) from None


def made(module: Any, named: Named, **more: Any) -> Any:
    """The value of a class of a module, named in lower case with underscores.

    Args:
        module: of the library.
        named: the class and its arguments.
        more: arguments that a recipe does not give.

    Raises:
        ValueError: arguments that there are not, and whatever the class refuses.
    """
    kind = getattr(module, "".join(part.capitalize() for part in named.name.split("_")))
    check_arguments(named.name, named.arguments, [name for name in fields_of(kind) if name not in more])
    return kind(**{key: hashable(x) for key, x in named.arguments.items()}, **more)


def fields_of(kind: type) -> list[str]:
    """The names of the arguments of a dataclass."""
    return [field.name for field in dataclasses.fields(kind) if field.init]


def hashable(x: Any) -> Any:
    """A tuple in the place of a list."""
    return tuple(x) if isinstance(x, list) else x
