"""The model card: what was merged, how, and the recipe that does it again."""

from collections import Counter
from pathlib import Path

import yaml

from npmerge.checkpoint.partial import RECORD
from npmerge.recipe.plan import Plan
from npmerge.version import __version__


def card(plan: Plan, recipe: str, name: str) -> str:
    """`README.md` of the merged model: front matter that model hubs read, then the merge in words.

    Args:
        plan: of the merge.
        recipe: its text.
        name: of the merged model.
    """
    front = yaml.safe_dump(_front_matter(plan), sort_keys=False).strip()
    return "\n".join([f"---\n{front}\n---", f"# {name}", "", *_words(plan), "", *_recipe(recipe)]) + "\n"


def _front_matter(plan: Plan) -> dict[str, object]:
    matter: dict[str, object] = {"base_model": [name_of(model.name) for model in plan.models]}
    if plan.reference.config:
        matter["library_name"] = "transformers"
    return {**matter, "tags": ["merge", "npmerge"]}


def _words(plan: Plan) -> list[str]:
    methods = Counter(step.method for step in plan.steps if step.action == "merge")
    copied = sum(step.action == "copy" for step in plan.steps)
    lines = [f"A merge of {len(plan.models)} models, made with npmerge {__version__}.", "", "| | |", "| --- | --- |"]
    names = [f"`{name_of(model.name)}`" for model in plan.models]
    lines += [f"| {'reference' if k == 0 else 'model'} | {name} |" for k, name in enumerate(names)]
    lines += [f"| {method} | {count} tensors |" for method, count in methods.items()]
    lines += [f"| copied bit for bit | {copied} tensors |"] * (copied > 0)
    return [*lines, f"| seed | {plan.seed} |"]


def name_of(model: str) -> str:
    """What strangers may know a model by, from its path or name in the recipe.

    Its name on a hub if it lies in a hub's cache, its folder's if the path is absolute.
    """
    path = Path(model)
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    if cached:
        return cached.removeprefix("models--").replace("--", "/")
    return path.name if path.is_absolute() else model


def _recipe(text: str) -> list[str]:
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return [
        "## Recipe",
        "",
        f"`npmerge merge {RECORD} OUT` makes the same bytes again from the same inputs; `{RECORD}` holds their hashes.",
        "",
        f"{fence}yaml",
        text.strip("\n"),
        fence,
    ]


def write_card(folder: Path, plan: Plan, recipe: str, name: str) -> None:
    """Write `README.md`."""
    (folder / "README.md").write_text(card(plan, recipe, name), encoding="utf-8")
