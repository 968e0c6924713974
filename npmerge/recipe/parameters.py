"""The merge methods that recipes name, with their parameters: names, scopes, defaults and ranges, as in mergekit 0.1.5."""

import math
from dataclasses import dataclass
from typing import Literal

from npmerge.recipe.plan import Value

Scope = Literal["shared", "inputs", "models"]
"""Whose a parameter is: one for all, one per input with the base if it is merged, or one per model that is not the base."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method.

    Attributes:
        name: in recipes.
        default: its value where a recipe gives none; None where one has to be given.
        scope: whose it is.
        kind: of its values.
        least: the smallest value.
        most: the largest value.
        above: whether `least` itself is left out.
        effect: "always", "mergekit" if it is followed only under mergekit's conventions, "none" if it is only there to be
            accepted, as mergekit does.
    """

    name: str
    default: Value | None
    scope: Scope = "shared"
    kind: type[float | int | bool] = float
    least: float = -math.inf
    most: float = math.inf
    above: bool = False
    effect: Literal["always", "mergekit", "none"] = "always"

    @property
    def values(self) -> str:
        """What it can be, in words."""
        if self.kind is bool:
            return _KINDS[bool]
        free = self.least == -math.inf and self.most == math.inf
        return _KINDS[self.kind] if free else f"{_KINDS[self.kind]}, {self._range()}"

    def fault(self, value: float | bool) -> str | None:
        """What is wrong with a value, as the end of a sentence; None if nothing is."""
        if not self._is_of_kind(value):
            return f"must be {_KINDS[self.kind]}, got {value!r}"
        if not math.isfinite(value) or not self.least <= value <= self.most or (self.above and value == self.least):
            return f"must be {self._range()}, got {value!r}"
        return None

    def _is_of_kind(self, value: float | bool) -> bool:
        if self.kind is bool:
            return value in (0, 1)  # which recipes write for false and true
        return not isinstance(value, bool) and (self.kind is float or float(value).is_integer())

    def _range(self) -> str:
        low = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        if self.most == math.inf:
            return "a finite number" if self.least == -math.inf else low
        return f"{low} and at most {self.most:g}" if self.above else f"from {self.least:g} to {self.most:g}"


_KINDS = {float: "a number", int: "an integer", bool: "true or false"}


@dataclass(frozen=True)
class Method:
    """What a recipe has to know of a merge method.

    Attributes:
        name: in recipes.
        parameters: all of them.
        base: "origin" if task vectors are differences from it, "origin or none" if it may be missing, "first" if it is the
            first of two models between which the method goes, "input" if it is a model as the others are.
        least: the fewest models that are merged; the base is counted only where it is "first" or an "input".
        most: the most, None for any number.
    """

    name: str
    parameters: tuple[Parameter, ...]
    base: Literal["origin", "origin or none", "first", "input"] = "origin"
    least: int = 1
    most: int | None = None

    @property
    def needs_base(self) -> bool:
        """Whether a recipe has to name a base."""
        return self.base in ("origin", "first")

    def parameter(self, name: str) -> Parameter:
        """The one of that name. Raises KeyError."""
        return {p.name: p for p in self.parameters}[name]


def _flag(name: str, default: bool, effect: Literal["always", "none"] = "always") -> Parameter:
    return Parameter(name, default, kind=bool, effect=effect)


def _fraction(name: str, default: float | None, scope: Scope = "shared", above: bool = False) -> Parameter:
    return Parameter(name, default, scope, least=0, most=1, above=above)


_WEIGHT = Parameter("weight", None, "models")
_LAMBDA = Parameter("lambda", 1.0)
_DENSITY = _fraction("density", 1.0, "models")
_GAMMA = _fraction("gamma", 0.01, "models")
_EPSILON = _fraction("epsilon", 0.15, "models")
_INT8_MASK = _flag("int8_mask", False, "none")  # how masks are stored, which changes no bit of mergekit's results either


def _task_vectors(name: str, *more: Parameter, normalize: bool = False, rescale: bool = False) -> Method:
    own = (_DENSITY, _flag("rescale", rescale), *more)
    return Method(name, (_WEIGHT, _LAMBDA, _flag("normalize", normalize), *own, _INT8_MASK))


def _spectral(name: str, *more: Parameter) -> Method:
    return Method(name, (_LAMBDA, *more))


_ALL = (
    Method("linear", (Parameter("weight", None, "inputs"), _flag("normalize", True)), "input"),
    Method("passthrough", (Parameter("scale", 1.0, "inputs"),), "input", 1, 1),
    Method("slerp", (_fraction("t", None),), "first", 2, 2),
    Method("nuslerp", (_WEIGHT, _flag("nuslerp_flatten", True), _flag("nuslerp_row_wise", False)), "origin or none", 2, 2),
    Method(
        "multislerp",
        (_WEIGHT, _flag("normalize_weights", True), Parameter("eps", 1e-8, least=0, effect="mergekit")),
        "origin or none",
    ),
    Method(
        "karcher",
        (
            Parameter("max_iter", 10, kind=int, least=1, effect="mergekit"),
            Parameter("tol", 1e-5, least=0, effect="mergekit"),
        ),
        "input",
    ),
    Method("nearswap", (Parameter("t", None, least=0),), "first", 2, 2),
    Method("arcee_fusion", (), "first", 2, 2),
    Method("model_stock", (_flag("filter_wise", False),), least=2),
    Method(
        "task_arithmetic",
        (
            _WEIGHT,
            _LAMBDA,
            _flag("normalize", False),
            Parameter("density", 1.0, "models", least=0, most=1, effect="none"),
            _flag("rescale", False, "none"),
            _INT8_MASK,
        ),
    ),
    _task_vectors("ties", normalize=True),
    _task_vectors("dare_linear", rescale=True),
    _task_vectors("dare_ties", rescale=True),
    _task_vectors("breadcrumbs", _GAMMA),
    _task_vectors("breadcrumbs_ties", _GAMMA),
    _task_vectors("della", _EPSILON, normalize=True, rescale=True),
    _task_vectors("della_linear", _EPSILON, rescale=True),
    Method("sce", (_fraction("select_topk", 1.0, above=True), _INT8_MASK)),
    # ours from here on
    Method("mlerp", (Parameter("weight", 1.0, "inputs"),), "input"),
    Method("pcb", (_fraction("density", 0.2, above=True), _LAMBDA)),
    Method(
        "consensus_ta",
        (Parameter("threshold", 0.4, least=0), Parameter("agreement", 2, kind=int, least=0), Parameter("lambda", 0.3)),
    ),
    _spectral("iso_c"),
    _spectral("iso_cts", _fraction("common", 0.8)),
    _spectral("tsv_m"),
    _spectral("wudi"),
)

METHODS = {method.name: method for method in _ALL}
"""Every method by the name that recipes have for it."""

REFUSED = {
    "ram": "is not implemented",
    "ramplus_tl": "is not implemented",
    "cabs": "is not implemented",
    "moe": "makes a mixture of experts, which is not implemented",
}
"""Methods that users of mergekit know and that are refused by name, with the reason."""
