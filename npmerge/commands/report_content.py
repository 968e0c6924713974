"""Everything that the report of a merge says, measured as far as its inputs are there."""

import contextlib
import functools
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignment.names import is_statistic
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.partial import RECORD
from npmerge.checkpoint.stored import StoredModel
from npmerge.commands.planning import Planned
from npmerge.commands.report_folder import CHANGED, KEPT, Inputs, Merged, Request, inputs_of
from npmerge.commands.report_projection import projected
from npmerge.commands.report_weights import View, base_of, members_of, names_of, nearness, pairs, planned_coefficients
from npmerge.folder.card import name_of
from npmerge.recipe.groups import inputs_of as models_of
from npmerge.recipe.plan import Plan
from npmerge.reports.progress import Advance
from npmerge.version import __version__

if TYPE_CHECKING:
    from npmerge.commands.report_networks import Networks
    from npmerge.learning.data import Examples

PARTS = ("evaluation", "alignment", "paths", "contributions", "nearness", "pairs", "statistics")
"""What is measured, by the names that `report.json` has for it."""


CONTROL = "a recipe trains none; in Python `npmerge.fit` with `npmerge.fine_tuning` does, as in task c of the README"
"""Where what a learned merge has to be measured against comes from."""


class LeftOut(Exception):  # noqa: N818 - nothing has gone wrong
    """A part of the report that cannot be measured; the message says how it can."""


def content_of(request: Request, merged: Merged, taken: Mapping[str, Any] | None, advance: Advance) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
        request: what is asked for.
        merged: the folder of the merge.
        taken: what making the merge took, if it has just been made.
        advance: told what is being done.

    Raises:
        ValueError: given examples that the networks do not take, an architecture that they are not of.

    Returns:
        What was merged, and each part by its name. `left_out` says of each part that is missing how to get it, `earlier` names
        those that an earlier report of the same tensors has measured, from inputs that are no longer there.
    """
    inputs = inputs_of(merged, trusted=request.trusted)
    measuring = _Measuring(request, merged, inputs, advance)
    if request.architecture is not None and (measuring.recipe.align or measuring.recipe.learn):
        raise ValueError("--architecture is for recipes that run no network: this one says which it is, in align or learn")
    if request.data is not None:
        with contextlib.suppress(LeftOut):
            _ = measuring.examples  # which tells what is wrong with them
    content: dict[str, Any] = {"npmerge": __version__, "command": request.command, "merge": _merge(merged, inputs)}
    content |= {"outputs": dict(merged.replay.provenance.outputs), "left_out": {}, "earlier": []}
    for name in (*PARTS, "cost"):
        try:
            content[name] = _cost(taken) if name == "cost" else getattr(measuring, name)()
        except LeftOut as why:
            content[name] = merged.earlier.get(name)
            if content[name] is not None:
                content["earlier"].append(name)
            elif str(why):
                content["left_out"][name] = str(why)
        except ValueError as error:  # such as numbers that are not finite
            content[name], content["left_out"][name] = None, f"it cannot be measured ({error})"
    if measuring.recipe.learn is not None:
        content["left_out"]["control"] = CONTROL
    return content | {"warnings": _warnings(inputs, taken)}


def _merge(merged: Merged, inputs: Inputs) -> dict[str, Any]:
    """What was merged, by which recipe; what only the models tell is null where they cannot be read."""
    replay, plan = merged.replay, inputs.planned and inputs.planned.plan
    recipes = inputs.recipes
    last, entries = recipes[-1], merged.model.entries.values()
    return {
        "name": merged.path.resolve().name,
        "method": last.merge_method,
        "documents": len(recipes),
        "aligned_by": last.align and last.align.method,
        "learned": last.learn is not None,
        "models": _models(plan) if plan else [{"name": name_of(x)} for recipe in recipes for x in models_of(recipe)],
        "tensors": len(entries),
        "parameters": sum(entry.size for entry in entries),
        "bytes": sum(entry.nbytes for entry in entries),
        "steps": plan and _steps(plan),
        "seed": replay.seed,
        "mergekit_semantics": replay.mergekit_semantics,
        "versions": dict(replay.versions),
        "recipe": replay.provenance.recipe,
        "inputs": [{"path": x, "hash": replay.provenance.inputs[x], "state": state} for x, state in inputs.states.items()],
        "again": shlex.join(["npmerge", "merge", str(merged.path / RECORD), f"{merged.path}-again"]),
    }


def _models(plan: Plan) -> list[dict[str, Any]]:
    base, members = base_of(plan), members_of(plan)
    found = []
    for k, name in names_of(plan).items():
        entries = plan.models[k].entries.values()
        role = "base" if k == base else "model" if k in members else "configuration only"
        sizes = {"tensors": len(entries), "parameters": sum(x.size for x in entries), "bytes": sum(x.nbytes for x in entries)}
        found.append({"name": name, "role": f"{role}, reference" if k == 0 else role, **sizes})
    return found


def _steps(plan: Plan) -> dict[str, int]:
    """How many tensors are made by each method, and how many are copied."""
    counts: dict[str, int] = {}
    for step in plan.steps:
        kind = step.method or "copied"
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def _cost(taken: Mapping[str, Any] | None) -> Mapping[str, Any]:
    if taken is None:
        raise LeftOut("only the run knows it, as `npmerge merge RECIPE OUT --report` does")
    return taken


def _warnings(inputs: Inputs, taken: Mapping[str, Any] | None) -> list[str]:
    """What is not as it was, and what the plan warns of."""
    bad = {
        path: "has changed" if state == CHANGED else "is not there" for path, state in inputs.states.items() if state != KEPT
    }
    plan = () if inputs.planned is None else inputs.planned.plan.warnings
    return [*(f"the input {path} {how}" for path, how in bad.items()), *plan, *(taken or {}).get("warnings", ())]


class _Measuring:
    """What can be measured of one merge. Each part raises LeftOut where it cannot be: without words where there is none."""

    def __init__(self, request: Request, merged: Merged, inputs: Inputs, advance: Advance):
        self.request, self.merged, self.inputs, self.advance = request, merged, inputs, advance
        self.recipe = inputs.recipes[-1]

    @property
    def planned(self) -> Planned:
        """The merge, of inputs that are as they were."""
        if self.inputs.planned is None:
            raise LeftOut(f"{self.inputs.why}; run the command in the folder where the merge ran, with its inputs as they were")
        return self.inputs.planned

    @functools.cached_property
    def networks(self) -> "Networks":
        """The models as functions."""
        from npmerge.commands.report_networks import Networks  # imports flax and Optax

        planned = self.planned
        if self.recipe.align is not None and not self.inputs.with_data:
            raise LeftOut("the models are aligned by examples that are not there, or have changed")
        known = planned if self.inputs.with_data else planned._replace(blocks=None)
        try:
            return Networks(known, self.merged.model, self.advance, self.request.architecture)
        except ValueError as error:
            if self.request.architecture is not None:
                raise ValueError(f"--architecture {self.request.architecture}: {error}") from None
            raise LeftOut(f"the models are no network that can be run here ({error})") from None

    @functools.cached_property
    def examples(self) -> "Examples | None":
        """Those that were given, or that the recipe measures on. Raises ValueError for given ones that do not fit."""
        return self.networks.held_out() if self.request.data is None else self.networks.examples(self.request.data)

    @property
    def has_examples(self) -> bool:
        """Whether there are any, given or in the recipe."""
        align = self.recipe.align
        return self.request.data is not None or self.recipe.learn is not None or (align is not None and align.data is not None)

    @property
    def _given(self) -> str:
        """How to give examples."""
        return f"`{shlex.join(['npmerge', 'report', str(self.merged.path)])} --data FILE`"

    @property
    def labelled(self) -> "Examples":
        """Examples with labels of what the networks predict; no network is read where there are none."""
        if not self.has_examples or self.examples is None:
            raise LeftOut(
                f"give examples with labels, {self._given}: a .npz of inputs and labels, or text for a language model"
            )
        if not self.networks.judges(self.examples):
            raise LeftOut(f"{self.examples.name} has no labels of what the networks predict")
        return self.examples

    @functools.cached_property
    def models(self) -> dict[str, StoredModel]:
        """What was merged, by name: aligned, where the recipe aligns."""
        plan = self.planned.plan
        if self.recipe.align is not None:
            return self.networks.aligned_models()
        names = names_of(plan)
        return {names[k]: View(plan, k) for k in members_of(plan)}

    @functools.cached_property
    def base(self) -> StoredModel | None:
        """What deltas are differences from."""
        if self.request.base is not None:
            return open_checkpoint(self.request.base)
        place = base_of(self.planned.plan)
        return None if place is None else View(self.planned.plan, place)

    def contributions(self) -> dict[str, Any]:
        """Learned coefficients, those of the plan, or where values decide those that explain the result best, by depth."""
        if self.merged.history is not None:
            shares = self.merged.history["shares"]
            return {"kind": "learned", "models": shares["models"], "modules": shares["modules"]}
        if self.recipe.learn is not None:
            raise LeftOut("they were learned, and history.json, which keeps them, is not there")
        models, base = self.models, self.base
        return planned_coefficients(self.planned.plan) or projected(self.merged.model, models, base)

    def nearness(self) -> dict[str, Any]:
        """How near the result is to each model."""
        models, base = self.models, self.base
        self.advance("comparing the result with each model")
        return nearness(self.merged.model, models, base)

    def pairs(self) -> dict[str, Any]:
        """How the models agree with each other."""
        if len(self.models) < 2:
            raise LeftOut("there is one model alone")
        self.advance("comparing the models")
        return pairs(self.models, self.base)

    def evaluation(self) -> dict[str, Any]:
        """Accuracy and loss of every model, the average and the result."""
        from npmerge.commands.report_networks import evaluation

        try:
            examples, tasks = self.labelled, self.networks.tasks
        except LeftOut:
            if self.merged.history is not None and self.merged.history["evaluation"]["networks"]:
                raise LeftOut from None  # what was measured while learning is shown in its place
            raise
        held_out = self.request.data is None and tasks is not None and tasks.has_held_out
        return evaluation(self.networks, examples, held_out=held_out)

    def alignment(self) -> dict[str, Any]:
        """What aligning brought."""
        from npmerge.commands.report_networks import alignment

        if self.recipe.align is None and self.recipe.base_model is not None:
            raise LeftOut  # models of one origin have their units in one order
        if self.recipe.align is None:
            raise LeftOut("the recipe does not align; `align: {method: weight_matching}` does, for models of different seeds")
        return alignment(self.networks, self.examples)

    def paths(self) -> dict[str, Any]:
        """Loss between the models, where it is not told of an alignment."""
        from npmerge.commands.report_networks import paths

        if self.recipe.align is not None:
            raise LeftOut
        examples = self.labelled
        return paths(self.networks, examples)

    def statistics(self) -> dict[str, Any]:
        """Statistics of BatchNorm, where there are any."""
        from npmerge.commands.report_networks import statistics

        if not any(is_statistic(name.replace(".", "/")) for name in self.merged.model.entries):
            raise LeftOut
        if not self.has_examples:
            raise LeftOut(f"give examples to estimate them from, {self._given}")
        if self.networks.network.train_apply is None:
            raise LeftOut("give an architecture that has train_apply")
        return statistics(self.networks, self.examples)
