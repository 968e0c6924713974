"""The examples that a recipe names: of one task, or of several."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, StrictInt, Tag, model_validator

from npmerge.recipe.named import listed
from npmerge.recipe.settings import shown
from npmerge.recipe.strict import Block, fault
from npmerge.recipe.terms import Terms

Text = Annotated[str, Field(min_length=1)]


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

    path: Text | None = None
    kind: Literal["npz", "images", "text"] | None = None
    dataset: Text | None = None
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


class Task(Data):
    """Examples of one task.

    Attributes:
        model: that the task is of, as the recipe calls it; without, tasks are in the order of the models.
        objective: of this task, instead of that of all.
        weight: what that is multiplied by in the mean over the tasks.
    """

    model: Text | None = None
    objective: Terms | None = None
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


def _as_data(raw: Any) -> Any:
    return {"path": raw} if isinstance(raw, str) else raw


def _held_out(raw: Any) -> Any:
    if isinstance(raw, bool) or (isinstance(raw, int | float) and not 0 <= raw < 1):
        raise fault(f"expected a fraction from 0 to below 1, or data of its own, got {shown(raw)}")
    return raw if isinstance(raw, int | float) else listed(raw)


Examples = Annotated[Data, BeforeValidator(_as_data)]
Tasks = Annotated[tuple[Annotated[Task, BeforeValidator(_as_data)], ...], BeforeValidator(listed)]
HeldOut = Annotated[
    Annotated[float, Tag("fraction")] | Annotated[tuple[Examples, ...], Tag("data")],
    Discriminator(lambda raw: "fraction" if isinstance(raw, int | float) else "data"),
    BeforeValidator(_held_out),
]
