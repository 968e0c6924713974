"""What a recipe names, as values of the library and of Optax; of misspelt names and arguments the nearest is told."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax

import alignment
from alignment import Alignment
from alignment.checks import first_line, unknown
from npmerge import constraints, granularity
from npmerge.learning.named_values import called, fields_of, made
from npmerge.learning.places import inside
from npmerge.learning.user_code import check_arguments
from npmerge.recipe.blocks import Align, Learn, Optimizer
from npmerge.recipe.named import Named
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path

LEARNING_RATE = 0.05
"""Of Adam, where a recipe names no optimiser: latents start near 0 and move by about as much in each step."""


_made: dict[str, optax.GradientTransformation] = {}
"""Optimisers by their block: `fit` compiles a step once for each object."""


@dataclasses.dataclass(frozen=True)
class Values:
    """The parts of a `learn:` block that are values."""

    granularity: granularity.Granularity
    constraint: constraints.Constraint
    optimizer: optax.GradientTransformation


def values_of(recipe: Recipe, learn: Learn) -> Values:
    """The values of a block. Raises ValueError for what cannot be made, with file and line."""
    with inside(recipe, ("learn", "granularity")):
        groups = made(granularity, learn.granularity)
    with inside(recipe, ("learn", "constraint")):
        allowed = made(constraints, learn.constraint)
    return Values(groups, allowed, _optimizer(recipe, learn))


def alignment_of(recipe: Recipe, align: Align) -> Alignment:
    """The alignment of a block. Raises ValueError for what cannot be made, with file and line."""
    kind = {kind.__name__.lower(): kind for kind in alignment.ALIGNMENTS}[align.method.replace("_", "")]
    with inside(recipe, ("align", "parameters" if align.parameters else "method")):
        check_arguments(align.method, align.parameters, fields_of(kind))
        return called(kind, align.parameters)


def _optimizer(recipe: Recipe, learn: Learn) -> optax.GradientTransformation:
    given = learn.optimizer
    if given is None:
        given = Optimizer(name="adam", arguments={"learning_rate": LEARNING_RATE})
    path: Path = ("learn", "optimizer")
    key = given.model_dump_json()
    if key not in _made:
        rate = None
        if given.schedule is not None:
            with inside(recipe, (*path, "schedule")):
                rate = _called("schedule", given.schedule, schedules())
        with inside(recipe, path):
            _made[key] = _with_rate(given, rate)
    return _made[key]


def _with_rate(given: Optimizer, schedule: Any) -> optax.GradientTransformation:
    if schedule is not None and "learning_rate" in given.arguments:
        raise ValueError("learning_rate and schedule exclude each other, got both")
    more = {} if schedule is None else {"learning_rate": schedule}
    made = _called("optimizer", given, optimizers(), more)
    weights = {"x": jax.ShapeDtypeStruct((2,), np.float32)}
    try:
        with jax.numpy_dtype_promotion("standard"):
            jax.eval_shape(lambda w: made.update(w, made.init(w), w), weights)
    except Exception as error:  # whatever it is that Optax raises
        raise ValueError(f"{given.name} does not work from gradients alone: {first_line(error)}") from None
    return made


def _called(kind: str, named: Named, there: Mapping[str, Callable], more: Mapping[str, Any] | None = None) -> Any:
    if named.name not in there:
        raise ValueError(unknown(kind, named.name, there))
    function = there[named.name]
    arguments = {**named.arguments, **(more or {})}
    parameters = inspect.signature(function).parameters
    check_arguments(named.name, arguments, list(parameters))
    missing = [x.name for x in parameters.values() if x.default is x.empty and x.name not in arguments]
    if missing:
        raise ValueError(f"{named.name} needs {', '.join(missing)}: give it under arguments")
    try:
        return function(**arguments)
    except TypeError as error:
        raise ValueError(f"{named.name}: {str(error).removeprefix(f'{named.name}() ')}") from None


@functools.cache
def optimizers() -> dict[str, Callable]:
    """Optax's optimisers by name: its functions that take a learning rate."""
    plain = {
        name: f for name, f in sorted(vars(optax).items()) if inspect.isfunction(f) and not name.startswith(("_", "scale_"))
    }
    return {name: f for name, f in plain.items() if "learning_rate" in inspect.signature(f).parameters}


@functools.cache
def schedules() -> dict[str, Callable]:
    """Optax's schedules by name."""
    found = {name: f for name, f in sorted(vars(optax).items()) if inspect.isfunction(f)}
    return {name: f for name, f in found.items() if name.endswith("_schedule") or name == "exponential_decay"}
