"""What a plan merges, as whole models: the tensors of each by the names that the merged model has for them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from npmerge.checkpoint.headers import DTYPES
from npmerge.checkpoint.held import HeldModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.plan import Plan, Source, Step
from npmerge.recipe.schema import Recipe


class StoredTensor:
    """A tensor on disk that becomes an array when asked."""

    def __init__(self, model: StoredModel, name: str):
        self._model, self._name = model, name
        self.shape, self.dtype = model.entries[name].shape, DTYPES[model.entries[name].dtype]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._model.read(self._name).reshape(self.shape)


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
        ValueError: plans of which networks cannot be made: other numbers of models in its parts, tensors that are left out of
            the merge, vocabularies that are joined (the line of the block).
    """
    merged = [step for step in plan.steps if step.action == "merge"]
    counts = {(len(step.sources), step.base is not None) for step in merged}
    if recipe.include or recipe.exclude:
        raise recipe.error((block,), "merges whole networks: leave out include and exclude")
    if len(counts) != 1:
        raise recipe.error((block,), f"needs the same models for all tensors, got {sorted(x for x, _ in counts)} of them")
    if any(source.rows is not None for step in merged for source in _sources(step)):
        raise recipe.error((block,), "needs one vocabulary: join those of the models in documents of their own first")
    ((count, based),) = counts
    models = tuple(_tensors(plan, k) for k in range(count))
    base = _tensors(plan, None) if based else None
    firsts = [merged[0].sources[k] for k in range(count)]
    extra = [merged[0].base] if merged[0].base is not None else []
    return Members(models, base, tuple(plan.models[s.model].name for s in (*firsts, *extra)))


def with_tensors(plan: Plan, arrays: tuple[dict[str, np.ndarray], ...], base: dict[str, np.ndarray] | None) -> Plan:
    """The plan with these arrays in the place of what it merges."""
    first = len(plan.models)
    config = plan.models[plan.reference].config
    held = [HeldModel(f"aligned model {k}", x, config) for k, x in enumerate([*arrays, *([] if base is None else [base])])]

    def moved(step: Step) -> Step:
        if step.action != "merge":
            return step
        sources = tuple(Source(first + k, step.name) for k in range(len(step.sources)))
        return replace(step, sources=sources, base=step.base and Source(first + len(arrays), step.name))

    return replace(plan, models=(*plan.models, *held), steps=tuple(map(moved, plan.steps)))


def with_results(plan: Plan, arrays: Mapping[str, np.ndarray]) -> Plan:
    """The plan with every merge replaced by a copy of what was learned, rounded once to the dtype that it asks for."""
    stored = {s.name: arrays[s.name].astype(DTYPES[s.dtype]) for s in plan.steps if s.action == "merge"}
    held = HeldModel("what was learned", stored, {})
    number = len(plan.models)

    def copied(step: Step) -> Step:
        if step.action != "merge":
            return step
        return replace(step, action="copy", sources=(Source(number, step.name),), base=None, method="", parameters={})

    return replace(plan, models=(*plan.models, held), steps=tuple(map(copied, plan.steps)))


def _tensors(plan: Plan, place: int | None) -> dict[str, StoredTensor]:
    """Of the source at a place, or of the base for None; tensors that are copied are those of the result."""
    found = {}
    for step in plan.steps:
        source = step.sources[0] if step.action == "copy" else step.base if place is None else step.sources[place]
        assert source is not None
        found[step.name] = StoredTensor(plan.models[source.model], source.name)
    return found


def _sources(step: Step) -> tuple[Source, ...]:
    return (*step.sources, *([step.base] if step.base else []))
