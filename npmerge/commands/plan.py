"""`npmerge plan`: what a recipe would do, tensor by tensor, from the headers of its models alone."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from npmerge.checkpoint.stored import StoredModel
from npmerge.commands import plan_page as page
from npmerge.commands.merge import default_options
from npmerge.commands.planning import Asked, Planned, asked_of, planned
from npmerge.commands.prediction import Prediction, predicted, predicted_learning, probed
from npmerge.folder import changed_inputs, hashes_now
from npmerge.recipe import PlannedModel, Recipe
from npmerge.stream.engine import Options, over_budget
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
    asked = _asked(request)
    changed = _changed(asked)
    lines = ["", *(f"warning: {text}" for text in changed)] if changed else []
    for title, document, prediction in _documents(asked, request.options):
        lines += ["", title, "", *page.told(document.plan, prediction, verbose=request.verbose, alone=document.blocks is None)]
        lines += [f"warning: {text}" for text in over_budget(document.plan, request.options)]
        lines += _blocks(document, prediction)
    why = "tokenizers of results that are not made yet: it is planned when they are"
    lines += [line for recipe in _waiting(asked.recipes) for line in ("", f"{_name(recipe)}: takes {why}")]
    return "\n".join(lines[1:])


def plan_json(request: Request) -> str:
    """As `plan_page`, for programs."""
    asked = _asked(request)
    documents: list[dict[str, Any]] = [
        {"title": title, "predicted": prediction._asdict(), **page.as_json(document.plan), **_fit(document)}
        for title, document, prediction in _documents(asked, request.options)
    ]
    content = {"npmerge": __version__, "recipe": str(request.recipe), "documents": documents, "changed": _changed(asked)}
    return json.dumps(content | {"waiting": [_name(recipe) for recipe in _waiting(asked.recipes)]}, indent=1)


def _blocks(document: Planned, prediction: Prediction) -> list[str]:
    """Lines on what a document aligns and learns, and on what all of it takes together."""
    align, learn = document.recipe.align, document.recipe.learn
    lines = ["", f"align: {align.method}, to the units of the reference"] if align else []
    if learn is None or document.blocks is None:
        return lines
    from npmerge.learning.predictions import told  # imports flax and Optax

    typer.echo("compiling a step of learning, which is timed", err=True)
    found, held = predicted_learning(document.blocks, learn, aligned=align is not None)
    total = page.total(prediction, held, found.lasting, aligned=align is not None)
    return [*(lines or [""]), *told(learn, found), total]


def _fit(document: Planned) -> dict[str, Any]:
    learn = document.recipe.learn
    if learn is None or document.blocks is None:
        return {}
    from npmerge.learning.predictions import predicted_fit  # imports flax and Optax

    return {"learn": predicted_fit(document.blocks, learn).as_json()}


def _asked(request: Request) -> Asked:
    return asked_of(request.recipe, seed=request.seed, mergekit_semantics=request.mergekit_semantics)


def _changed(asked: Asked) -> list[str]:
    """What is not as it was, of a merge that is made again."""
    return [] if asked.replay is None else changed_inputs(asked.replay, hashes_now(asked.replay))


def _documents(asked: Asked, options: Options) -> Iterator[tuple[str, Planned, Prediction]]:
    """Every document with a line that says what it is, and what it will take."""
    probe = probed()
    results: dict[str, StoredModel] = {}
    for recipe in asked.recipes:
        if results and _needs_tokenizers(recipe):
            return
        document = planned(recipe, results, seed=asked.seed, mergekit_semantics=asked.mergekit_semantics)
        plan = document.plan
        results[str(recipe.name)] = PlannedModel(str(recipe.name), plan)
        conventions = ", mergekit's conventions" if plan.mergekit_semantics else ""
        yield (
            f"{_name(recipe)}: {recipe.merge_method}, seed {plan.seed}{conventions}",
            document,
            predicted(plan, options, probe),
        )


def _needs_tokenizers(recipe: Recipe) -> bool:
    """Whether a document takes the tokenizers of its models, which results of other documents get when they are made."""
    return bool(recipe.tokenizer or recipe.tokenizer_source)


def _waiting(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """The documents that cannot be planned before others are made."""
    first = next((k for k, recipe in enumerate(recipes) if k and _needs_tokenizers(recipe)), len(recipes))
    return tuple(recipes[first:])


def _name(recipe: Recipe) -> str:
    return f"document {recipe.name!r}" if recipe.name else "the merge"
