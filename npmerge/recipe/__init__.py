"""Recipes: what to merge, read and checked before any tensor is opened."""

from npmerge.recipe.documents import load_recipe, parse_recipe
from npmerge.recipe.schema import Recipe

__all__ = ["Recipe", "load_recipe", "parse_recipe"]
