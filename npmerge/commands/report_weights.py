"""What the report of a merge says of weights: what each model contributes, how near it is, and how two of them agree."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands.compare import Models, differences_of, layer_of
from npmerge.commands.plan_page import coefficients
from npmerge.folder.card import name_of
from npmerge.recipe.layers import layers_of
from npmerge.recipe.plan import Plan, Source, Step

MOST_PAIRS = 28
"""Pairs of models that are compared: all of eight."""

MOST_ROWS = 40
"""Tensors that stand for the depth of a network without layers."""

Rows = Mapping[str, Mapping[str, Any]]


class View(StoredModel):
    """The tensors of one input by the names that the merged model has for them.

    Args:
        plan: of the merge.
        number: the place of the model in it.
    """

    def __init__(self, plan: Plan, number: int):
        model = plan.models[number]
        self.path, self.called, self.config, self._model = model.path, model.name, model.config, model
        found = {step.name: _source(step, number) for step in plan.steps}
        self._names = {name: source.name for name, source in found.items() if source is not None}
        self.entries = {name: _named(model.entries[own], name) for name, own in self._names.items()}

    def read(self, name: str, start: int = 0, count: int | None = None) -> np.ndarray:
        """See `StoredModel.read`."""
        return self._model.read(self._names[name], start, count)


def _source(step: Step, number: int) -> Source | None:
    """What a step reads of a model; None for tables whose rows are put together, which are no tensor of one."""
    return next((x for x in step.inputs if x.model == number and x.rows is None), None)


def _named(entry: Entry, name: str) -> Entry:
    return Entry(name, entry.dtype, entry.shape)


def base_of(plan: Plan) -> int | None:
    """The place of the model that task vectors are differences from; None for methods without."""
    return next((step.base.model for step in plan.steps if step.base is not None), None)


def members_of(plan: Plan) -> list[int]:
    """The places of the models that are merged, in their order; the base is none of them."""
    found = dict.fromkeys(x.model for step in plan.steps if step.action == "merge" for x in step.sources)
    return list(found) or list(dict.fromkeys(x.model for step in plan.steps for x in step.sources))


def names_of(plan: Plan) -> dict[int, str]:
    """What the report calls each model: what strangers may know it by, short where that tells it apart."""
    full = {k: name_of(model.name) for k, model in enumerate(plan.models)}
    short = {k: Path(name).name for k, name in full.items()}
    return short if len(set(short.values())) == len(short) else full


def planned_coefficients(plan: Plan) -> dict[str, Any] | None:
    """The mean coefficient of each model by layer, weighted by entries, as the plan has them; None where values decide."""
    models, names = members_of(plan), names_of(plan)
    merged = [step for step in plan.steps if step.action == "merge"]
    all_of_them = {step.name: coefficients(step) for step in merged}
    found = {name: c for name, c in all_of_them.items() if c is not None}
    if not found or len(found) < len([step for step in merged if not step.note]):
        return None
    sums: dict[str, np.ndarray] = {}
    of = groups_of([step.name for step in plan.steps])
    for step in merged:
        if step.name in found:
            row = np.zeros(len(models) + 1)
            for source, c in zip(step.sources, found[step.name], strict=True):
                row[models.index(source.model)] += c * step.entry.size
            row[-1] = step.entry.size
            sums[of[step.name]] = sums.get(of[step.name], np.zeros(len(models) + 1)) + row
    rows = {short(name): (sums[name][:-1] / sums[name][-1]).tolist() for name in dict.fromkeys(of.values()) if name in sums}
    return {"kind": "planned", "models": [names[k] for k in models], "modules": rows}


def groups_of(names: Sequence[str]) -> dict[str, str]:
    """For each tensor the layer that it is counted in, from the inputs to the outputs; in a network without, the tensor."""
    layers = layers_of(names)
    if not layers.numbers or sum(map(len, layers.numbers.values())) < 2:
        return {name: name for name in names}
    stacks = list(layers.numbers)

    def depth(name: str) -> tuple[int, int, int]:
        place = layers.place(name)
        if place is None:
            return (2 if layers.is_after(name) else 0, 0, 0)
        return (1, stacks.index(place.stack), place.number)

    found = layer_of(names)
    return {name: found[name] for name in sorted(names, key=depth)}


def nearness(merged: StoredModel, models: Mapping[str, StoredModel], base: StoredModel | None) -> dict[str, Any]:
    """How near the merged model is to each model, by layer and as a whole.

    Args:
        merged: the result.
        models: by name, with tensors of its names.
        base: what task vectors are differences from, if any.
    """
    found = differences_of(Models(merged, tuple(models.values()), base), quiet=True)
    rows = [{"models": [name], **_by_depth(x)} for name, x in zip(models, found, strict=True)]
    shapes = {name: entry.shape for name, entry in merged.entries.items()}
    left = [x for x, shape in shapes.items() if any(x not in m.entries or m.entries[x].shape != shape for m in models.values())]
    return {"rows": rows, "not_compared": left}


def pairs(models: Mapping[str, StoredModel], base: StoredModel | None) -> dict[str, Any]:
    """How each two models agree: the cosine of their weights and, with a base, of their deltas, and the conflict of signs.

    Args:
        models: by name.
        base: what deltas are differences from, if any.
    """
    rows: list[dict[str, Any]] = []
    names = list(models)
    for k, first in enumerate(names[:-1]):
        others = names[k + 1 :][: MOST_PAIRS - len(rows)]
        if others:
            found = differences_of(Models(models[first], tuple(models[x] for x in others), base), quiet=True)
            rows += [{"models": [first, other], **_by_depth(x)} for other, x in zip(others, found, strict=True)]
    left = len(list(itertools.combinations(names, 2))) - len(rows)
    return {"base": None if base is None else name_of(base.name), "rows": rows, "left_out": left}


def _by_depth(found: Mapping[str, Any]) -> dict[str, Any]:
    """Layers in the order of the network; of one without layers the tensors, if they are few."""
    names = list(found["tensors"])
    order = list(dict.fromkeys(groups_of(names).values()))
    rows = found["layers"] if len(found["layers"]) > 1 else found["tensors"] if len(names) <= MOST_ROWS else found["layers"]
    return {"whole": found["whole"], "layers": {short(name): rows[name] for name in [*order, *rows] if name in rows}}


def short(layer: str) -> str:
    """Without the root of the tree, as coefficients are called."""
    return layer.removeprefix("params/")
