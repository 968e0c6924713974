"""Blocks of a recipe that take no unknown key, and errors of pydantic in the words of a recipe."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from alignment.checks import unknown
from npmerge.recipe.lines import Document
from npmerge.recipe.settings import Path, shown


def fault(message: str, path: Path = ()) -> PydanticCustomError:
    """An error to be raised by a validator: what is wrong, and where below the value that is validated."""
    return PydanticCustomError("recipe", "{message}", {"message": message, "path": path})


class Block(BaseModel):
    """A mapping of a recipe.

    Attributes:
        refused: keys that users may know from elsewhere and that are refused by name, with the reason.
        below: blocks in this one whose keys are looked up, too, to say where a key belongs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # few of the blocks are used in a run
    refused: ClassVar[Mapping[str, str]] = {}
    below: ClassVar[Mapping[str, "type[Block]"]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, raw: Any) -> Any:
        if raw is None:
            raise fault(f"is empty: expected a mapping with {', '.join(cls.model_fields)}, or leave the key out")
        if not isinstance(raw, dict):
            raise fault(f"expected a mapping with {', '.join(cls.model_fields)}, got {shown(raw)}")
        for key in raw:
            if key in cls.refused:
                raise fault(f"{key!r} is not supported: {cls.refused[key]}", (key,))
            if homes := [
                f"{name}:" for name, block in cls.below.items() if key in block.model_fields.keys() - cls.model_fields
            ]:
                raise fault(f"the key {key!r} belongs under {' or '.join(homes)}", (key,))
            if key not in cls.model_fields:
                named = raw.get("name") if "arguments" in cls.model_fields else None
                hint = f"; what {named} itself takes stands under arguments" if named else ""
                raise fault(unknown("key", key, cls.model_fields) + hint, (str(key),))
        return raw


def validated(block: type[Block], raw: Any, document: Document) -> Any:
    """The block of that content.

    Raises:
        ValueError: whatever is wrong, one line each with file, line and keys.
    """
    try:
        return block.model_validate(raw)
    except ValidationError as error:
        lines = [str(_error(document, raw, details)) for details in error.errors(include_url=False)]
        raise ValueError("\n".join(lines)) from None


def _error(document: Document, raw: Any, details: ErrorDetails) -> ValueError:
    path = (*_path(raw, details["loc"]), *details.get("ctx", {}).get("path", ()))
    if details["type"] == "missing":
        return document.error(path, "is missing")
    if details["type"] == "recipe":
        return document.error(path, details["msg"])
    if details["input"] is None:
        return document.error(path, "is empty: give a value, or leave the key out")
    expected = details["msg"].removeprefix("Input should be ")
    return document.error(path, f"expected {expected}, got {shown(details['input'])}")


def _path(raw: Any, loc: tuple[int | str, ...]) -> Path:
    """Without what pydantic puts in between: names of alternatives and validators."""
    path: list[str | int] = []
    for i, key in enumerate(loc):
        if isinstance(raw, dict) and (key in raw or i == len(loc) - 1):
            path.append(key)
            raw = raw.get(key)
        elif isinstance(raw, list) and isinstance(key, int) and key < len(raw):
            path.append(key)
            raw = raw[key]
    return tuple(path)
