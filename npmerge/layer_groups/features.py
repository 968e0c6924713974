"""What networks make of a data set layer group by layer group: kept on the host, batch by batch."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from npmerge.layer_groups.loss import GroupApply, Params, fitting

Made = dict[int, np.ndarray]


class Features:
    """The values that live behind the groups so far, of each teacher and of the merged network.

    Args:
        batches: `(inputs, targets)` or `(inputs, targets, mask)`.
        teachers: how many there are.
        sequential: whether the merged network's groups are fed what its own earlier groups made, else the teachers' mean.
    """

    def __init__(self, batches: Sequence[tuple], teachers: int, *, sequential: bool):
        self.batches = batches
        self.teachers: list[list[Made]] = [[{} for _ in batches] for _ in range(teachers)]
        self.own: list[Made] | None = [{} for _ in batches] if sequential else None
        self.targets: list[Made] = []

    def given(self, group: GroupApply) -> list[tuple[Any, Made]]:
        """For each batch what the merged group is fed: the network's inputs, and values of earlier groups."""
        found = []
        for k, batch in enumerate(self.batches):
            values = _mean([made[k] for made in self.teachers]) if self.own is None else self.own[k]
            found.append((batch[0], {number: values[number] for number in group.group(batch[0]).needs}))
        return found

    def teach(self, group: GroupApply, teacher: int, params: Params, keep: frozenset[int]) -> None:
        """A teacher goes through a group: its part of the targets, and what of it lives on.

        Args:
            group: the group.
            teacher: its number; each in turn, from 0 on.
            params: the leaves of the teacher.
            keep: the values that later groups read.
        """
        if not teacher:
            self.targets = [{} for _ in self.batches]
        for k, batch in enumerate(self.batches):
            made = _made(group, params, batch[0], self.teachers[teacher][k])
            for number in group.group(batch[0]).learned:
                part = made[number].astype(np.float32) / len(self.teachers)
                self.targets[k][number] = part + self.targets[k][number] if teacher else part
            self.teachers[teacher][k] = _kept({**self.teachers[teacher][k], **made}, keep)

    def batches_of(self, group: GroupApply, given: Sequence[tuple[Any, Made]]) -> list[tuple]:
        """What a group is fed and what it is to make of it, as batches: the targets of the teachers, or the batches' own."""
        targets = [batch[1] for batch in self.batches]
        if not group.returns:
            targets = [_scaled(t, batch[2:]) for t, batch in zip(self.targets, self.batches, strict=True)]
        return [(x, t, *batch[2:]) for x, t, batch in zip(given, targets, self.batches, strict=True)]

    def advance(self, group: GroupApply, params: Params, keep: frozenset[int]) -> None:
        """The merged network goes through a group, if its own values are needed."""
        if self.own is not None:
            for k, batch in enumerate(self.batches):
                made = _made(group, params, batch[0], self.own[k])
                self.own[k] = _kept({**self.own[k], **made}, keep)


def _scaled(targets: Made, mask: tuple) -> dict[int, tuple[np.ndarray, np.float32]]:
    """Each target, and the mean of its squares over what counts."""

    def scale(x: np.ndarray) -> np.float32:
        some = x[fitting(np.asarray(mask[0]), x.shape)] if mask else x
        return np.float32(np.square(some).mean() if some.size else 0)

    return {number: (x, scale(x)) for number, x in targets.items()}


def _kept(values: Made, keep: frozenset[int]) -> Made:
    return {number: x for number, x in values.items() if number in keep}


def _made(group: GroupApply, params: Params, inputs: Any, values: Made) -> Made:
    needed = {number: values[number] for number in group.group(inputs).needs}
    return jax.device_get(_run(group, params, inputs, needed))


@functools.partial(jax.jit, static_argnums=0)
def _run(group: GroupApply, params: Params, inputs: Any, values: Mapping[int, Any]) -> Any:
    return group(params, (inputs, values))


def _mean(made: Sequence[Made]) -> Made:
    """In float32, in the dtype of the values; what is not floating-point is that of the first."""
    if len(made) == 1:
        return made[0]

    def mean(number: int, x: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return np.mean([m[number].astype(np.float32) for m in made], axis=0).astype(x.dtype)

    return {number: mean(number, x) for number, x in made[0].items()}
