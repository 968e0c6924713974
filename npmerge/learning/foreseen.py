"""A fit before anything of it is computed: what it holds, and what is to be said of it before it begins."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignment.graph import PyTree
from npmerge.constraints import Simplex
from npmerge.fitting.memory import FitMemory, predicted_bytes
from npmerge.learning.blocks import Blocks
from npmerge.learning.learner import Learner
from npmerge.learning.partly import PartlyLearned
from npmerge.learning.places import inside
from npmerge.learning.tasks import Tasks
from npmerge.memory import bytes_of, machine_bytes
from npmerge.recipe.blocks import Learn
from npmerge.recipe.notices import SHOWN
from npmerge.reports.numbers import size


class Foreseen(NamedTuple):
    """A fit of shapes (`jax.ShapeDtypeStruct`).

    Attributes:
        learner: of the networks' shapes.
        theta: where it starts.
        batch: as it will come.
        unread: merged tensors that the network has no use for, of which nothing can be learned.
    """

    learner: Learner
    theta: PyTree
    batch: tuple
    unread: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """Among how many devices it will be divided; of those that are not here, too."""
        learn = self.learner.block
        everywhere = learn.parallel == "pmap" or learn.shard is not None
        return learn.devices or (jax.device_count() if everywhere else 1)

    def memory(self, *, plan: bool = True) -> FitMemory:
        """Of one device that holds all; `plan` as in `predicted_bytes`.

        Where a batch goes through in parts, activations are those of one part, and the loop over the parts holds the sum of
        their gradients and a copy of the models.
        """
        learner, block = self.learner, self.learner.block
        part = _sized(self.batch, -(-block.batch_size // block.accumulate))
        loss = learner.goal.data_loss(learner.merge, learner.network.forward)
        found = predicted_bytes(loss, learner.optimizer, self.theta, learner.stack, part, plan=plan)
        learned = found.theta - bytes_of(self.theta)  # what is kept besides theta is as large as what is learned
        looped = learned + found.models if block.accumulate > 1 else 0
        return found._replace(batch=bytes_of(self.batch), gradient=found.gradient + looped)

    def warnings(self, memory: FitMemory) -> tuple[str, ...]:
        """A line each: labels that are not there, tensors not learned, batches larger than their data, steps than this machine.

        Args:
            memory: of one device that holds all.
        """
        tasks, size = self.learner.tasks, self.learner.block.batch_size
        return (*_without_labels(self.learner), *_unread(self.unread), *tasks.repeated(size), *self.too_large(memory))

    def too_large(self, memory: FitMemory) -> tuple[str, ...]:
        """A line if a step takes more than there is here, unless it is to run on devices that are elsewhere."""
        nbytes, there = memory.on(self.devices, features=self.learner.block.shard is not None).total, machine_bytes()
        if self.devices > jax.device_count() or there is None or nbytes <= there:
            return ()
        help_ = "give a smaller batch_size, or a larger accumulate, by which a batch goes through in parts"
        return (f"a step takes {size(nbytes)} and there are {size(there)} here: {help_}",)


def foreseen(blocks: Blocks, learn: Learn, tasks: Tasks) -> Foreseen:
    """The fit of a `learn:` on these tasks. Raises ValueError as `Blocks.learner`; no tensor is read."""
    one = blocks.network.shapes(blocks.members.models[0])
    learner = blocks.learner(learn, tasks, [one] * len(blocks.members.all))
    count = -(-learn.batch_size // learn.accumulate) * learn.accumulate
    unread = tuple(name for name, paths in blocks.paths.items() if not paths)
    return Foreseen(learner, _theta(learner), _sized(tasks.first(1), count), unread)


def warned(blocks: Blocks, learn: Learn, tasks: Tasks) -> tuple[str, ...]:
    """The warnings of a fit that is about to begin. Raises ValueError as `foreseen`.

    Memory is counted, which takes no time; only a step that may be too large is compiled to know it better.
    """
    fit = foreseen(blocks, learn, tasks)
    counted = fit.memory(plan=False)
    return fit.warnings(fit.memory() if fit.too_large(counted) else counted)


def _theta(learner: Learner) -> PyTree:
    """Its shapes; coefficients that stay fixed are taken to be one number for each model and tensor."""
    merge, stack, partly = learner.learned, learner.stack, learner.merge
    ours, others = partly.parts(stack) if isinstance(partly, PartlyLearned) else (stack, None)
    with inside(learner.recipe, ("learn", "granularity")):
        merge.granularity.check(ours.params)
    rows = 1 if isinstance(merge.constraint, Simplex) and stack.size == 2 else stack.size
    shapes = merge.granularity.shapes(ours.params).items()
    latents = {name: jax.ShapeDtypeStruct((rows, *shape), jnp.float32) for name, shape in shapes}
    if others is None:
        return latents
    fixed = {path: jax.ShapeDtypeStruct((stack.size, *(1,) * (x.ndim - 1)), jnp.int32) for path, x in others.params.items()}
    return {"latents": latents, "fixed": fixed}


def _unread(names: tuple[str, ...]) -> list[str]:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    told = f"not learned: the network does not read {', '.join(names[:SHOWN])}{more}; merged as without learn"
    return [told] if names else []


def _without_labels(learner: Learner) -> list[str]:
    """A line for each task without labels that functions of the user's own judge: they may read what is not there."""
    block, found = learner.block, []
    for task, examples in zip(block.data, learner.tasks.train, strict=True):
        own = [term.name for term in task.objective or block.objective if ":" in term.name]
        if own and examples.targets is None:
            found.append(f"{examples.name} has no labels: {own[0]} gets zeros in their place, as batch[1]")
    return found


def _sized(batch: tuple, size: int) -> tuple:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype), batch)
