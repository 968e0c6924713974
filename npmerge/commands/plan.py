"""`npmerge plan`: what a recipe would do, tensor by tensor, from the headers of its models alone."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from npmerge.checkpoint.stored import StoredModel
from npmerge.commands import plan_page as page
from npmerge.commands.merge import default_options
from npmerge.commands.planning import Planned, asked_of, planned
from npmerge.commands.prediction import Prediction, predicted, probed
from npmerge.recipe import PlannedModel, Recipe
from npmerge.stream.engine import Options
from npmerge.version import __version__


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge plan`.

    Attributes:
        recipe: its file, or the `npmerge.json` of a merge.
        seed: instead of the recipe's.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        verbose: whether every tensor has its line.
        options: threads and memory of the merge.
    """

    recipe: Path
    seed: int | None = None
    mergekit_semantics: bool = False
    verbose: bool = False
    options: Options = field(default_factory=default_options)


def plan_page(request: Request) -> str:
    """The plans of all documents as text. Raises ValueError for whatever is wrong with recipe or models."""
    lines: list[str] = []
    for title, document, prediction in _documents(request):
        lines += ["", title, "", *page.told(document.plan, prediction, verbose=request.verbose), *_blocks(document)]
    return "\n".join(lines[1:])


def plan_json(request: Request) -> str:
    """As `plan_page`, for programs."""
    documents: list[dict[str, Any]] = [
        {"title": title, "predicted": prediction._asdict(), **page.as_json(document.plan), **_fit(document)}
        for title, document, prediction in _documents(request)
    ]
    return json.dumps({"npmerge": __version__, "recipe": str(request.recipe), "documents": documents}, indent=1)


def _blocks(document: Planned) -> list[str]:
    """Lines on what a document aligns and learns."""
    align, learn = document.recipe.align, document.recipe.learn
    lines = ["", f"align: {align.method}, to the units of the reference"] if align else []
    if learn is None or document.blocks is None:
        return lines
    from npmerge.learning.predictions import predicted_fit, told  # imports flax and Optax

    return [*(lines or [""]), *told(learn, predicted_fit(document.blocks, learn))]


def _fit(document: Planned) -> dict[str, Any]:
    learn = document.recipe.learn
    if learn is None or document.blocks is None:
        return {}
    from npmerge.learning.predictions import predicted_fit  # imports flax and Optax

    found = predicted_fit(document.blocks, learn)
    return {"learn": found and found.as_json()}


def _documents(request: Request) -> Iterator[tuple[str, Planned, Prediction]]:
    """Every document with a line that says what it is, and what it will take."""
    asked = asked_of(request.recipe, seed=request.seed, mergekit_semantics=request.mergekit_semantics)
    probe = probed()
    results: dict[str, StoredModel] = {}
    for recipe in asked.recipes:
        if results and (recipe.tokenizer or recipe.tokenizer_source):
            raise ValueError(
                f"{request.recipe}: {_name(recipe)} takes tokenizers of results that are not made yet, so it cannot be planned "
                "before they are; `npmerge merge` makes them first"
            )
        document = planned(recipe, results, seed=asked.seed, mergekit_semantics=asked.mergekit_semantics)
        plan = document.plan
        results[str(recipe.name)] = PlannedModel(str(recipe.name), plan)
        conventions = ", mergekit's conventions" if plan.mergekit_semantics else ""
        yield (
            f"{_name(recipe)}: {recipe.merge_method}, seed {plan.seed}{conventions}",
            document,
            predicted(plan, request.options, probe),
        )


def _name(recipe: Recipe) -> str:
    return f"document {recipe.name!r}" if recipe.name else "the merge"
