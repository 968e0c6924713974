"""`npmerge methods`: what the merge methods ask, as text and as JSON."""

import dataclasses
import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from alignment.checks import unknown
from npmerge.catalogue import Answer, Asks, Hyper, asks
from npmerge.commands.recipe_methods import plain, recipe_json, recipe_lines, recipe_method
from npmerge.methods import METHODS
from npmerge.recipe.parameters import METHODS as RECIPE_METHODS
from npmerge.reports.text import columns

HEADER = ("", "models", "base", "data", "labels", "activations", "gradients", "key", "same initialisation")

LEARNED = ("np_merge", "ada_merging", "dam")
LEARNED_ONLY = (
    "{0} is a learned merge, not a method: in Python npmerge.{0}(), whose help says how it is learned; in recipes learn: with "
    "a granularity and a constraint"
)


def methods_page(name: str | None, *, as_json: bool) -> str:
    """All methods, or the one of that name of the library or of recipes. Raises ValueError for others; the nearest is told."""
    found = {method.__name__: asks(method) for method in METHODS}
    recipe = None if name is None else recipe_method(name)
    if name is not None:
        known = {plain(each): each for each in found}
        if plain(name) in map(plain, LEARNED):
            raise ValueError(LEARNED_ONLY.format(next(x for x in LEARNED if plain(x) == plain(name))))
        if plain(name) not in known and recipe is None:
            raise ValueError(unknown("method", name, [*found, *(x for x in RECIPE_METHODS if plain(x) not in known)]))
        found = {each: a for each, a in found.items() if plain(each) == plain(name)}
    if as_json:
        own = {recipe.name: recipe_json(recipe)} if recipe and not found else {}
        return json.dumps({each: _json(a) for each, a in found.items()} | own, indent=1, default=repr)
    if name is None:
        return "\n".join(_all(list(found.values())))
    library = [_one(a) for a in found.values()]
    return "\n\n".join("\n".join(lines) for lines in [*library, *([recipe_lines(recipe)] if recipe else [])])


def _json(found: Asks) -> dict[str, Any]:
    """The fields of `Asks` except the name, which is the key."""
    values = _fields(found) | {"models": dict(zip(("least", "most"), found.models, strict=True))}
    del values["name"]
    return values | {"hyper": [_fields(h) for h in found.hyper]}


def _fields(record: Asks | Hyper) -> dict[str, Any]:
    """Not `dataclasses.asdict`, which takes defaults that are merges apart, too."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def _all(methods: Sequence[Asks]) -> list[str]:
    rows = [(a.name, _count(a), *map(_word, _facts(a))) for a in methods]
    hyper = [(a.name, *_cells(h)) for a in methods for h in a.hyper]
    return [
        *columns([HEADER, *rows]),
        "",
        *columns([("", "hyper-parameter", "default", "published grid, or all values"), *hyper]),
        "",
        f"In recipes: {', '.join(RECIPE_METHODS)}.",
        "npmerge methods NAME says what one does, in recipes too; --json prints all of it for programs.",
    ]


def _one(found: Asks) -> list[str]:
    facts = [(f"{name}:", _word(value)) for name, value in zip(HEADER[2:], _facts(found), strict=True)]
    facts.insert(0, ("takes:", found.number))
    if found.statistics:
        facts.append(("statistics:", ", ".join(found.statistics)))
    hyper = [("hyper-parameter", "default", "published grid, or all values"), *map(_cells, found.hyper)]
    told = [found.name, found.summary, *_details(found.name), ""]
    return [*told, *columns(facts), *(["", *columns(hyper)] if found.hyper else [])]


def _details(name: str) -> list[str]:
    """What the docstring of a method says after its first paragraph, before its sections."""
    method = next(each for each in METHODS if each.__name__ == name)
    text = re.split(r"\n\n(?:Attributes|Example|Raises):\n", inspect.getdoc(method) or "")[0]
    return [line for paragraph in text.split("\n\n")[1:] for line in ("", *paragraph.splitlines())]


def _facts(a: Asks) -> tuple[Answer, ...]:
    return a.base, a.data, a.labels, a.activations, a.gradients, a.key, a.same_initialisation


def _count(a: Asks) -> str:
    least, most = a.models
    return "any" if a.models == (1, None) else str(least) if least == most else f"{least} to {most}" if most else f"{least} +"


def _word(answer: Answer) -> str:
    return answer if isinstance(answer, str) else "yes" if answer else "-"


def _cells(h: Hyper) -> tuple[str, str, str]:
    return h.name, "must be given" if h.required else _value(h.default), _values(h.grid or h.choices)


def _values(grid: Sequence[Any]) -> str:
    """All of a few; of many the first two and the last."""
    words = [_value(v) for v in grid]
    return ", ".join(words if len(words) < 7 else [*words[:2], "...", words[-1]])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
