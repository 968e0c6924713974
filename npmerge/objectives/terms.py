"""Weighted sums: what those of objectives, of tasks and of losses share."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Array, Float

from alignment.checks import check_finite_number, kind_of
from npmerge.objectives.base import Objective, Term


def one_or_more(name: str, objectives: Any) -> tuple[Objective, ...]:
    """The objectives as a tuple. Raises ValueError for anything else; `name` is who asks."""
    found = tuple(objectives) if isinstance(objectives, Sequence) else ()
    if not found or not all(isinstance(o, Objective) for o in found):
        got = ", ".join(map(kind_of, found)) or kind_of(objectives)
        raise ValueError(f"{name} takes objectives such as CrossEntropy() or UserObjective(function), got {got}")
    return found


def check_weights(value: Any) -> None:
    """Make the weights of a frozen dataclass a tuple of numbers. Raises ValueError unless they are that, or None."""
    if value.weights is None:
        return
    weights = tuple(value.weights) if isinstance(value.weights, Sequence) else (value.weights,)
    for weight in weights:
        check_finite_number(f"a weight of {type(value).__name__}", weight)
    object.__setattr__(value, "weights", tuple(map(float, weights)))


def weighted(values: Sequence[Float[Array, ""]], weights: Sequence[float]) -> Float[Array, ""]:
    """sum_k w_k v_k."""
    terms = [w * v for w, v in zip(weights, values, strict=True)]
    return sum(terms[1:], terms[0])


def scaled(terms: Sequence[Sequence[Term]], weights: Sequence[float]) -> list[Term]:
    """The terms (`Objective.terms`) of sum_k w_k v_k, of those of each v_k."""
    return [(w * value, count) for w, each in zip(weights, terms, strict=True) for value, count in each]


def all_of(checks: Sequence[Callable[..., None]]) -> Callable[..., None]:
    """One check that makes all of them."""

    def check(*arguments: Any) -> None:
        for each in checks:
            each(*arguments)

    return check


def check_equal(name: str, what: str, values: tuple, weights: tuple | None) -> None:
    """Raise ValueError unless there are as many weights as values, or none; `name` is who asks, `what` it weighs."""
    if weights is not None and len(weights) != len(values):
        raise ValueError(f"{name} takes a weight for each of {len(values)} {what}: got {len(weights)}")
