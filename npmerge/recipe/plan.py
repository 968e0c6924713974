"""What a recipe comes to: for each tensor of the merged model what is read, what is done with it, and with which numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Int

from npmerge.checkpoint.stored import Entry, StoredModel

Value = float | bool | tuple[float, ...]
"""An effective parameter of one tensor: shared by the models, or one number per source, in their order."""


@dataclass(frozen=True, eq=False)
class Rows:
    """How the rows of a table of tokens are put together where vocabularies differ.

    Attributes:
        models: places in `Plan.models` of those that the columns of `table` are of.
        names: the tensor that is read of each.
        table: for each row of the result the row of each model, -1 where it has none. The result is their mean, zero where no
            model has one.
        padding: rows that follow those of the table, each the mean of them all.
    """

    models: tuple[int, ...]
    names: tuple[str, ...]
    table: Int[np.ndarray, "rows models"]
    padding: int = 0


@dataclass(frozen=True)
class Source:
    """A tensor that is read: of the model at this place in `Plan.models`, by its name there; its rows changed, if any."""

    model: int
    name: str
    rows: Rows | None = None


@dataclass(frozen=True)
class Step:
    """How one tensor of the merged model is made.

    Attributes:
        name: of the tensor that is written.
        shape: of it.
        dtype: of it, as safetensors calls it.
        action: "merge" the sources by the method, or "copy" the only one bit for bit.
        sources: what is merged, in the order of the parameters; for methods between two models the base is the first of them.
        base: what task vectors are differences from; None for methods without.
        method: as recipes name it, such as "ties"; empty for a copy.
        parameters: every parameter of the method that has an effect, with its effective value, as recipes name them.
        note: why the tensor is copied or otherwise out of line; empty if nothing is to be said.
        depth: from 0 (first layer) to 1 (last), as lists over depth are read.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: Literal["merge", "copy"]
    sources: tuple[Source, ...]
    base: Source | None = None
    method: str = ""
    parameters: Mapping[str, Value] = field(default_factory=dict)
    note: str = ""
    depth: float = 0.0

    @property
    def entry(self) -> Entry:
        """The tensor that is written, as a checkpoint has it."""
        return Entry(self.name, self.dtype, self.shape)

    @property
    def inputs(self) -> tuple[Source, ...]:
        """All that is read: the sources and, where there is one, the base as the last."""
        return self.sources if self.base is None else (*self.sources, self.base)


@dataclass(frozen=True)
class Skipped:
    """A tensor of an input that is not in the merged model, and why."""

    model: int
    name: str
    why: str


@dataclass(frozen=True)
class Plan:
    """A recipe applied to models: everything that is decided before a tensor is read.

    Attributes:
        models: the inputs, headers only; the base is the first, where there is one.
        steps: in the order in which they are written.
        skipped: tensors of inputs that are left out.
        seed: of what is random.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        warnings: what the one who wrote the recipe may not expect, a line each.
    """

    models: tuple[StoredModel, ...]
    steps: tuple[Step, ...]
    skipped: tuple[Skipped, ...] = ()
    seed: int = 0
    mergekit_semantics: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def reference(self) -> StoredModel:
        """The first model: the result has its tensors, their order, and the files beside them."""
        return self.models[0]

    @property
    def bytes_in(self) -> int:
        """Bytes that all steps read, as stored."""
        return sum(map(self.bytes_read, self.steps))

    @property
    def bytes_out(self) -> int:
        """Bytes of the tensors of the result."""
        return sum(step.entry.nbytes for step in self.steps)

    def bytes_read(self, step: Step) -> int:
        """Bytes of the inputs of a step, as stored; rows that are put together count as whole tables."""
        return sum(self.models[x.model].entries[x.name].nbytes for x in step.inputs)
