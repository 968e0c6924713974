"""Recipes: what to merge, read and checked before any tensor is opened."""

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
