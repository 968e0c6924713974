"""Models that are headers only, and recipes as text, for tests of plans."""

from pathlib import Path

import pytest

from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.recipe import make_plan, open_models, parse_recipe

MODELS = """\
models:
  - model: a
    parameters: {weight: 1}
  - model: b
    parameters: {weight: 2}
"""


class Headers(StoredModel):
    """A model of these shapes; an entry may be (shape, dtype)."""

    def __init__(self, path, shapes, dtype="F32"):
        self.path, self.config = Path(path), {}
        self.entries = {}
        for name, shape in shapes.items():
            shape, kind = shape if shape and isinstance(shape[0], tuple) else (shape, dtype)
            self.entries[name] = Entry(name, kind, shape)

    def read(self, name, start=0, count=None):
        raise AssertionError("a plan reads no tensor")


def language_model(layers=3, width=4, rows=7, head=True):
    """Shapes of a small language model, in the order of the alphabet as files often are."""
    found = {"lm_head.weight": (rows, width)} if head else {}
    found["model.embed_tokens.weight"] = (rows, width)
    for i in range(layers):
        found |= {f"model.layers.{i}.mlp.weight": (width, width), f"model.layers.{i}.norm.weight": (width,)}
    return found | {"model.norm.weight": (width,)}


def planned(text, models=None, **options):
    """The plan of a recipe of one document; models are named a, b, c and base, alike unless they are given."""
    known = {name: Headers(name, language_model()) for name in ("base", "a", "b", "c")} | (models or {})
    (recipe,) = parse_recipe(text, "recipe.yml")
    return make_plan(recipe, open_models(recipe, known.__getitem__), **options)


def message(text):
    """What a recipe that is wrong ends in."""
    with pytest.raises(ValueError, match="recipe") as caught:
        parse_recipe(text, "recipe.yml")
    return str(caught.value)


def refusal(text, models=None, **options):
    """What planning a recipe ends in."""
    with pytest.raises(ValueError, match=r"recipe\.yml:\d+: ") as caught:
        planned(text, models, **options)
    return str(caught.value)


def steps(plan):
    """By name."""
    return {step.name: step for step in plan.steps}
