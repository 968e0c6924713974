"""From the documents of a recipe to plans: headers are read, vocabularies joined, nothing is written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npmerge.checkpoint.adapted import open_reference, paths_of
from npmerge.checkpoint.partial import check_apart
from npmerge.checkpoint.stored import StoredModel
from npmerge.folder import Vocabulary, disagreements, make_vocabulary
from npmerge.recipe import Recipe
from npmerge.recipe.make_plan import make_plan, open_models
from npmerge.recipe.plan import Plan

if TYPE_CHECKING:
    from npmerge.learning.blocks import Blocks


class Planned(NamedTuple):
    """One document, ready to be followed.

    Attributes:
        recipe: the document.
        plan: what it comes to.
        vocabulary: of the merged model, where the recipe asks for one.
        blocks: its `align:` and `learn:`, where it has them.
    """

    recipe: Recipe
    plan: Plan
    vocabulary: Vocabulary | None
    blocks: "Blocks | None" = None


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
    if recipe.align is not None or recipe.learn is not None:
        from npmerge.learning.run import check_blocks  # imports flax and Optax, which merges of tensors do without

        check_blocks(recipe)
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
    plan = replace(plan, warnings=(*plan.warnings, *said))
    return Planned(recipe, plan, vocabulary, _blocks(recipe, plan, vocabulary))


def _blocks(recipe: Recipe, plan: Plan, vocabulary: Vocabulary | None) -> "Blocks | None":
    if recipe.align is None and recipe.learn is None:
        return None
    from npmerge.learning.run import blocks_of  # imports flax and Optax, which merges of tensors do without

    return blocks_of(recipe, plan, vocabulary)
