"""What a recipe says beside mergekit's keys: how models are aligned, and what coefficients are learned from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictInt

from alignment.checks import unknown
from npmerge.recipe.strict import Block, fault

ALIGNMENTS = (
    "weight_matching", "activation_matching", "procrustes", "cca", "scale", "group_matching", "soft_permutation",
    "straight_through", "cycle_consistent", "zip_it", "partial_matching", "optimal_transport",
)  # fmt: skip
"""The alignments by the names that recipes have for them: their classes' in lower case with underscores."""

OBJECTIVES = ("cross_entropy", "distillation", "entropy", "weight_distance")
GRANULARITIES = ("per_model", "per_layer", "per_tensor", "per_channel", "per_input", "per_parameter")
CONSTRAINTS = ("simplex", "box", "clip", "free")


def _one_of(kind: str, valid: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in valid:
            raise fault(unknown(kind, name, valid))
        return name

    return AfterValidator(check)


Arguments = Annotated[dict[str, bool | int | float | str], Field(default_factory=dict)]


class Align(Block):
    """The models are brought into the units of the reference before they are merged."""

    method: Annotated[str, _one_of("alignment", ALIGNMENTS)]
    architecture: str | None = None
    data: str | dict[str, Any] | None = None
    parameters: Arguments


class Optimizer(Block):
    """An optimiser of Optax by name, with its arguments."""

    name: Annotated[str, Field(min_length=1)]
    arguments: Arguments


class Learn(Block):
    """The coefficients of the merge are learned from data."""

    architecture: str
    data: str | dict[str, Any]
    objective: Annotated[str, _one_of("objective", OBJECTIVES)] = "cross_entropy"
    granularity: Annotated[str, _one_of("granularity", GRANULARITIES)] = "per_tensor"
    constraint: Annotated[str, _one_of("constraint", CONSTRAINTS)] = "simplex"
    optimizer: Optimizer | None = None
    steps: Annotated[StrictInt, Field(ge=0)] = 100
    batch_size: Annotated[StrictInt, Field(ge=1)] = 32
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[StrictInt, Field(ge=0)] = 0
    parallel: Literal["jit", "pmap"] = "jit"
