"""From a recipe and the headers of its models to the plan: what is done for each tensor, and with which numbers."""

from collections.abc import Callable, Mapping

from npmerge.checkpoint.stored import StoredModel
from npmerge.recipe.groups import inputs_of
from npmerge.recipe.plan import Plan
from npmerge.recipe.schema import Recipe
from npmerge.recipe.steps import Steps, Vocabulary
from npmerge.recipe.targets import Targets

OpenModel = Callable[[str], StoredModel]


def open_models(
    recipe: Recipe, open_model: OpenModel, results: Mapping[str, StoredModel] | None = None
) -> dict[str, StoredModel]:
    """The models of a recipe by the names that it has for them, in the order of `Plan.models`: the reference is the first.

    Args:
        recipe: one document.
        open_model: reads the headers of the model at a path.
        results: what other documents, by their names, have come to, or will (`PlannedModel`).
    """
    results = results or {}
    return {name: results[name] if name in results else open_model(name) for name in inputs_of(recipe)}


def make_plan(
    recipe: Recipe,
    models: Mapping[str, StoredModel],
    *,
    seed: int | None = None,
    mergekit_semantics: bool = False,
    vocabulary: Vocabulary | None = None,
) -> Plan:
    """What is done for each tensor of the merged model. Headers are read, tensors are not.

    Args:
        recipe: one document of `load_recipe`.
        models: of `open_models`; the first is the reference, whose tensors the result has.
        seed: of what is random; by default the recipe's, or 0.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        vocabulary: where vocabularies differ; by default shapes of tables of tokens must be the same.

    Raises:
        ValueError: shapes, layers, modules, filters and values that do not fit the models (file, line, tensor).
    """
    planner = Steps(recipe, Targets(recipe, models, mergekit_semantics), vocabulary)
    steps = planner.all()
    return Plan(
        models=tuple(models.values()),
        steps=steps,
        skipped=planner.notices.skipped(),
        seed=next(s for s in (seed, recipe.seed, 0) if s is not None),
        mergekit_semantics=mergekit_semantics,
        warnings=planner.notices.warnings(steps),
    )
