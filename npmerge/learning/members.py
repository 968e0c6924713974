"""What a plan merges, as whole models: the tensors of each by the names that the merged model has for them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.held import HeldModel
from npmerge.checkpoint.tensors import StoredTensor
from npmerge.recipe.plan import Plan, Source, Step
from npmerge.recipe.schema import Recipe
from npmerge.stream.rows import read_rows


class JoinedTensor(StoredTensor):
    """A table of tokens that is put together from rows of several models."""

    def __init__(self, plan: Plan, source: Source, shape: tuple[int, ...]):
        super().__init__(plan.models[source.model], source.name)
        assert source.rows is not None
        self._models, self._rows, self.shape = plan.models, source.rows, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return read_rows(self._models, self._rows).reshape(self.shape)


Tensors = Mapping[str, StoredTensor]


class Members(NamedTuple):
    """The inputs of a merge.

    Attributes:
        models: the tensors of each model that is merged, in the order of the parameters.
        base: of what task vectors are differences from; None for methods without.
        names: what the recipe calls them, the base last.
    """

    models: tuple[Tensors, ...]
    base: Tensors | None
    names: tuple[str, ...]

    @property
    def all(self) -> tuple[Tensors, ...]:
        """With the base, which is the first."""
        return self.models if self.base is None else (self.base, *self.models)


def members_of(recipe: Recipe, plan: Plan, block: str) -> Members:
    """The inputs of a plan.

    Args:
        recipe: that was planned.
        plan: of it.
        block: "align" or "learn", whose line messages name.

    Raises:
        ValueError: plans of which networks cannot be made: other numbers of models in its parts, or nothing that is merged
            (the line of the block).
    """
    merged = [step for step in plan.steps if step.action == "merge" and not step.note]  # notes: running statistics
    counts = {(len(step.sources), step.base is not None) for step in merged}
    if len(counts) != 1:
        raise recipe.error((block,), f"needs the same models for all tensors, got {sorted(x for x, _ in counts)} of them")
    ((count, based),) = counts
    models = tuple(_tensors(plan, k) for k in range(count))
    base = _tensors(plan, None) if based else None
    firsts = [merged[0].sources[k] for k in range(count)]
    extra = [merged[0].base] if merged[0].base is not None else []
    return Members(models, base, tuple(plan.models[s.model].name for s in (*firsts, *extra)))


def with_tensors(plan: Plan, arrays: tuple[dict[str, np.ndarray], ...], base: dict[str, np.ndarray] | None) -> Plan:
    """The plan with these arrays in the place of what it merges; tensors that the network has no use for stay."""
    first = len(plan.models)
    config = plan.reference.config
    held = [HeldModel(f"aligned model {k}", x, config) for k, x in enumerate([*arrays, *([] if base is None else [base])])]

    def moved(step: Step) -> Step:
        if step.action != "merge" or step.name not in arrays[0]:
            return step
        sources = tuple(Source(first + k, step.name) for k in range(len(step.sources)))
        return replace(step, sources=sources, base=step.base and Source(first + len(arrays), step.name))

    return replace(plan, models=(*plan.models, *held), steps=tuple(map(moved, plan.steps)))


def with_results(plan: Plan, arrays: Mapping[str, np.ndarray]) -> Plan:
    """The plan with its merges replaced by copies of what was learned, rounded once to the dtype that it asks for.

    Tensors that the network has no use for are merged as planned.
    """
    learned = [step for step in plan.steps if step.action == "merge" and step.name in arrays]
    stored = {step.name: arrays[step.name].astype(DTYPES[step.dtype]) for step in learned}
    held = HeldModel("the learned network", stored, {})
    number = len(plan.models)

    def copied(step: Step) -> Step:
        if step.name not in stored:
            return step
        return replace(step, action="copy", sources=(Source(number, step.name),), base=None, method="", parameters={})

    return replace(plan, models=(*plan.models, held), steps=tuple(map(copied, plan.steps)))


def _tensors(plan: Plan, place: int | None) -> dict[str, StoredTensor]:
    """Of the source at a place, or of the base for None; tensors that are copied are those of the result."""
    based = next((step.base.model for step in plan.steps if step.base is not None), 0)
    return {step.name: _tensor(plan, step, _source(plan, step, place, based)) for step in plan.steps}


def _source(plan: Plan, step: Step, place: int | None, based: int) -> Source:
    if step.action == "copy" or (step.note and len(step.sources) == 1):
        return step.sources[0]
    if place is not None:
        return step.sources[place]
    return step.base or Source(based, step.name if step.name in plan.models[based].entries else step.sources[0].name)


def _tensor(plan: Plan, step: Step, source: Source) -> StoredTensor:
    if source.rows is not None:
        return JoinedTensor(plan, source, step.shape)
    return StoredTensor(plan.models[source.model], source.name)
