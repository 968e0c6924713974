"""What `npmerge report` finds: the folder of a merge, and whether its inputs are still what they were."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from npmerge.checkpoint.indices import read_object
from npmerge.checkpoint.partial import RECORD
from npmerge.checkpoint.sharded import ShardedModel, open_model
from npmerge.commands.documents import files_of
from npmerge.commands.planning import Asked, Planned, asked_of, planned
from npmerge.folder import Replay, hashes_now, recipe_of_record
from npmerge.recipe import Recipe

REPORT_JSON = "report.json"
"""What the report of a merge keeps: everything that was measured."""

KEPT, CHANGED, GONE = "as recorded", "changed", "not there"


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge report`.

    Attributes:
        folder: of a merge, of `npmerge align` or of `npmerge compare`.
        data: examples to measure on; None for those that the recipe holds out.
        base: what deltas are differences from, where the recipe has no base.
        architecture: of the networks, where neither the recipe nor the tensors tell it.
        out: the folder to write to; None for the same.
        quiet: whether no progress is shown.
        trusted: whether inputs are known to be as recorded, as when the merge has just been made.
    """

    folder: Path
    data: Path | None = None
    base: Path | None = None
    architecture: str | None = None
    out: Path | None = None
    quiet: bool = False
    trusted: bool = False

    @property
    def command(self) -> str:
        """The command line."""
        given = {"--data": self.data, "--base": self.base, "--architecture": self.architecture, "--out": self.out}
        options = [x for name, value in given.items() if value is not None for x in (name, str(value))]
        return shlex.join(["npmerge", "report", str(self.folder), *options])

    @property
    def place(self) -> Path:
        """Where it is written."""
        return self.out or self.folder


class Merged(NamedTuple):
    """The folder of a merge.

    Attributes:
        path: of it.
        replay: its record.
        model: its tensors, headers only.
        history: of what was learned, if anything was.
        earlier: the content of an earlier `report.json` of the same tensors; empty if there is none.
    """

    path: Path
    replay: Replay
    model: ShardedModel
    history: Mapping[str, Any] | None
    earlier: Mapping[str, Any]


class Inputs(NamedTuple):
    """What a merge was made from, as it is now.

    Attributes:
        states: of each file or folder that the record names: as recorded, changed or not there.
        recipes: the documents.
        planned: the merge, planned again; None where its models cannot be read as they were.
        why: then, in words.
        with_data: whether its blocks (`align:`, `learn:`) can be followed again, too.
    """

    states: Mapping[str, str]
    recipes: tuple[Recipe, ...]
    planned: Planned | None
    why: str
    with_data: bool


def read_merged(path: Path) -> Merged:
    """The folder of a merge. Raises ValueError for a folder that is none, or whose files are damaged."""
    replay, model = recipe_of_record(path / RECORD), open_model(path)
    history = read_object(path / "history.json") if (path / "history.json").is_file() else None
    earlier = read_object(path / REPORT_JSON) if (path / REPORT_JSON).is_file() else {}
    if history is not None and "asked" not in history:
        history = None  # of an earlier version, which did not keep everything that is said
    if earlier.get("outputs") != dict(replay.provenance.outputs):
        earlier = {}
    return Merged(path, replay, model, history, earlier)


def inputs_of(merged: Merged, *, trusted: bool = False) -> Inputs:
    """The inputs as they are now. All of them are read, unless the merge has just been made and they are `trusted`."""
    recorded = merged.replay.provenance.inputs
    now = recorded if trusted else hashes_now(merged.replay)
    states = {path: GONE if path not in now else KEPT if now[path] == hash_ else CHANGED for path, hash_ in recorded.items()}
    asked = asked_of(merged.path / RECORD, there=False)
    found, why = _planned(asked)
    if found is None:
        return Inputs(states, asked.recipes, None, why, with_data=False)
    models = {str(path) for path in files_of(found.plan, {})}
    if bad := [
        f"{path} {'has changed' if state == CHANGED else 'is not there'}"
        for path, state in states.items()
        if path in models and state != KEPT
    ]:
        return Inputs(states, asked.recipes, None, "; ".join(bad), with_data=False)
    others = all(state == KEPT for state in states.values())
    return Inputs(states, asked.recipes, found, "", with_data=others)


def _planned(asked: Asked) -> tuple[Planned | None, str]:
    """The plan of the only document, without its blocks where what they name is gone; why there is none."""
    if len(asked.recipes) > 1:
        return None, f"the recipe has {len(asked.recipes)} documents, and results of the first ones are not kept"
    (recipe,) = asked.recipes
    given: dict[str, Any] = {"seed": asked.seed, "mergekit_semantics": asked.mergekit_semantics}
    try:
        return planned(recipe, {}, **given), ""
    except ValueError as error:
        why = str(error)
    try:  # of a merge whose examples are gone there is still a plan of its tensors
        bare = recipe.model_copy(update={"align": None, "learn": None})
        return planned(bare, {}, **given)._replace(recipe=recipe), ""
    except ValueError:
        return None, why
