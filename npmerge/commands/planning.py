"""From the documents of a recipe to plans: headers are read, vocabularies joined, nothing is written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from npmerge.checkpoint.adapted import open_reference, paths_of
from npmerge.checkpoint.partial import check_apart
from npmerge.checkpoint.stored import StoredModel
from npmerge.folder import Vocabulary, disagreements, make_vocabulary
from npmerge.recipe import Recipe
from npmerge.recipe.make_plan import make_plan, open_models
from npmerge.recipe.plan import Plan


class Planned(NamedTuple):
    """One document, ready to be followed.

    Attributes:
        recipe: the document.
        plan: what it comes to.
        vocabulary: of the merged model, where the recipe asks for one.
    """

    recipe: Recipe
    plan: Plan
    vocabulary: Vocabulary | None


def planned(
    recipe: Recipe,
    results: Mapping[str, StoredModel],
    *,
    seed: int | None = None,
    mergekit_semantics: bool = False,
    out: Path | None = None,
) -> Planned:
    """The plan of a document.

    Args:
        recipe: the document.
        results: what earlier ones have come to or will, by their names.
        seed: instead of the recipe's.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        out: the folder of the result, which must lie apart from the inputs.

    Raises:
        ValueError: models that cannot be read, and whatever does not fit them.
    """
    models = open_models(recipe, open_reference, results)
    if out is not None:
        check_apart(out, [path for name in models if name not in results for path in paths_of(name)])
    vocabulary = make_vocabulary(recipe, models, recipe.base_model)
    plan = make_plan(
        recipe,
        models.__getitem__,
        seed=seed,
        mergekit_semantics=mergekit_semantics,
        results=results,
        vocabulary=vocabulary,
    )
    said = vocabulary.notes if vocabulary else disagreements(plan.models, plan.reference)
    return Planned(recipe, replace(plan, warnings=(*plan.warnings, *said)), vocabulary)
