"""What a recipe says beside mergekit's keys: how models are aligned, and what coefficients are learned from."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, StrictInt, model_validator

from npmerge.recipe.examples import Examples, HeldOut, Tasks
from npmerge.recipe.filters import Filters
from npmerge.recipe.named import Arguments, Named, by_name, name_of, one_of
from npmerge.recipe.settings import Path
from npmerge.recipe.strict import Block, fault
from npmerge.recipe.terms import REGULARISERS, Term, Terms

ALIGNMENTS = (
    "weight_matching", "activation_matching", "procrustes", "cca", "scale", "group_matching", "soft_permutation",
    "straight_through", "cycle_consistent", "zip_it", "partial_matching", "optimal_transport",
)  # fmt: skip
"""The alignments by the names that recipes have for them: their classes' in lower case with underscores."""

GRANULARITIES = ("per_model", "per_layer", "per_tensor", "per_channel", "per_input", "per_parameter")
CONSTRAINTS = ("simplex", "box", "clip", "free")

GRANULARITY = one_of(
    "granularity", GRANULARITIES, r"; one for each block of layers is {name: per_layer, arguments: {pattern: 'blocks/\d+'}}"
)
Architecture = Annotated[Named, BeforeValidator(by_name)]


class Optimizer(Named):
    """An optimiser of Optax; its learning rate is a number, or follows a schedule of Optax."""

    schedule: Annotated[Named, BeforeValidator(by_name)] | None = None


class Saving(Block):
    """How often a fit is saved."""

    steps: Annotated[StrictInt, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_given(self) -> "Saving":
        if self.steps is None and self.minutes is None:
            raise fault("expected steps or minutes, got neither")
        return self


class Align(Block):
    """The models are brought into the units of the reference before they are merged."""

    method: Annotated[str, name_of("alignment", ALIGNMENTS)]
    architecture: Architecture | None = None
    data: Examples | None = None
    batch_size: Annotated[StrictInt, Field(ge=1)] = 128
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    parameters: Arguments = Field(default_factory=dict)


class Learn(Block):
    """The coefficients of the merge are learned from data.

    Attributes:
        data: of one task, or of several: then what is learned is joint.
        objective: the terms whose weighted sum is minimised.
        include: of which tensors coefficients are learned; the others are merged as the method has them.
        exclude: of which they are not.
        held_out: a fraction of the data of each task, or data for each.
    """

    refused: ClassVar = {"learning_rate": "give it as optimizer: {name: adam, arguments: {learning_rate: 0.1}}"}

    architecture: Architecture | None = None
    data: Tasks
    objective: Terms = (Term(name="cross_entropy"),)
    granularity: Annotated[Named, BeforeValidator(by_name), GRANULARITY] = Named(name="per_tensor")
    constraint: Annotated[Named, BeforeValidator(by_name), one_of("constraint", CONSTRAINTS)] = Named(name="simplex")
    include: Filters = ()
    exclude: Filters = ()
    optimizer: Annotated[Optimizer, BeforeValidator(by_name)] | None = None
    steps: Annotated[StrictInt, Field(ge=0)] = 100
    batch_size: Annotated[StrictInt, Field(ge=1)] = 32
    held_out: HeldOut = 0.0
    every: Annotated[StrictInt, Field(ge=1)] = 25
    patience: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    parallel: Literal["jit", "pmap"] = "jit"
    devices: Annotated[StrictInt, Field(ge=1)] | None = None
    shard: Literal["features"] | None = None
    accumulate: Annotated[StrictInt, Field(ge=1)] = 1
    checkpoints: Saving | None = None

    @model_validator(mode="after")
    def _check_patience(self) -> "Learn":
        if self.patience is not None and not self.held_out:
            raise fault("patience needs held-out data to judge by: got no held_out", ("patience",))
        return self

    @property
    def own_places(self) -> list[Path]:
        """Where below the block the objective of each task alone stands, if it is given."""
        return [("data", *((k,) if len(self.data) > 1 else ()), "objective") for k in range(len(self.data))]

    @property
    def terms(self) -> list[tuple[Path, Terms]]:
        """All that are given, of all tasks and of single ones, with their places below the block."""
        own = zip(self.own_places, [task.objective for task in self.data], strict=True)
        return [(("objective",), self.objective), *((path, found) for path, found in own if found is not None)]

    @property
    def minimised(self) -> str:
        """The terms in words, such as "cross_entropy + 0.1 proximity, joint over 2 tasks"."""
        kinds = [[x for x in task.objective or self.objective if x.name not in REGULARISERS] for task in self.data]
        different = dict.fromkeys(" + ".join(map(str, terms)) for terms in kinds)
        held = [str(term) for term in self.objective if term.name in REGULARISERS]
        joint = f", joint over {len(self.data)} tasks" if len(self.data) > 1 else ""
        return " + ".join([", ".join(different), *held]) + joint
