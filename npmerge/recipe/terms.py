"""What learning minimises, as recipes write it: one objective, or a weighted sum of several."""

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from alignment.checks import spelled, unknown
from npmerge.recipe.named import Named, by_name, listed
from npmerge.recipe.strict import fault

REGULARISERS = ("equal_shares", "toward_start")
"""Terms that judge what is learned, and neither networks nor data."""

TERMS = (
    "cross_entropy", "next_token", "distillation", "entropy", "feature_matching", "proximity", "per_example", *REGULARISERS,
)  # fmt: skip
ELSEWHERE = {
    "sum": "is written as a list of objectives, each with its weight",
    "joint": "is written as a list under data, with an entry for each task",
    "weight_distance": "is what an alignment descends on: align: {method: straight_through}",
    "user_objective": "is written as module:function",
}
"""Objectives of the library that recipes write in another way."""


class Term(Named):
    """One objective, and what it is multiplied by in a sum."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0

    def __str__(self) -> str:
        return self.name if self.weight == 1 else f"{self.weight:g} {self.name}"


def _term(term: Term) -> Term:
    if ":" in term.name:
        return term
    name = spelled(term.name, (*TERMS, *ELSEWHERE))
    if name in ELSEWHERE:
        raise fault(f"{name} {ELSEWHERE[name]}", ("name",))
    if name not in TERMS:
        raise fault(unknown("objective", name, TERMS) + ", or module:function")
    return term.model_copy(update={"name": name})


Terms = Annotated[
    tuple[Annotated[Term, BeforeValidator(by_name), AfterValidator(_term)], ...],
    BeforeValidator(listed),
]
