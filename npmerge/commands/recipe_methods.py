"""What `npmerge methods` says of a method by the name that recipes have for it: parameters, defaults, values, base."""

from typing import Any

from npmerge.recipe.parameters import METHODS, Method, Parameter
from npmerge.reports.text import columns

BASES = {
    "origin": "needed: what is merged are differences from it",
    "origin or none": "may be given: then differences from it are merged",
    "first": "needed: one of the two models",
    "input": "not needed: it is a model as the others are",
}
SCOPES = {"shared": "all", "inputs": "each input", "models": "each model"}
EFFECTS = {"always": "", "mergekit": "only with --mergekit-semantics", "none": "accepted, changes nothing"}
HEADER = ("parameter", "default", "one for", "values", "")


def plain(name: str) -> str:
    """A name as it is compared: `TaskArithmetic`, `task-arithmetic` and `task_arithmetic` are one."""
    return name.lower().replace("_", "").replace("-", "")


def recipe_method(name: str) -> Method | None:
    """The method of recipes by that name, in whatever spelling; None if there is none."""
    return {plain(each): method for each, method in METHODS.items()}.get(plain(name))


def recipe_lines(method: Method) -> list[str]:
    """A page on one method."""
    most = f" to {method.most}" if method.most not in (None, method.least) else " or more" if method.most is None else ""
    rows = [_row(parameter) for parameter in method.parameters]
    return [
        f"in recipes: merge_method: {method.name}",
        *columns([("models:", f"{method.least}{most}"), ("base_model:", BASES[method.base])]),
        *(["", *columns([HEADER, *rows])] if rows else []),
    ]


def recipe_json(method: Method) -> dict[str, Any]:
    """The same for programs."""
    return {
        "models": {"least": method.least, "most": method.most},
        "base": method.base,
        "parameters": {
            p.name: {"default": p.default, "scope": p.scope, "values": p.values, "effect": p.effect} for p in method.parameters
        },
    }


def _row(parameter: Parameter) -> tuple[str, ...]:
    default = "must be given" if parameter.default is None else str(parameter.default).lower()
    return (parameter.name, default, SCOPES[parameter.scope], parameter.values, EFFECTS[parameter.effect])
