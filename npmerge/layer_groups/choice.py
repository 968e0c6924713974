"""Into which layer groups a network is cut: those that are asked for, or as large as a device holds."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from alignment.checks import check_count, check_list
from alignment.graph import PyTree, as_shapes, flatten
from alignment.layer_groups.cut_places import candidates, cut_behind, cut_between, cuts_at
from alignment.layer_groups.groups import Cuts
from npmerge.base import Merge
from npmerge.constraints import Free
from npmerge.fitting.memory import FitMemory, check_fits, on_each, predicted_bytes
from npmerge.granularity import PerParameter
from npmerge.layer_groups.loss import GroupApply, Reconstruction
from npmerge.learned import Learned
from npmerge.memory import bytes_of
from npmerge.methods import Average
from npmerge.objectives import weight_space
from npmerge.sharding import Layout
from npmerge.stack import Stack


@dataclass(frozen=True)
class Learning:
    """What decides on the bytes of a group besides its layers.

    Attributes:
        merge: whose theta is learned.
        optimizer: an Optax transformation.
        models: how many are merged; `base`: whether they have a base.
        layout: of arrays on devices.
        accumulate: parts of a batch, one after another.
        inputs: of a batch as they will come, as shapes.
    """

    merge: Merge
    optimizer: optax.GradientTransformation
    models: int
    base: bool
    layout: Layout
    accumulate: int
    inputs: PyTree

    def memory(self, cuts: Cuts, index: int) -> FitMemory:
        """Bytes that a step of a group holds on one device, the leaves that earlier groups have merged among its batch."""
        apply, groups, shapes = GroupApply(cuts, index), cuts.groups(self.inputs), flatten(as_shapes(cuts.variables))
        group, avals = groups[index], groups[index].program.avals
        earlier = {path for g in groups[:index] for path in g.leaves}
        fixed, own = ({path: shapes[path] for path in group.leaves if (path in earlier) is known} for known in (True, False))
        stack = Stack(
            {path: jax.ShapeDtypeStruct((self.models, *x.shape), x.dtype) for path, x in own.items()},
            own if self.base else None,
        )
        values = {number: _shape(avals[number]) for number in group.needs}
        scale = jax.ShapeDtypeStruct((), jnp.float32)
        targets = {number: (jax.ShapeDtypeStruct(avals[number].shape, jnp.float32), scale) for number in group.learned}
        if not own or not targets:
            held = bytes_of((own, fixed, self.inputs, values, [_shape(avals[number]) for number in group.makes]))
            return FitMemory(**{**dict.fromkeys(FitMemory._fields, 0), "batch": held})
        merge, theta = _stand_in(self.merge, stack)

        def whole(params: PyTree, x: Any) -> PyTree:
            return apply({**x[0], **params}, x[1:])

        loss = weight_space(merge, whole, Reconstruction())
        data = ((fixed, self.inputs, values), targets)
        found = predicted_bytes(loss, self.optimizer, theta, stack, data, plan=False)
        return on_each(found, self.layout, self.accumulate)


def cuts_of(
    groups: str | Sequence[str] | None, max_bytes: int | None, network: tuple[Any, PyTree, PyTree], learning: Learning
) -> Cuts:
    """The groups that are asked for by the layers or nodes of a network, else those that fit into `max_bytes`.

    Args:
        groups: a pattern of paths, names of nodes, or None; see `cut_between` and `cut_behind`.
        max_bytes: of a device; given with groups, these are checked.
        network: apply, variables and inputs, as shapes.
        learning: what else decides on the bytes.

    Raises:
        ValueError: a group that does not fit, and cannot be cut further; neither of both given.
    """
    if max_bytes is not None:
        check_count("max_bytes", max_bytes)
    if groups is None:
        if max_bytes is None:
            raise ValueError(
                "into which groups is the network to be cut? This device does not say how much it holds: give groups= (a "
                "pattern of paths, or nodes) or max_bytes="
            )
        return _within(max_bytes, network, learning)
    if not isinstance(groups, str):
        check_list(groups, "nodes to cut behind, or a pattern of paths")
    cuts = cut_between(*network, groups) if isinstance(groups, str) else cut_behind(*network, groups)
    if max_bytes is not None:
        for index in range(len(cuts.behind) + 1):
            _check(learning, cuts, index, max_bytes)
    return cuts


def _within(max_bytes: int, network: tuple[Any, PyTree, PyTree], learning: Learning) -> Cuts:
    """Each group ends where least lives on, of the places that fit and leave it at least half as large as it could be."""
    places = candidates(*network)
    sizes = {path: bytes_of(x) for path, x in flatten(network[1]).items()}
    held = [sum(sizes[path] for path in place.read) for place in places]
    behind: list[tuple[int, ...]] = []
    start = 0

    def too_large(end: int) -> bool:
        """Whether a group from the start up to a candidate is; the end of the network is the last candidate."""
        cuts = cuts_at(*network, [*behind[-1:], *(place.behind for place in places[end : end + 1])])
        return learning.memory(cuts, len(behind[-1:])).total > max_bytes

    while True:
        ends = range(start, len(places) + 1)
        fitting = bisect.bisect_left(ends, True, key=too_large)
        if fitting == len(ends):
            return cuts_at(*network, behind)
        if not fitting:
            cuts = cuts_at(*network, [*behind, *(place.behind for place in places[start : start + 1])])
            _check(learning, cuts, len(behind), max_bytes)
        half = sum(held[start : start + fitting]) / 2
        large = [end for end in ends[:fitting] if sum(held[start : end + 1]) >= half]
        chosen = next(end for end in sorted(large, key=lambda end: (places[end].living, -end)) if not too_large(end))
        behind.append(places[chosen].behind)
        start = chosen + 1


def _check(learning: Learning, cuts: Cuts, index: int, max_bytes: int) -> None:
    """Raise ValueError unless a group fits; its first leaf is named, and a loop that cannot be cut."""
    group = cuts.groups(learning.inputs)[index]
    try:
        check_fits(learning.memory(cuts, index), max_bytes)
    except ValueError as error:
        loops = {step.name for step in group.program.steps} & {"scan", "while"}
        loop = f" (it holds a {min(loops)}, which is one equation and is not cut)" if loops else ""
        raise ValueError(f"the layer group of {next(iter(group.leaves), 'no leaf')!r}{loop}: {error}") from None


def _stand_in(merge: Merge, stack: Stack) -> tuple[Learned, dict[str, jax.ShapeDtypeStruct]]:
    """A merge whose theta is of known shapes and takes as many bytes; of kinds that are no `Learned` the most that it can."""
    known = merge if isinstance(merge, Learned) else Learned(Average(), PerParameter(), Free())
    granularity, constraint = known.granularity, known.constraint
    shapes = granularity.shapes(stack.params).items()
    coefficients = {name: jax.ShapeDtypeStruct((stack.size, *shape), jnp.float32) for name, shape in shapes}
    theta = {name: jax.eval_shape(constraint.inverse, x) for name, x in coefficients.items()}
    return Learned(Average(), granularity, constraint), theta


def _shape(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)
