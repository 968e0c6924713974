"""What the `align:` and `learn:` of one document come to: networks that run, their data, and the fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from alignment import trace
from alignment.graph import PyTree, flatten
from alignment.names import is_statistic
from npmerge.folder import Vocabulary
from npmerge.learned import Learned
from npmerge.learning.aligning import aligned
from npmerge.learning.architectures import Architecture
from npmerge.learning.data import Examples, Parts, check_apart, read_examples, split, without
from npmerge.learning.goals import Goal, goal_of, needs_graph, needs_labels
from npmerge.learning.judged import Judged, check_judged
from npmerge.learning.learner import Learner
from npmerge.learning.members import Members
from npmerge.learning.partly import PartlyLearned
from npmerge.learning.places import inside, placed
from npmerge.learning.starts import check_allowed, chosen_tensors, start_of
from npmerge.learning.tasks import Tasks, check_all_apart, joined_examples
from npmerge.learning.user_code import check_takes
from npmerge.learning.values import values_of
from npmerge.objectives import Joint
from npmerge.recipe.blocks import Learn
from npmerge.recipe.examples import Data
from npmerge.recipe.plan import Plan
from npmerge.recipe.schema import Recipe
from npmerge.recipe.settings import Path as Keys
from npmerge.reports.progress import Advance, unsaid
from npmerge.stack import Stack, stack_models


@dataclass(frozen=True, eq=False)
class Blocks:
    """The `align:` and `learn:` of one document with its networks; made before anything is computed.

    Attributes:
        recipe: the document.
        plan: of it, as if it had no such blocks.
        members: what it merges.
        network: as functions.
        vocabulary: of the merged model, where those of the models are joined.
    """

    recipe: Recipe
    plan: Plan
    members: Members
    network: Architecture
    vocabulary: Vocabulary | None = None

    def examples(self, data: Data, keys: Keys) -> Examples:
        """Those of the recipe. Raises ValueError as `read_examples`, with file and line."""
        folder = self.plan.reference.folder
        with inside(self.recipe, keys):
            return read_examples(data, self.network.config, self.vocabulary.tokenizer.content if self.vocabulary else folder)

    def tasks(self, learn: Learn) -> Tasks:
        """What is learned from and what is held out, by task. Raises ValueError for data that do not fit (file and line)."""
        train = [self.examples(data, keys) for keys, data in placed(("learn", "data"), learn.data)]
        for k, (keys, data) in enumerate(placed(("learn", "data"), learn.data)):
            if (term := needs_labels(learn, k)) is not None and train[k].targets is None:
                raise self.recipe.error(keys, f"{term} needs labels: {without(train[k].name, data.labels)}")
        given = learn.held_out if isinstance(learn.held_out, tuple) else ()
        held_out = [self.examples(data, keys) for keys, data in placed(("learn", "held_out"), given)]
        with inside(self.recipe, ("learn", "held_out")):
            parts = _parts(learn, train, held_out)
            check_all_apart(parts)
        return Tasks(tuple(parts), learn.seed)

    def stored(self) -> list[PyTree]:
        """Variables of the models, the base first if there is one. Raises ValueError for those of another network (line)."""
        with inside(self.recipe, ("learn" if self.recipe.learn else "align",)):
            return [self.network.variables(tensors) for tensors in self.members.all]

    def aligned(self, found: list[PyTree], advance: Advance = unsaid) -> list[PyTree]:
        """The same in the units of the first, if they are to be; `advance` is told what is being done."""
        align, learn = self.recipe.align, self.recipe.learn
        if align is None:
            return found
        block, given = ("align", [align.data]) if align.data else ("learn", learn.data if learn else [])
        examples = [self.examples(data, keys) for keys, data in placed((block, "data"), given)]
        self._check_taken((block, "data"), examples, found[0])
        with inside(self.recipe, ("align",)):
            data = joined_examples(examples) if examples else None
        return aligned(self.recipe, align, self.network, found, data, advance=advance)

    def learner(self, learn: Learn, tasks: Tasks, networks: Sequence[PyTree]) -> Learner:
        """The fit of a `learn:`, of arrays or `jax.ShapeDtypeStruct`."""
        base, models = (None, networks) if self.members.base is None else (networks[0], networks[1:])
        self._check_taken(("learn", "data"), tasks.train, models[0])
        self._check_taken(("learn", "held_out"), [x.held_out for x in tasks.parts if x.held_out is not None], models[0])
        values = values_of(self.recipe, learn)
        start = start_of(self.recipe, self.plan, self.paths)
        learned = frozenset(path for name in chosen_tensors(self.recipe, learn, self.paths) for path in self.paths[name])
        with inside(self.recipe, ("learn",)):
            check_allowed(start, values.constraint, learned)
        whole = Learned(start, values.granularity, values.constraint)
        merge = _partly(whole, learned, models[0])
        graph = None
        if needs_graph(learn):
            with inside(self.recipe, ("learn", "objective")):
                graph = trace(self.network.forward, models[0], tasks.train[0].inputs[:2])
        goal, stack = goal_of(self.recipe, learn, self.members.names[: len(models)], graph), stacked(models, base)
        self._check_judged(learn, goal, tasks, Judged(self.network, self.members.names[0], models[0], stack))
        return Learner(self.recipe, learn, self.network, stack, merge, values.optimizer, goal, tasks)

    def _check_judged(self, learn: Learn, goal: Goal, tasks: Tasks, judged: Judged) -> None:
        """Raise ValueError for terms and labels that do not fit the network (file and line)."""
        if isinstance(joint := goal.objective, Joint):
            with inside(self.recipe, ("learn", "objective")):
                joint.check_tasks(judged.stack, len(learn.data))
        for k, (task, place) in enumerate(zip(learn.data, learn.own_places, strict=True)):
            with inside(self.recipe, ("learn", *(place if task.objective else ("objective",)))):
                check_judged(judged, goal.of_task(k), task.objective or learn.objective, tasks.train[k])

    def _check_taken(self, keys: Keys, given: Sequence[Examples], variables: PyTree) -> None:
        """Raise ValueError for examples that the network cannot take (file and line)."""
        for place, examples in placed(keys, given):
            with inside(self.recipe, place):
                check_takes(self.network, variables, examples)

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


def _parts(learn: Learn, train: Sequence[Examples], held_out: Sequence[Examples]) -> list[Parts]:
    """What is learned from and held out, by task. Raises ValueError for parts that are empty, missing or overlap."""
    if not isinstance(learn.held_out, tuple):
        return [split(x, learn.held_out, learn.seed) for x in train]
    if len(held_out) != len(train):
        raise ValueError(f"expected a fraction, or data for each of {len(train)} tasks, got {len(held_out)} of them")
    for mine, other in zip(train, held_out, strict=True):
        check_apart(mine, other)
    return [Parts(mine, other) for mine, other in zip(train, held_out, strict=True)]


def _partly(merge: Learned, chosen: frozenset[str], model: PyTree) -> Learned | PartlyLearned:
    """The merge of the tensors whose coefficients are learned; tensors that are copied have none."""
    whole = all(path in chosen or is_statistic(path) for path in flatten(model))
    return merge if whole else PartlyLearned(merge, chosen)


def stacked(models: Sequence[PyTree], base: PyTree | None) -> Stack:
    """The models as a stack, or their shapes as those of one."""
    if not isinstance(jax.tree.leaves(models[0])[0], jax.ShapeDtypeStruct):
        return stack_models(list(models), base)
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(models), *x.shape), x.dtype), models[0])
    return Stack(many, base)
