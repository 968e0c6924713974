"""Values of the library by the names that recipes have for them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from npmerge.learning.user_code import check_arguments
from npmerge.recipe.named import Named

T = TypeVar("T")


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
    return called(kind, named.arguments, **more)


def called(kind: Callable[..., T], arguments: Mapping[str, Any], **more: Any) -> T:
    """The value of a class with the arguments that a recipe has for it. Raises ValueError for whatever it refuses."""
    try:
        return kind(**{key: hashable(x) for key, x in arguments.items()}, **more)
    except TypeError as error:
        raise ValueError(str(error)) from None


def fields_of(kind: type) -> list[str]:
    """The names of the arguments of a dataclass."""
    return [field.name for field in dataclasses.fields(kind) if field.init]


def hashable(x: Any) -> Any:
    """A tuple in the place of a list."""
    return tuple(x) if isinstance(x, list) else x
