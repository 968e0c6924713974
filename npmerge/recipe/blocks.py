"""What a recipe says beside mergekit's keys: how models are aligned, and what coefficients are learned from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from alignment.checks import unknown
from npmerge.recipe.settings import shown
from npmerge.recipe.strict import Block, fault

ALIGNMENTS = (
    "weight_matching", "activation_matching", "procrustes", "cca", "scale", "group_matching", "soft_permutation",
    "straight_through", "cycle_consistent", "zip_it", "partial_matching", "optimal_transport",
)  # fmt: skip
"""The alignments by the names that recipes have for them: their classes' in lower case with underscores."""

OBJECTIVES = ("cross_entropy", "distillation", "entropy")
GRANULARITIES = ("per_model", "per_layer", "per_tensor", "per_channel", "per_input", "per_parameter")
CONSTRAINTS = ("simplex", "box", "clip", "free")

Scalar = StrictBool | StrictInt | float | StrictStr
Value = Scalar | list[Scalar]
Arguments = dict[str, Value]


class Named(Block):
    """Something of the library by its name, with its arguments; a recipe may give the name alone."""

    name: Annotated[str, Field(min_length=1)]
    arguments: Arguments = Field(default_factory=dict)


class Optimizer(Named):
    """An optimiser of Optax; its learning rate is a number, or follows a schedule of Optax."""

    schedule: Annotated[Named, BeforeValidator(lambda raw: _by_name(raw))] | None = None


class Data(Block):
    """Examples: of a file or folder on this machine, or of the package `datasets`.

    Attributes:
        path: an .npz with `inputs` and `labels`, a folder with a folder of images for each class, or text.
        kind: which of these it is, where the path does not tell.
        dataset: name or folder of a dataset of Hugging Face, instead of a path.
        split: of it.
        inputs: name of the array, or of the dataset's column.
        labels: likewise.
        size: height and width that images are brought to; by default those that the network takes.
        mean: that is subtracted from each channel of an image from 0 to 1.
        deviation: by which each channel is divided then.
        length: tokens of an example of text; by default those that the network takes, 128 at most.
        tokenizer: "model" for the reference's tokenizer.json, "bytes" for the numbers of bytes.
    """

    path: Annotated[str, Field(min_length=1)] | None = None
    kind: Literal["npz", "images", "text"] | None = None
    dataset: Annotated[str, Field(min_length=1)] | None = None
    split: str = "train"
    inputs: str = "inputs"
    labels: str = "labels"
    size: tuple[StrictInt, StrictInt] | None = None
    mean: list[float] | None = None
    deviation: list[Annotated[float, Field(gt=0)]] | None = None
    length: Annotated[StrictInt, Field(ge=1)] | None = None
    tokenizer: Literal["model", "bytes"] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> "Data":
        if (self.path is None) == (self.dataset is None):
            raise fault(f"expected exactly one of path, dataset, got {'none' if self.path is None else 'both'}")
        return self


class Saving(Block):
    """How often a fit is saved."""

    steps: Annotated[StrictInt, Field(ge=1)] | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _check_given(self) -> "Saving":
        if self.steps is None and self.minutes is None:
            raise fault("expected steps or minutes, got neither")
        return self


def _by_name(raw: Any) -> Any:
    return {"name": raw} if isinstance(raw, str) else raw


def _one_of(kind: str, valid: tuple[str, ...]) -> AfterValidator:
    def check(named: Named) -> Named:
        if named.name not in valid:
            raise fault(unknown(kind, named.name, valid))
        return named

    return AfterValidator(check)


def _name(kind: str, valid: tuple[str, ...]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in valid:
            raise fault(unknown(kind, name, valid))
        return name

    return AfterValidator(check)


def _held_out(raw: Any) -> Any:
    if isinstance(raw, bool) or (isinstance(raw, int | float) and not 0 <= raw < 1):
        raise fault(f"expected a fraction from 0 to below 1, or data of its own, got {shown(raw)}")
    return raw if isinstance(raw, int | float) else _as_data(raw)


def _as_data(raw: Any) -> Any:
    return {"path": raw} if isinstance(raw, str) else raw


Architecture = Annotated[Named, BeforeValidator(_by_name)]
Examples = Annotated[Data, BeforeValidator(_as_data)]


class Align(Block):
    """The models are brought into the units of the reference before they are merged."""

    method: Annotated[str, _name("alignment", ALIGNMENTS)]
    architecture: Architecture | None = None
    data: Examples | None = None
    batch_size: Annotated[StrictInt, Field(ge=1)] = 128
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    parameters: Arguments = Field(default_factory=dict)


class Learn(Block):
    """The coefficients of the merge are learned from data."""

    architecture: Architecture | None = None
    data: Examples
    objective: Annotated[Named, BeforeValidator(_by_name), _one_of("objective", OBJECTIVES)] = Named(name="cross_entropy")
    granularity: Annotated[Named, BeforeValidator(_by_name), _one_of("granularity", GRANULARITIES)] = Named(name="per_tensor")
    constraint: Annotated[Named, BeforeValidator(_by_name), _one_of("constraint", CONSTRAINTS)] = Named(name="simplex")
    optimizer: Annotated[Optimizer, BeforeValidator(_by_name)] | None = None
    steps: Annotated[StrictInt, Field(ge=0)] = 100
    batch_size: Annotated[StrictInt, Field(ge=1)] = 32
    held_out: Annotated[float | Data, BeforeValidator(_held_out)] = 0.0
    every: Annotated[StrictInt, Field(ge=1)] = 25
    patience: Annotated[StrictInt, Field(ge=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    parallel: Literal["jit", "pmap"] = "jit"
    devices: Annotated[StrictInt, Field(ge=1)] | None = None
    shard: Literal["features"] | None = None
    accumulate: Annotated[StrictInt, Field(ge=1)] = 1
    checkpoints: Saving | None = None
