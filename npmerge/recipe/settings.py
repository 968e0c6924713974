"""Values of parameters as recipes write them: a number, a list over depth, or either for tensors of some names."""

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from alignment.checks import unknown

Scalar = int | float | bool
Path = tuple[str | int, ...]
"""Keys and positions from the top of a document to one of its values."""


NEAREST = 3
"""Names of tensors that a message shows."""

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 3, 200


def shown(value: Any) -> str:
    """A value for a message, cut off where it is long: aliases can make a short file large."""
    return _REPR.repr(value)


class SettingError(ValueError):
    """A setting that cannot be read: what is wrong, and where below it."""

    def __init__(self, message: str, path: Path = ()) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True)
class Filter:
    """Which tensors something holds for.

    Attributes:
        text: a part of the name, "*" for all tensors, or "re:" and a regular expression that is found in the name.
    """

    text: str

    def __post_init__(self) -> None:
        if not self.text:
            raise SettingError("a filter is a part of a name, '*' or 're:' with a regular expression, got an empty one")
        try:
            re.compile(self.text.removeprefix("re:"))
        except re.error as error:
            if self.text.startswith("re:"):
                raise SettingError(f"{self.text!r} is no regular expression: {error}") from None

    def matches(self, name: str) -> bool:
        """Whether it holds for the tensor of that name."""
        if self.text.startswith("re:"):
            return re.search(self.text[3:], name) is not None
        return self.text == "*" or self.text in name

    def missed(self, names: Iterable[str], what: str) -> str:
        """The message where it holds for none of these names: those with the nearest parts, of several kinds.

        Args:
            names: of tensors.
            what: they are, such as "that is merged".
        """
        kinds = {re.sub(r"\d+", "*", name): name for name in reversed(list(names))}
        text = self.text.removeprefix("re:")

        def distance(name: str) -> float:
            return -max(difflib.SequenceMatcher(None, text, part).ratio() for part in re.split("[./]", name))

        near = sorted(kinds.values(), key=distance)[:NEAREST]
        return f"{self.text!r} matches no tensor {what}" + (f", such as {', '.join(near)}" if near else "")


@dataclass(frozen=True)
class Clause:
    """A value, or several over depth, for the tensors of a filter (None: for all)."""

    values: tuple[Scalar, ...]
    filter: Filter | None = None

    def holds(self, name: str) -> bool:
        """Whether it is for the tensor of that name."""
        return self.filter is None or self.filter.matches(name)

    def at(self, depth: float, kind: type[float | int | bool] = float) -> Scalar:
        """The value at a depth from 0 to 1: interpolated between neighbours, of true and false the one at or before it.

        Args:
            depth: from 0 to 1.
            kind: of the parameter: integers are rounded, 0 and 1 can stand for false and true.
        """
        place = depth * (len(self.values) - 1)
        low = int(place)
        value = self.values[low]
        if kind is bool:
            return bool(value)
        return round(self._between(low, place - low)) if kind is int else float(self._between(low, place - low))

    def _between(self, low: int, part: float) -> float:
        value = self.values[low]
        if part == 0:
            return value
        return (1 - part) * value + part * self.values[low + 1]


@dataclass(frozen=True)
class Setting:
    """A parameter's value in a recipe: the first clause that holds for a tensor gives its value.

    Attributes:
        clauses: in the order of the recipe; one without a filter can only be the last.
    """

    clauses: tuple[Clause, ...]

    def values(self) -> Iterator[tuple[Path, Scalar]]:
        """Each value with its place below the setting, as far as recipes tell them apart."""
        for i, clause in enumerate(self.clauses):
            at: Path = () if self.clauses[0].filter is None else (i, "value")
            for j, value in enumerate(clause.values):
                yield (*at, j) if len(clause.values) > 1 else at, value


def read_setting(raw: Any) -> Setting:
    """A setting from what YAML makes of it: a scalar, a list of scalars, or one or a list of {filter, value}.

    Raises:
        SettingError: anything else.
    """
    if isinstance(raw, dict):
        return Setting((_clause(raw, ()),))
    if isinstance(raw, list) and any(isinstance(entry, dict) for entry in raw):
        clauses = tuple(_clause(entry, (i,)) for i, entry in enumerate(raw))
        for i, clause in enumerate(clauses[:-1]):
            if clause.filter is None or clause.filter.text == "*":
                raise SettingError("holds for all tensors, so that the entries after it are never reached", (i,))
        return Setting(clauses)
    return Setting((Clause(_values(raw, ())),))


def _clause(raw: Any, path: Path) -> Clause:
    if not isinstance(raw, dict):
        raise SettingError(f"expected {{filter: ..., value: ...}} as beside it, got {shown(raw)}", path)
    for key in raw:
        if key not in ("filter", "value"):
            raise SettingError(unknown("key", key, ("filter", "value")), (*path, str(key)))
    if "value" not in raw:
        raise SettingError(f"expected a value, got {shown(raw)}", path)
    text = raw.get("filter")
    if text is not None and not isinstance(text, str):
        raise SettingError(f"expected a part of a name, got {shown(text)}", (*path, "filter"))
    try:
        return Clause(_values(raw["value"], (*path, "value")), None if text is None else Filter(text))
    except SettingError as error:
        raise SettingError(str(error), error.path or (*path, "filter")) from None


def _values(raw: Any, path: Path) -> tuple[Scalar, ...]:
    if not isinstance(raw, list):
        return (_scalar(raw, path),)
    if not raw:
        raise SettingError("expected a number or a list over depth, got an empty list", path)
    values = tuple(_scalar(entry, (*path, i)) for i, entry in enumerate(raw))
    if len({isinstance(value, bool) for value in values}) == 2:
        raise SettingError(f"expected numbers only or true and false only, got {shown(raw)}", path)
    return values


def _scalar(raw: Any, path: Path) -> Scalar:
    try:
        number = float(raw)  # YAML reads 1e-5, which lacks a point, as text
        return raw if isinstance(raw, bool | int) else number
    except (TypeError, ValueError, OverflowError):
        raise SettingError(f"expected a number, true or false, got {shown(raw)}", path) from None
