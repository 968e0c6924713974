"""The blocks of one document: models are read, aligned, learned from, and handed back as a plan that the engine writes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax

from alignment.graph import PyTree
from npmerge.folder.tokenizers import folder_of
from npmerge.learning.aligning import aligned
from npmerge.learning.architectures import Architecture, architecture_of
from npmerge.learning.data import Examples, Parts, check_apart, read_examples, split
from npmerge.learning.learner import Learner
from npmerge.learning.members import Members, members_of, with_results, with_tensors
from npmerge.learning.page import FILES, told, write_pages
from npmerge.learning.progress import fit_progress
from npmerge.learning.starts import start_of
from npmerge.learning.values import alignment_of, values_of
from npmerge.recipe.blocks import Align, Data, Learn
from npmerge.recipe.plan import Plan
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path as Keys
from npmerge.stack import stack_models


class Ready(NamedTuple):
    """A plan that tensor arithmetic can follow.

    Attributes:
        plan: of what is written.
        notes: what is to be said, a line each.
    """

    plan: Plan
    notes: list[str]


@dataclass(frozen=True, eq=False)
class Blocks:
    """The `align:` and `learn:` of one document with its networks; made before anything is computed.

    Attributes:
        recipe: the document.
        plan: of it, as if it had no such blocks.
        members: what it merges.
        network: as functions.
    """

    recipe: Recipe
    plan: Plan
    members: Members
    network: Architecture

    @property
    def block(self) -> Align | Learn:
        """The one that is named in errors of both."""
        found = self.recipe.learn or self.recipe.align
        assert found is not None
        return found

    def examples(self, data: Data, keys: Keys) -> Examples:
        """Those of the recipe. Raises ValueError as `read_examples`, with file and line."""
        folder = folder_of(self.plan.models[self.plan.reference].path)
        with _at(self.recipe, keys):
            return read_examples(data, self.network.config, folder)

    def parts(self, learn: Learn) -> Parts:
        """What is learned from and what is held out."""
        train = self.examples(learn.data, ("learn", "data"))
        with _at(self.recipe, ("learn", "held_out")):
            if not isinstance(learn.held_out, Data):
                return split(train, learn.held_out, learn.seed)
            held_out = self.examples(learn.held_out, ("learn", "held_out"))
            check_apart(train, held_out)
            return Parts(train, held_out)

    def networks(self) -> list[PyTree]:
        """Variables of the models, the base first if there is one; aligned if they are to be."""
        with _at(self.recipe, ("learn" if self.recipe.learn else "align",)):
            found = [self.network.variables(tensors) for tensors in self.members.all]
        align = self.recipe.align
        if align is None:
            return found
        data = align.data or (self.recipe.learn.data if self.recipe.learn else None)
        keys: Keys = ("align", "data") if align.data else ("learn", "data")
        return aligned(self.recipe, align, self.network, found, None if data is None else self.examples(data, keys))

    def learner(self, learn: Learn, parts: Parts, networks: Sequence[PyTree]) -> Learner:
        """The fit of a `learn:`."""
        base, models = (None, networks) if self.members.base is None else (networks[0], networks[1:])
        start, stack = start_of(self.recipe, self.plan, self.paths), stack_models(list(models), base)
        return Learner(self.recipe, learn, self.network, stack, start, values_of(self.recipe, learn), parts)

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """Where each merged tensor stands among the variables."""
        return self.network.paths([step.name for step in self.plan.steps if step.action == "merge"])

    @property
    def names(self) -> list[str]:
        """Of the models that are merged, short where that tells them apart."""
        names = list(self.members.names[: len(self.members.models)])
        short = [Path(name).name for name in names]
        return short if len(set(short)) == len(short) else names


def blocks_of(recipe: Recipe, plan: Plan) -> Blocks | None:
    """The blocks of a document; None if it has none.

    Raises:
        ValueError: whatever in them is unknown or does not fit the models, with file and line; no tensor is read.
    """
    if recipe.align is None and recipe.learn is None:
        return None
    block = "learn" if recipe.learn else "align"
    members = members_of(recipe, plan, block)
    given = (recipe.learn and recipe.learn.architecture) or (recipe.align and recipe.align.architecture)
    with _at(recipe, (block, *(("architecture",) if given else ()))):
        network = architecture_of(given or None, plan.models[plan.reference], members.models[0])
    if recipe.learn is not None:
        values_of(recipe, recipe.learn)
    if recipe.align is not None:
        alignment_of(recipe, recipe.align)
    return Blocks(recipe, plan, members, network)


def follow(blocks: Blocks, folder: Path, work: Path, *, quiet: bool, keep: bool) -> Ready:
    """Do what the blocks say.

    Args:
        blocks: of the document.
        folder: of the result, for its report.
        work: where a fit is saved on its way.
        quiet: whether no progress is shown.
        keep: whether the fit is saved, to go on after an interruption.
    """
    recipe, learn = blocks.recipe, blocks.recipe.learn
    if learn is None:
        return _aligned(blocks)
    parts = blocks.parts(learn)
    networks = blocks.networks()
    learner = blocks.learner(learn, parts, networks)
    with fit_progress(learn.steps, quiet=quiet) as progress:
        learnt = learner.learnt(blocks.names, progress, learner.checkpoints(work, wanted=keep))
    write_pages(folder, learner, learnt, blocks.names)
    tensors = blocks.network.tensors(learnt.variables, blocks.members.models[0])
    plan = with_results(blocks.plan, tensors)
    return Ready(plan, [*told(learner, learnt), f"{', '.join(FILES)} say more", *_warnings(recipe, learner)])


def data_files(recipe: Recipe) -> list[Path]:
    """The files and folders of examples of a document that are on this machine."""
    blocks = [recipe.align and recipe.align.data, recipe.learn and recipe.learn.data, recipe.learn and recipe.learn.held_out]
    named = [Path(x.path or str(x.dataset)) for x in blocks if isinstance(x, Data)]
    return [path for path in dict.fromkeys(named) if path.exists()]


def _aligned(blocks: Blocks) -> Ready:
    networks, members = blocks.networks(), blocks.members
    like = members.models[0]
    arrays = [blocks.network.tensors(jax.device_get(x), like) for x in networks]
    base, models = (None, arrays) if members.base is None else (arrays[0], arrays[1:])
    notes = [f"aligned by {blocks.recipe.align.method}" if blocks.recipe.align else ""]
    if blocks.network.train_apply is not None:
        notes.append("running statistics are averaged: learn, with steps: 0 if need be, estimates them from data")
    return Ready(with_tensors(blocks.plan, tuple(models), base), notes)


def _warnings(recipe: Recipe, learner: Learner) -> list[str]:
    if learner.block.objective.name == "entropy" and learner.parts.held_out is None:
        return ["warning: entropy was learned on the inputs that the networks are measured on: the result is transductive"]
    return []


@contextmanager
def _at(recipe: Recipe, keys: Keys) -> Iterator[None]:
    """Errors inside get the file and the line of the block."""
    try:
        yield
    except ValueError as error:
        raise recipe.error(keys, str(error)) from None
