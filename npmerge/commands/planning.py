"""From the documents of a recipe to plans: headers are read, vocabularies joined, nothing is written."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from npmerge.checkpoint.adapted import open_reference, paths_of
from npmerge.checkpoint.partial import check_apart
from npmerge.checkpoint.stored import StoredModel
from npmerge.folder import Replay, Vocabulary, disagreements, is_record, make_vocabulary, recipe_of_record
from npmerge.recipe import Recipe, parse_recipe, read_recipe
from npmerge.recipe.make_plan import make_plan, open_models
from npmerge.recipe.plan import Plan

if TYPE_CHECKING:
    from npmerge.learning.blocks import Blocks


class Asked(NamedTuple):
    """What is to be merged, and what the command line or the record of an earlier merge adds to the recipe.

    Attributes:
        text: of the recipe.
        recipes: its documents, in an order in which they can be made.
        seed: instead of the recipe's; None for that.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        replay: the merge that is made again, if it is one.
    """

    text: str
    recipes: tuple[Recipe, ...]
    seed: int | None
    mergekit_semantics: bool
    replay: Replay | None


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


def asked_of(path: Path, *, seed: int | None = None, mergekit_semantics: bool = False, there: bool = True) -> Asked:
    """Read a recipe, or the `npmerge.json` of a merge that is to be made again.

    Args:
        path: of the file.
        seed: of the command line, which counts before all others.
        mergekit_semantics: as above; a merge that was made with them is made with them again.
        there: whether the models that it names must be there.

    Raises:
        ValueError: a file that cannot be read, and whatever is wrong in it.
    """
    replay = recipe_of_record(path) if is_record(path) else None
    if replay is not None:
        seed = replay.provenance.options.get("seed") if seed is None else seed
        mergekit_semantics = mergekit_semantics or replay.mergekit_semantics
    text = read_recipe(path) if replay is None else replay.provenance.recipe
    return Asked(text, parse_recipe(text, str(path), there=there), seed, mergekit_semantics, replay)


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
    if networks := recipe.align is not None or recipe.learn is not None:
        from npmerge.learning.run import blocks_of, check_blocks  # imports flax and Optax, which merges of tensors do without

        check_blocks(recipe)
    models = open_models(recipe, open_reference, results)
    if out is not None:
        check_apart(out, [path for name in models if name not in results for path in paths_of(name)])
    vocabulary = make_vocabulary(recipe, models)
    plan = make_plan(recipe, models, seed=seed, mergekit_semantics=mergekit_semantics, vocabulary=vocabulary)
    said = vocabulary.notes if vocabulary else disagreements(plan.models)
    plan = replace(plan, warnings=(*plan.warnings, *said))
    return Planned(recipe, plan, vocabulary, blocks_of(recipe, plan, vocabulary) if networks else None)
