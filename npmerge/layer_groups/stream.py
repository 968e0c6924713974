"""A merge that is learned one layer group after another, on its way."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array

from npmerge.base import Merge
from npmerge.fitting.checkpoints import Checkpoints
from npmerge.fitting.fit import quiet_fit as fit
from npmerge.fitting.loop import History, Status
from npmerge.fitting.updates import partition
from npmerge.granularity import PerTensor
from npmerge.layer_groups.features import Features
from npmerge.layer_groups.leaves import Leaves
from npmerge.layer_groups.loss import Given, GroupApply, GroupLoss, Params, Reconstruction
from npmerge.layer_groups.merged import Merged
from npmerge.learned import Learned
from npmerge.objectives import Objective
from npmerge.sharding import Layout, Sharded
from npmerge.stack import Stack

Host = Mapping[str, np.ndarray]


class GroupFit(NamedTuple):
    """What came of one layer group.

    Attributes:
        name: the first of the leaves that it merged; "" if there is none.
        paths: all of them. Others that it reads have been merged by an earlier group, and stay as they are.
        history: of its fit; None where there was nothing to learn.
        status: likewise.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.eye(2)
        >>> models = [{"w": k * jnp.eye(2), "u": jnp.eye(2)} for k in (1.0, 3.0)]
        >>> given = nm.np_merge(), apply, models, [(x, None)], optax.sgd(1.0)
        >>> found = nm.fit_layerwise(*given, steps=1, groups=["w"], teacher=0)
        >>> [(group.name, group.history.loss.round(1).tolist()) for group in found.groups[:1]]  # twice as large as it should be
        [('w', [1.0])]
    """

    name: str
    paths: tuple[str, ...]
    history: History | None
    status: Status | None


@dataclass(frozen=True, eq=False)
class Stream:
    """What the groups of a merge share.

    Attributes:
        merge: that is learned.
        models: their leaves; `base` those of what they were fine-tuned from, if it is given.
        teachers: the numbers of the models that are.
        merged: where merged leaves go.
        data: features of the batches to learn from, and of those held out.
        last: the objective of the last group, if it has its own.
        optimizer: for each group anew.
        layout: where arrays lie while a group is learned.
        key: for starts that draw.
        checkpoints: of all groups, a folder for each in theirs.
        progress: called with the name of a group, a step and a loss.
        options: further arguments of `fit`.
    """

    merge: Merge
    models: Sequence[Leaves]
    base: Leaves | None
    teachers: Sequence[int]
    merged: Merged
    data: Sequence[Features]
    last: Objective | None
    optimizer: optax.GradientTransformation
    layout: Layout
    key: Array | None
    checkpoints: Checkpoints | None
    progress: Callable[[str, int, float], Any] | None
    options: Mapping[str, Any]

    def group(self, apply: GroupApply, own: tuple[str, ...], earlier: tuple[str, ...], keep: frozenset[int]) -> GroupFit:
        """Merge one group.

        Args:
            apply: the group.
            own: the leaves that it merges.
            earlier: those that it reads besides.
            keep: the values that later groups read.
        """
        given = [data.given(apply) for data in self.data]
        models = [model(own) for model in self.models]
        for teacher, number in enumerate(() if apply.returns else self.teachers):
            self._teach(apply, teacher, {**models[number], **self.models[number](earlier)}, keep)
        found = GroupFit("", (), None, None)
        if own:
            batches = [data.batches_of(apply, x) for data, x in zip(self.data, given, strict=True)]
            found = self._merge(apply, models, earlier, batches)
        if keep:
            params = jax.device_put(self.merged((*own, *earlier)))
            for data in self.data:
                data.advance(apply, params, keep)
        return found

    def _teach(self, apply: GroupApply, teacher: int, leaves: Host, keep: frozenset[int]) -> None:
        """One teacher goes through a group; its leaves are on the device until this returns."""
        params = jax.device_put(leaves)
        for data in self.data:
            data.teach(apply, teacher, params, keep)

    def closed_form(self, path: str) -> None:
        """Merge a leaf that no group reads."""
        stack = self._stack([model([path]) for model in self.models])
        self.merged.put(jax.device_get(for_leaves(self.merge, stack)(stack, key=self.key)))

    def _merge(self, apply: GroupApply, models: Sequence[Host], earlier: tuple[str, ...], batches: list) -> GroupFit:
        """Learn theta of a group, and keep its merged leaves."""
        paths = tuple(models[0])
        stack = self._stack(models)
        merge = for_leaves(self.merge, stack)
        theta = jax.device_get(merge.init(stack, key=self.key))  # on the host: `fit` has a copy of its own
        history, status = None, None
        if jax.tree.leaves(partition(theta)[0]) and (apply.returns or batches[0][0][1]):
            loss = GroupLoss(merge, apply, self.last if self.last is not None and apply.returns else Reconstruction())
            fixed = jax.device_put(self.merged(earlier))
            theta, history, status = fit(
                theta,
                loss,
                Given(stack, fixed),
                batches[0],
                self.optimizer,
                held_out=batches[1],
                checkpoints=self._checkpoints(apply.index),
                progress=None if self.progress is None else functools.partial(self.progress, paths[0]),
                **self.options,
            )
        self.merged.put(jax.device_get(_applied(merge, theta, stack)))
        return GroupFit(paths[0], paths, history, status)

    def _stack(self, models: Sequence[Host]) -> Stack:
        """The models side by side, where they stay while theta is learned."""
        params = {path: np.stack([model[path] for model in models]) for path in models[0]}
        stack = Stack(params, None if self.base is None else self.base(params))
        return self.layout.place(stack) if isinstance(self.layout, Sharded) else jax.device_put(stack)

    def _checkpoints(self, index: int) -> Checkpoints | None:
        found = self.checkpoints
        return None if found is None else replace(found, folder=Path(found.folder) / f"group-{index:03d}")


def for_leaves(merge: Merge, stack: Stack) -> Merge:
    """The merge for some leaves of a network: where a pattern of layers matches none of these, each is a layer of its own."""
    if isinstance(merge, Learned):
        try:
            merge.granularity.check(stack.params)
        except ValueError:
            return replace(merge, granularity=PerTensor())
    return merge


@functools.partial(jax.jit, static_argnums=0)
def _applied(merge: Merge, theta: Any, stack: Stack) -> Params:
    return merge.apply(theta, stack)
