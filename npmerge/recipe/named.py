"""What blocks of a recipe name: something of the library, of Optax or of the user, with its arguments."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr

from alignment.checks import spelled, unknown
from npmerge.recipe.settings import shown
from npmerge.recipe.strict import Block, fault

_EXPONENT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def _number(raw: Any) -> Any:
    """The number that a text is in YAML 1.2: YAML 1.1 takes 1e-2, without a point, and 1.0e5, without a sign, for text."""
    return float(raw) if isinstance(raw, str) and _EXPONENT.fullmatch(raw) else raw


Scalar = Annotated[StrictBool | StrictInt | float | StrictStr, BeforeValidator(_number)]
Value = Scalar | list[Scalar]
Arguments = dict[str, Value]


class Named(Block):
    """Something by its name, with its arguments; a recipe may give the name alone."""

    name: Annotated[str, Field(min_length=1)]
    arguments: Arguments = Field(default_factory=dict)


def by_name(raw: Any) -> Any:
    """A mapping, of a name alone."""
    return {"name": raw} if isinstance(raw, str) else raw


def listed(raw: Any) -> Any:
    """A list with one thing or several, of which one may be given by itself."""
    if isinstance(raw, list) and not raw:
        raise fault(f"expected one or more, got {shown(raw)}")
    return raw if isinstance(raw, list | tuple) else [raw]


def one_of(kind: str, valid: Sequence[str], hint: str = "") -> AfterValidator:
    """Check that something named is one of these; messages end in a hint."""

    def check(named: Named) -> Named:
        return named.model_copy(update={"name": _known(kind, named.name, valid, hint)})

    return AfterValidator(check)


def name_of(kind: str, valid: Sequence[str]) -> AfterValidator:
    """Check that a name is one of these."""
    return AfterValidator(lambda name: _known(kind, name, valid))


def _known(kind: str, name: str, valid: Sequence[str], hint: str = "") -> str:
    """The valid name, of which hyphens may be underscores."""
    known = spelled(name, valid)
    if known not in valid:
        raise fault(unknown(kind, name, valid) + hint)
    return known
