"""The blocks of one document: models are read, aligned, learned from, and handed back as a plan that the engine writes."""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from rich.console import Console

from alignment.graph import PyTree
from npmerge.folder import Vocabulary
from npmerge.folder.configs import changed_config
from npmerge.learning.blocks import Blocks
from npmerge.learning.chosen import architecture_of
from npmerge.learning.foreseen import warned
from npmerge.learning.goals import check_goal, functions_of
from npmerge.learning.history import history_of
from npmerge.learning.learner import Learner
from npmerge.learning.members import members_of, with_results, with_tensors
from npmerge.learning.page import FILES, told, write_pages
from npmerge.learning.places import data_of, inside, memory_told
from npmerge.learning.progress import fit_progress
from npmerge.learning.starts import chosen_tensors
from npmerge.learning.tasks import Tasks
from npmerge.learning.user_code import imported, source_of
from npmerge.learning.values import alignment_of, values_of
from npmerge.recipe.blocks import Learn
from npmerge.recipe.plan import Plan
from npmerge.recipe.references import meant_from
from npmerge.recipe.schema import Recipe
from npmerge.reports.progress import Advance, phases


class Ready(NamedTuple):
    """A plan that tensor arithmetic can follow.

    Attributes:
        plan: of what is written.
        notes: what is to be said, a line each.
    """

    plan: Plan
    notes: list[str]


def check_blocks(recipe: Recipe) -> None:
    """Check that everything that the blocks of a document name is there, as far as is known without its models.

    Raises:
        ValueError: unknown names and arguments, data that are missing (file and line).
    """
    if recipe.learn is not None:
        values_of(recipe, recipe.learn)
        check_goal(recipe, recipe.learn)
    if recipe.align is not None:
        alignment_of(recipe, recipe.align)
    for keys, data in data_of(recipe):
        if data.path is not None and not Path(data.path).exists():
            meant = meant_from(recipe.folder, data.path)
            raise recipe.error(keys, f"{data.path}: no such file or folder of data{meant and ' from here'}{meant}")


def blocks_of(recipe: Recipe, plan: Plan, vocabulary: Vocabulary | None = None) -> Blocks:
    """The blocks of a document that has `align:` or `learn:`, with the networks that they are about.

    Args:
        recipe: the document.
        plan: of it.
        vocabulary: of the merged model, where those of the models are joined.

    Raises:
        ValueError: whatever in them is unknown or does not fit the models, with file and line; no tensor is read.
    """
    block = "learn" if recipe.learn else "align"
    members = members_of(recipe, plan, block)
    given = (recipe.learn and recipe.learn.architecture) or (recipe.align and recipe.align.architecture)
    with inside(recipe, (block, *(("architecture",) if given else ()))):
        config = changed_config(plan, vocabulary.old_rows, vocabulary.rows) if vocabulary else None
        network = architecture_of(given or None, plan.reference, members.models[0], config)
    blocks = Blocks(recipe, plan, members, network, vocabulary)
    if recipe.learn is not None:
        chosen_tensors(recipe, recipe.learn, blocks.paths)
    return blocks


def follow(blocks: Blocks, folder: Path | None, work: Path, *, quiet: bool, keep: bool) -> Ready:
    """Do what the blocks say; before anything is read, what `npmerge plan` warns of is said.

    Args:
        blocks: of the document.
        folder: for the report; None where another process writes it.
        work: where a fit is saved on its way.
        quiet: whether no progress and no warnings are shown.
        keep: whether the fit is saved, to go on after an interruption.
    """
    learn = blocks.recipe.learn
    if learn is None:
        with phases(quiet=quiet) as advance:
            return _aligned(blocks, advance)
    tasks = blocks.tasks(learn)
    warnings = warned(blocks, learn, tasks)
    for text in () if quiet else warnings:
        Console(stderr=True).print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
    with phases(quiet=quiet) as advance:
        learner, moved = _learner(blocks, learn, tasks, advance)
    with fit_progress(learn.steps, quiet=quiet) as progress, memory_told(blocks.recipe):
        checkpoints = learner.checkpoints(work, wanted=keep)
        if keep and checkpoints is not None and (said := resumed(Path(checkpoints.folder))):
            progress.says(said)
        learnt = learner.learnt(blocks.names, progress, checkpoints)
    history = history_of(learner, learnt, blocks.names, blocks.paths)
    if folder is not None:
        write_pages(folder, history)
    tensors = blocks.network.tensors(learnt.variables, blocks.members.models[0])
    plan = with_results(blocks.plan, tensors)
    return Ready(plan, [*moved, *told(history), f"{', '.join(FILES[:3])} say more"])


def resumed(folder: Path) -> str:
    """Whether a fit that is saved in a folder goes on, and from which step; if not, why; empty where none was begun."""
    steps = [int(x.name) for x in folder.glob("*") if x.name.isdigit()]
    if steps:
        return f"resumed at step {max(steps)}"
    if any(other != folder for other in folder.parent.glob("fit-*")):
        return "not resumed: what was left is of another learn block (steps count, too), of other data or of other models"
    return "not resumed: no step of an interrupted fit was saved" if folder.exists() else ""


def data_files(recipe: Recipe) -> list[Path]:
    """The files and folders of examples of a document that are on this machine."""
    named = [Path(data.path or str(data.dataset)) for _, data in data_of(recipe)]
    return [path for path in dict.fromkeys(named) if path.exists()]


def code_files(blocks: Blocks) -> list[Path]:
    """The files of a user's functions."""
    learn, found = blocks.recipe.learn, [blocks.network.source]
    found += [source_of(imported(name)[0]) for name in (functions_of(learn) if learn is not None else [])]
    return [path for path in found if path is not None]


def _learner(blocks: Blocks, learn: Learn, tasks: Tasks, advance: Advance) -> tuple[Learner, list[str]]:
    """The fit, which holds the networks side by side: as they were read they are not held. What alignment did, a line each."""
    networks, moved = _networks(blocks, advance)
    return blocks.learner(learn, tasks, networks), moved


def _networks(blocks: Blocks, advance: Advance) -> tuple[list[PyTree], list[str]]:
    """The networks, aligned if they are to be, and a line on each that says how much nearer to the first it has come."""
    advance("reading")
    stored = blocks.stored()
    networks, align = blocks.aligned(stored, advance), blocks.recipe.align
    if align is None:
        return networks, []
    names = blocks.names if blocks.members.base is None else ["the base", *blocks.names]
    pairs = zip(names[1:], stored[1:], networks[1:], strict=True)
    return networks, [
        f"aligned by {align.method}: |{name} - {names[0]}| / |{names[0]}| is {_distance(after, networks[0]):.3g}, "
        f"{_distance(before, stored[0]):.3g} before"
        for name, before, after in pairs
    ]


def _distance(a: PyTree, b: PyTree) -> float:
    """|a - b| / |b|, of all floating-point entries."""
    pairs = list(zip(jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True))
    apart = math.fsum(float(np.square(x - y, dtype=np.float64).sum()) for x, y in pairs)
    return math.sqrt(apart / (math.fsum(float(np.square(y, dtype=np.float64).sum()) for _, y in pairs) or 1))


def _aligned(blocks: Blocks, advance: Advance) -> Ready:
    (networks, notes), members = _networks(blocks, advance), blocks.members
    like = members.models[0]
    arrays = [blocks.network.tensors(jax.device_get(x), like) for x in networks]
    base, models = (None, arrays) if members.base is None else (arrays[0], arrays[1:])
    return Ready(with_tensors(blocks.plan, tuple(models), base), notes)
