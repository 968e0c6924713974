"""Where learning starts: the closed form that the recipe's method is, tensor by tensor where it has other numbers for each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.base import Stats
from npmerge.constraints import Constraint
from npmerge.linear import LinearMerge, constant
from npmerge.methods import ModelStock, Slerp, Ties
from npmerge.recipe.blocks import Learn
from npmerge.recipe.plan import Plan, Step
from npmerge.recipe.schema import Recipe

STARTS = ("linear", "task_arithmetic", "slerp", "ties", "model_stock")
"""Methods of recipes that learning can start from."""


@dataclass(frozen=True)
class Planned(LinearMerge):
    """The coefficients that a recipe has for each tensor.

    Attributes:
        by_path: one number per model for each leaf.
        of_task_vectors: whether they multiply differences from the base.
    """

    by_path: tuple[tuple[str, tuple[float, ...]], ...]
    of_task_vectors: bool

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether they multiply differences from the base."""
        return self.of_task_vectors

    def init(self, stack: Any, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The coefficients, one per model and tensor; equal ones where the recipe has none, as of running statistics."""
        there = dict(self.by_path)
        equal = constant(stack, 1.0 if self.of_task_vectors else 1 / stack.size)

        def leaf(path: tuple, c: Array) -> Array:
            own = there.get(path_name(path))
            return c if own is None else jnp.asarray(np.array(own, np.float32).reshape(c.shape))

        return jax.tree_util.tree_map_with_path(leaf, equal)


def start_of(recipe: Recipe, plan: Plan, paths: Mapping[str, tuple[str, ...]]) -> LinearMerge:
    """The closed form of a plan.

    Args:
        recipe: that was planned.
        plan: of it.
        paths: where each tensor stands among the variables.

    Raises:
        ValueError: a method that has no coefficients to learn, or parameters that are not the same for all tensors where the
            method is one of all of them (the line).
    """
    steps = [step for step in plan.steps if step.action == "merge" and not step.note]
    method = recipe.merge_method
    if method not in STARTS:
        raise recipe.error(("learn",), f"cannot start from {method}: expected one of {', '.join(STARTS)}")
    if method in ("linear", "task_arithmetic"):
        found = tuple((path, _coefficients(step)) for step in steps for path in paths[step.name])
        return Planned(found, method == "task_arithmetic")
    values = {repr(sorted(step.parameters.items())): step.parameters for step in steps}
    if len(values) != 1:
        raise recipe.error(("learn",), f"starts from {method} with the same parameters for all tensors, got {len(values)} sets")
    (given,) = values.values()
    return _whole(method, given)


def check_allowed(start: LinearMerge, constraint: Constraint, learned: Collection[str]) -> None:
    """Check what is known of a start before any tensor is read: the numbers of the recipe, and zeros where ties trims.

    Args:
        start: the closed form.
        constraint: of the coefficients.
        learned: the paths of which they are learned.

    Raises:
        ValueError: coefficients that the constraint does not allow.
    """
    rows: set[tuple[float, ...]] = set()
    if isinstance(start, Planned):
        rows = {own for path, own in start.by_path if path in learned and not is_statistic(path)}
    elif isinstance(start, Ties) and isinstance(start.density, tuple) and max(start.density) < 1:
        rows = {(0.0,) * len(start.density)}
    for own in sorted(rows):
        constraint.check(np.array(own, np.float32)[:, None])


def chosen_tensors(recipe: Recipe, learn: Learn, paths: Mapping[str, Sequence[str]]) -> list[str]:
    """Of which of the merged tensors coefficients are learned.

    A filter that holds for the name of no tensor is one for its paths among the variables, which reports name.

    Args:
        recipe: for the lines of errors.
        learn: of it.
        paths: where each merged tensor stands among the variables.

    Raises:
        ValueError: a filter that holds for none of them, or none that is left (the line).
    """
    held: dict[str, set[str]] = {"include": set(), "exclude": set()}
    for key, found in held.items():
        for i, pattern in enumerate(getattr(learn, key)):
            named = {name for name in paths if pattern.matches(name)}
            named = named or {name for name, own in paths.items() if any(map(pattern.matches, own))}
            if not named:
                raise recipe.error(("learn", key, i), pattern.missed(paths, "that is merged"))
            found |= named
    chosen = [name for name in paths if (name in held["include"] or not learn.include) and name not in held["exclude"]]
    if not chosen:
        raise recipe.error(("learn",), "include and exclude leave no tensor whose coefficients would be learned")
    return chosen


def _coefficients(step: Step) -> tuple[float, ...]:
    """What each model, or its task vector, is multiplied by."""
    weights = np.array(step.parameters["weight"], float)
    total = weights.sum() if step.parameters["normalize"] else 1.0
    return tuple((float(step.parameters.get("lambda", 1.0)) * weights / total).tolist())  # type: ignore[arg-type]


def _whole(method: str, given: Mapping[str, Any]) -> LinearMerge:
    if method == "slerp":
        return Slerp(given["t"])
    if method == "model_stock":
        return ModelStock(bool(given["filter_wise"]))
    density, weights = tuple(given["density"]), tuple(given["weight"])
    merge: Any = "mean" if given["normalize"] else "sum"
    return Ties(density, given["lambda"], scope="tensor", merge=merge, weights=weights)
