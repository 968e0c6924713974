"""Recipes: what to merge, read and checked before any tensor is opened.

The way of a parameter: `documents` and `schema` read it (`settings`: a number, a list over depth, filters), `groups` tells for
which models and layers it stands there, `checks` whether the method takes it. With the headers of the models, `targets` and
`matching` find the tensors, `resolve` the value for each of them, and `steps` puts it into the `Plan` that `npmerge.stream`
follows.
"""

from npmerge.recipe.documents import load_recipe, parse_recipe, read_recipe
from npmerge.recipe.make_plan import make_plan, open_models
from npmerge.recipe.parameters import METHODS
from npmerge.recipe.plan import Plan, Rows, Skipped, Source, Step
from npmerge.recipe.planned import PlannedModel
from npmerge.recipe.schema import Recipe

__all__ = [
    "METHODS",
    "Plan",
    "PlannedModel",
    "Recipe",
    "Rows",
    "Skipped",
    "Source",
    "Step",
    "load_recipe",
    "make_plan",
    "open_models",
    "parse_recipe",
    "read_recipe",
]
