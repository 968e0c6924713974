"""The model card: what was merged, how, and the recipe that does it again."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.partial import RECORD
from npmerge.folder.record import Provenance
from npmerge.recipe.blocks import Learn
from npmerge.recipe.notices import UNFIT, averaged_statistics
from npmerge.recipe.plan import Plan
from npmerge.reports.judgements import BEST, examples_of, most_accurate
from npmerge.reports.numbers import plural
from npmerge.version import __version__

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""What names on a hub look like: an owner and a name."""


def card(
    plan: Plan, provenance: Provenance, name: str, learn: Learn | None = None, history: Mapping[str, Any] | None = None
) -> str:
    """`README.md` of the merged model: front matter that model hubs read, then the merge in words.

    Args:
        plan: of the merge.
        provenance: its recipe and models.
        name: of the merged model.
        learn: how its coefficients were learned, if they were.
        history: what was measured of that, as `history.json` holds it.
    """
    models = provenance.models or tuple(model.name for model in plan.models)
    front = yaml.safe_dump(_front_matter(plan, models), sort_keys=False).strip()
    words = _words(plan, models, learn, history or {})
    return "\n".join([f"---\n{front}\n---", f"# {name}", "", *words, "", *_recipe(provenance.recipe)]) + "\n"


def _front_matter(plan: Plan, models: Sequence[str]) -> dict[str, object]:
    """Hubs take only names on the hub as base models."""
    hub = [found for model in models if HUB.fullmatch(found := name_of(model)) and not Path(model).suffix]
    matter: dict[str, object] = {"base_model": hub} if hub else {}
    if plan.reference.config:
        matter["library_name"] = "transformers"
    return {**matter, "tags": ["merge", "npmerge"]}


def _words(plan: Plan, models: Sequence[str], learn: Learn | None, history: Mapping[str, Any]) -> list[str]:
    methods = Counter(step.method for step in plan.steps if step.action == "merge")
    copied = sum(step.action == "copy" for step in plan.steps)
    lines = [f"A merge of {plural(len(models), 'model')}, made with npmerge {__version__}.", "", "| | |", "| --- | --- |"]
    reference = plan.reference.name
    lines += [f"| {'reference' if model == reference else 'model'} | `{name_of(model)}` |" for model in models]
    lines += [f"| {method} | {plural(count, 'tensor')} |" for method, count in methods.items()]
    lines += [f"| copied bit for bit | {plural(copied, 'tensor')} |"] * (copied > 0)
    if learn is not None:
        how = f"{learn.minimised}; {learn.granularity.name}, {learn.constraint.name}, {plural(learn.steps, 'step')}"
        lines.append(f"| coefficients | learned by {how}: `report.md` says what came of it |")
    lines += [f"| {measured_on} | {gained} |" for measured_on, gained in [_gained(history)] if gained]
    lines.append(f"| seed | {plan.seed} |")
    if learn is None and (averaged := averaged_statistics(plan.steps)):
        lines += ["", f"Running statistics are averaged ({averaged}): {UNFIT}. In Python `npmerge.reset_statistics` does."]
    return lines


def _gained(history: Mapping[str, Any]) -> tuple[str, str]:
    """What learning gained, and on what; nothing where nothing was held out."""
    if not history or not history["evaluation"]["held_out"]:
        return "", ""
    rows = dict(history["evaluation"]["networks"])
    if not rows:
        judged = dict(history["evaluation"].get("objective", {}))
        if not judged:
            return "", ""
        start, learned = judged.pop("start"), judged.pop("learned")
        best = min(judged, key=lambda name: math.inf if judged[name] is None else judged[name])
        beside = f"the start {_number(start)}; `{name_of(best)}`, the best input, {_number(judged[best])}"
        return "objective on what is held out", f"{_number(learned)}; {beside}"
    start, learned = rows.pop("start"), rows.pop("learned")
    best = most_accurate({name: x["accuracy"] for name, x in rows.items()})
    others = {"the start": start, f"`{name_of(best)}`, {BEST},": rows[best]}
    measured = [f"{name} {_number(x['accuracy'])}, {_number(x['loss'])}" for name, x in others.items()]
    first = f"accuracy {_number(learned['accuracy'])}, loss {_number(learned['loss'])}"
    return examples_of(history["evaluation"]), "; ".join([first, *measured])


def _number(x: float | None) -> str:
    return "not finite" if x is None else f"{x:.4f}"


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


def write_card(folder: Path, plan: Plan, provenance: Provenance, name: str, learn: Learn | None = None) -> None:
    """Write `README.md`; what learning gained is read from the `history.json` of the folder."""
    history = read_object(path) if learn is not None and (path := folder / "history.json").is_file() else None
    (folder / "README.md").write_text(card(plan, provenance, name, learn, history), encoding="utf-8")
