"""What a `learn:` block minimises: terms of networks and examples, summed up and joint over tasks, and terms of theta."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from alignment.checks import unknown
from alignment.graph import Graph, PyTree
from npmerge import objectives
from npmerge.base import Merge
from npmerge.learning.named_values import called, made
from npmerge.learning.partly import shares_of_theta
from npmerge.learning.places import inside
from npmerge.learning.user_code import check_arguments, imported
from npmerge.objectives import Joint, Objective, Sum, TowardStart, WeightSpaceLoss, weight_space, weighted_sum
from npmerge.objectives.teachers import check_teacher
from npmerge.recipe.blocks import Learn
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path
from npmerge.recipe.terms import REGULARISERS, Term

LABELLED = ("cross_entropy", "per_example")
"""Terms that read labels."""


@dataclass(frozen=True)
class Goal:
    """What is minimised.

    Attributes:
        objective: of the merged network and batches, of one task or joint.
        regularisers: terms of theta with their weights, by name.
        idle: models that teach no task although tasks have teachers of their own.
    """

    objective: Objective
    regularisers: tuple[tuple[str, float], ...] = ()
    idle: tuple[str, ...] = ()

    def of_task(self, task: int) -> Objective:
        """What judges the networks on the data of one task."""
        if not isinstance(joint := self.objective, Joint):
            return joint
        return (joint.objective[task] if isinstance(joint.objective, tuple) else joint.objective).of_task(task)

    def data_loss(self, merge: Merge, apply: Callable) -> WeightSpaceLoss:
        """The loss of a merge's theta without the regularisers."""
        return weight_space(merge, apply, self.objective)

    def loss(self, merge: Merge, apply: Callable, theta: PyTree) -> Any:
        """The loss of a merge's theta, which starts at `theta`."""
        terms: list[Any] = [self.data_loss(merge, apply)]
        for name, _ in self.regularisers:
            terms.append(TowardStart(theta) if name == "toward_start" else shares_of_theta(merge))
        return terms[0] if len(terms) == 1 else weighted_sum(terms, [1.0, *(w for _, w in self.regularisers)])


def goal_of(recipe: Recipe, learn: Learn, models: Sequence[str], graph: Graph | None) -> Goal:
    """What a block minimises.

    Args:
        recipe: for the lines of errors.
        learn: the block.
        models: what the recipe calls those that are merged, in order.
        graph: of the network, for terms that compare its layers (`needs_graph`).

    Raises:
        ValueError: terms that cannot be made, tasks of models that there are not (file and line).
    """
    regularisers = tuple((term.name, term.weight) for term in learn.objective if term.name in REGULARISERS)
    places = dict(learn.terms)
    found = []
    for task, path in zip(learn.data, learn.own_places, strict=True):
        place = ("objective",) if task.objective is None else path
        found.append(_summed(recipe, ("learn", *place), places[place], graph))
    if len(found) == 1:
        return Goal(found[0], regularisers)
    if (whose := _models_of_tasks(recipe, learn, models)) is not None:
        found = [objective.of_task(model) for objective, model in zip(found, whose, strict=True)]
    every = found[0] if all(x == found[0] for x in found) else tuple(found)
    weights = [task.weight / len(learn.data) for task in learn.data]
    joint = Joint(every, tuple(weights) if any(task.weight != 1 for task in learn.data) else None)
    return Goal(joint, regularisers, tuple(models[k] for k in _idle(learn, whose, len(models))))


def needs_graph(learn: Learn) -> bool:
    """Whether one of the terms compares layers."""
    return any(term.name == "feature_matching" for _, terms in learn.terms for term in terms)


def needs_labels(learn: Learn, task: int) -> str | None:
    """The name of a term of a task that reads labels; None if none does."""
    terms = learn.data[task].objective or learn.objective
    return next((term.name for term in terms if term.name in LABELLED), None)


def functions_of(learn: Learn) -> list[str]:
    """The user's functions among the terms, as `module:function`."""
    given = [x for _, terms in learn.terms for term in terms for x in (term.name, term.arguments.get("function"))]
    return [x for x in given if isinstance(x, str) and ":" in x]


def check_goal(recipe: Recipe, learn: Learn) -> None:
    """Check that all terms can be made, as far as is known without the models. Raises ValueError with file and line."""
    for place, terms in learn.terms:
        path: Path = ("learn", *place)
        kinds = [term for term in terms if term.name not in REGULARISERS]
        if len(kinds) < len(terms) and place != ("objective",):
            raise recipe.error(path, f"{_first(terms, REGULARISERS)} is of all tasks: give it under learn.objective")
        if not kinds and any(task.objective is None for task in learn.data):
            raise recipe.error(path, f"{terms[0].name} holds back what is learned from something: add an objective of data")
        for k, term in enumerate(terms):
            with inside(recipe, _of(path, k, terms)):
                _check_term(term, len(learn.data))
    if len(learn.data) == 1 and (given := learn.data[0].model_fields_set & {"model", "weight"}):
        raise recipe.error(("learn", "data"), f"{min(given)} is of one of several tasks: give a list of them")
    named = [task.model is not None for task in learn.data]
    if any(named) and not all(named):
        raise recipe.error(("learn", "data", named.index(False)), "model is missing: name that of every task, or of none")


def _check_term(term: Term, tasks: int) -> None:
    if term.name == "feature_matching":
        check_arguments(term.name, term.arguments, ["teacher", "sequential", "names"])
        check_teacher("FeatureMatching", term.arguments.get("teacher", "mean"))
    elif term.name in REGULARISERS:
        check_arguments(term.name, term.arguments, [])
    else:
        _objective(term, None)
    if term.arguments.get("teacher") == "own" and tasks == 1:
        raise ValueError("teacher: own is the model of each task: give a list under data, with an entry for each model")


def _summed(recipe: Recipe, path: Path, terms: Sequence[Term], graph: Graph | None) -> Objective:
    found: list[Objective] = []
    weights: list[float] = []
    for k, term in enumerate(terms):
        if term.name not in REGULARISERS:
            with inside(recipe, _of(path, k, terms)):
                found.append(_objective(term, graph))
            weights.append(term.weight)
    return found[0] if weights == [1.0] else Sum(tuple(found), tuple(weights))


def _objective(term: Term, graph: Graph | None) -> Objective:
    if ":" in term.name:
        check_arguments(term.name, term.arguments, ["masks"])
        return called(objectives.UserObjective, {"function": imported(term.name)[1], **term.arguments})
    if term.name == "per_example":
        check_arguments(term.name, term.arguments, ["function"])
        if not isinstance(function := term.arguments.get("function"), str) or ":" not in function:
            raise ValueError(f"per_example needs a function of (outputs, targets), as module:function: got {function!r}")
        return objectives.PerExample(imported(function)[1])
    return made(objectives, term, **({"graph": graph} if term.name == "feature_matching" else {}))


def _models_of_tasks(recipe: Recipe, learn: Learn, models: Sequence[str]) -> list[int] | None:
    """The place of the model of each task; None where they are not named."""
    found = []
    for k, task in enumerate(learn.data):
        if task.model is None:
            return None
        if task.model not in models:
            raise recipe.error(("learn", "data", k, "model"), unknown("model", task.model, models))
        found.append(list(models).index(task.model))
    return found


def _idle(learn: Learn, whose: Sequence[int] | None, count: int) -> list[int]:
    """The models that no task names whose teacher is its own; none where tasks have no such teachers."""
    own = [any(x.arguments.get("teacher") == "own" for x in task.objective or learn.objective) for task in learn.data]
    if whose is None or not any(own):
        return []
    teach = {model for model, taught in zip(whose, own, strict=True) if taught}
    return [k for k in range(count) if k not in teach]


def _of(path: Path, k: int, terms: Sequence[Term]) -> Path:
    """The place of one of several terms."""
    return (*path, k) if len(terms) > 1 else path


def _first(terms: Sequence[Term], names: Sequence[str]) -> str:
    return next(term.name for term in terms if term.name in names)
