"""What arguments must be: each check raises a ValueError of one line that says what was got and what was expected."""

import dataclasses
import difflib
import math
import numbers
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

LISTED = 50
"""Names that a message lists at most."""


def unknown(kind: str, name: Any, valid: Iterable[str]) -> str:
    """The message for a misspelt name: what was got, the nearest valid one if any is near, and the valid ones."""
    known = {v.lower(): v for v in valid}
    if not known:
        return f"unknown {kind} {name!r}: there are none"
    word = str(name).lower()
    near = difflib.get_close_matches(word, known, n=1) or [v for v in known if len(word) > 2 and word in v]
    nearest = f"the nearest is {known[near[0]]!r}, " if near else ""
    listed = list(known.values())[:LISTED]
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"unknown {kind} {name!r}: {nearest}expected one of {', '.join(listed)}{more}"


def spelled(name: str, valid: Iterable[str]) -> str:
    """The valid name that differs by hyphens, underscores and capitals only; the name itself if there is none."""

    def plain(text: str) -> str:
        return text.lower().replace("-", "").replace("_", "")

    return next((known for known in valid if plain(known) == plain(name)), name)


def other_depth(got: Iterable[str], expected: Iterable[str]) -> str:
    """Where one of two networks has more numbered layers than the other, in words; empty where neither has.

    Args:
        got: the paths of its leaves, such as "params/blocks/3/kernel".
        expected: those of the other one.
    """
    ours, theirs = _numbered(got), _numbered(expected)
    for place in sorted(theirs, key=len):
        if place in ours and len(ours[place]) != len(theirs[place]):
            return f"depth: got {len(ours[place])} of {place + '*'!r}, expected {len(theirs[place])}"
    return ""


def other_spelling(got: Iterable[str], expected: Iterable[str]) -> str:
    """What to do where one of two networks is a State of NNX, whose paths end in "/value", and the other a dict of it."""
    ours, theirs = set(got), set(expected)
    if not ours or (theirs != {f"{path}/value" for path in ours} and ours != {f"{path}/value" for path in theirs}):
        return ""
    return "; one is a State of NNX and one a dict: of a State give nnx.to_pure_dict(state) everywhere"


def _numbered(paths: Iterable[str]) -> dict[str, set[str]]:
    """What comes before the number at the end of a part of a path, with the numbers that there are."""
    found: dict[str, set[str]] = {}
    for path in paths:
        for number in re.finditer(r"\d+(?=/|$)", path):
            found.setdefault(path[: number.start()], set()).add(number[0])
    return found


def channels_first(shapes: Iterable[tuple[int, ...]]) -> str:
    """What to do where inputs look like images of PyTorch, of which networks of JAX take the channels last; else nothing."""
    if not any(len(s) == 4 and s[1] in (1, 3) and s[3] not in (1, 3) for s in shapes):
        return ""
    return "; images (examples, channels, height, width) are brought to channels last by x.transpose(0, 2, 3, 1)"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that stands there more than once, if one does."""
    counts = Counter(names)
    return next((name for name, count in counts.items() if count > 1), None)


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Unless `value` is an integer, `least` or more."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of {least} or more, got {shown(value)}")


def shown(value: Any) -> str:
    """A value as it is written, or its kind where that is long."""
    text = repr(value)
    return text if len(text) <= 60 else kind_of(value)


def check_finite_number(name: str, value: Any) -> None:
    """Unless `value` is a finite number, of either sign."""
    if not is_number(value) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def check_number(name: str, value: Any, *, positive: bool = False) -> None:
    """Unless `value` is a finite number, 0 or more (positive: above 0)."""
    if not is_number(value) or not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ValueError(f"{name} must be a finite number {'above 0' if positive else 'of 0 or more'}, got {value!r}")


def check_fraction(name: str, value: Any, *, positive: bool = False) -> None:
    """Unless `value` is a number from 0 to 1 (positive: above 0)."""
    if not is_number(value) or not 0 <= value <= 1 or (positive and value == 0):
        raise ValueError(f"{name} must be a number {'above 0 and at most 1' if positive else 'from 0 to 1'}, got {value!r}")


def is_number(value: Any) -> bool:
    """Whether `value` is a real number: True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Unless `value` is among the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_pattern(name: str, value: Any) -> None:
    """Unless `value` is a regular expression, of text."""
    try:
        re.compile(value).match("")
    except (re.error, TypeError) as error:
        raise ValueError(f"{name} must be a regular expression, got {value!r}: {error}") from None


def check_flags(value: Any) -> None:
    """Unless the fields of a dataclass that are bool hold True or False: any other value but 0 and "" would count as true."""
    for field in dataclasses.fields(value):
        flag = getattr(value, field.name)
        if field.type is bool and not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{type(value).__name__} takes True or False as {field.name}, got {flag!r}")


def check_kinds(call: str, *given: tuple[Any, Any]) -> None:
    """Unless each value is of its kind. Only the kinds are told: a graph or a network would fill pages.

    Args:
        call: what the caller takes, such as "align takes (alignment, graph, models)".
        given: each argument with the kinds it may be of.
    """
    if not all(isinstance(value, kind) for value, kind in given):
        classes = [f"{value.__name__}()" for value, kind in given if isinstance(value, type) and not isinstance(value, kind)]
        write = f": write {' and '.join(classes)}" if classes else ""
        raise ValueError(f"{call}, got ({', '.join(kind_of(value) for value, _ in given)}){write}")


def kind_of(value: Any) -> str:
    """The name of a value's class; of a class, that it is one."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_list(values: Any, what: str = "models") -> None:
    """Unless `values` is a list or tuple: not an iterator, an array, a tree or a named tuple such as a Stack."""
    if not isinstance(values, Sequence) or isinstance(values, Mapping | str) or hasattr(values, "_fields"):
        raise ValueError(f"expected a list of {what}, got {kind_of(values)}")


def check_key(key: Any) -> None:
    """Unless `key` is a key of `jax.random`, or None."""
    if key is None:
        return
    import jax  # here: recipes use the other checks, and do without
    import jax.numpy as jnp

    dtype = getattr(key, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == np.uint32):
        raise ValueError(f"key must be jax.random.key(...) or None, got {key!r}")


def first_line(error: Exception) -> str:
    """The kind of an error and the first line of what it says, which goes on behind a value that fills several lines."""
    first, *others = f"{type(error).__name__}: {str(error).strip()}".splitlines()
    opened = _opened(first)
    for line in others if opened > 0 else ():
        opened += _opened(line)
        if opened <= 0:
            first = f"{first}...{line.strip()}"
            break
    return first.removesuffix(": ")


def _opened(line: str) -> int:
    return line.count("(") - line.count(")")
