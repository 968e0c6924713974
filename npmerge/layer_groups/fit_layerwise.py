"""Layer-wise distillation that streams layer groups: a merge is learned of models that no device holds at once."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from alignment.checks import check_count, check_key, check_kinds, check_list, kind_of, unknown
from alignment.graph import PyTree, flatten
from alignment.layer_groups.groups import Cuts
from npmerge.aligned import Aligned
from npmerge.base import Merge
from npmerge.batches import check_batch, check_filled, measured
from npmerge.checkpoint.stored import StoredModel
from npmerge.fitting.checkpoints import Checkpoints
from npmerge.fitting.loop import Status
from npmerge.fitting.memory import device_limit
from npmerge.fitting.source import Source
from npmerge.layer_groups.choice import Learning, cuts_of
from npmerge.layer_groups.features import Features
from npmerge.layer_groups.leaves import Leaves, shapes_of
from npmerge.layer_groups.loss import GroupApply
from npmerge.layer_groups.merged import Merged
from npmerge.layer_groups.stream import GroupFit, Stream
from npmerge.objectives import Apply, FeatureMatching, Joint, NextToken, Objective
from npmerge.objectives.teachers import Teacher
from npmerge.sharding import Layout, layout_of

OPTIONS = ("every", "patience", "devices", "parallel", "shard", "accumulate")
"""Further arguments of `fit` that a group can be learned with."""


class Layerwise(NamedTuple):
    """What `fit_layerwise` returns.

    Attributes:
        variables: the merged network, NumPy arrays on the host; with a folder they are read from there.
        groups: in the order of the network.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.eye(2)
        >>> models = [{"w": k * jnp.eye(2), "u": jnp.eye(2)} for k in (1.0, 3.0)]
        >>> found = nm.fit_layerwise(nm.np_merge(), apply, models, [(x, None)], optax.sgd(1.0), steps=0, groups=["w"])
        >>> print(found.status, found.variables["w"].diagonal())  # no steps: the average
        finished [2. 2.]
    """

    variables: PyTree
    groups: tuple[GroupFit, ...]

    @property
    def status(self) -> Status:
        """Diverged if a group has; its leaves are then those of its last good theta, and the others go on."""
        return "diverged" if any(group.status == "diverged" for group in self.groups) else "finished"


def fit_layerwise(
    merge: Merge,
    apply: Apply,
    models: Sequence[PyTree | StoredModel],
    batches: Iterable[tuple],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    groups: str | Sequence[str] | None = None,
    max_bytes: int | None = None,
    teacher: Teacher = "mean",
    sequential: bool = True,
    last: Objective | None = None,
    base: PyTree | StoredModel | None = None,
    like: PyTree | None = None,
    held_out: Iterable[tuple] = (),
    progress: Callable[[str, int, float], Any] | None = None,
    key: Array | None = None,
    folder: Path | str | None = None,
    checkpoints: Checkpoints | Path | str | None = None,
    **options: Any,
) -> Layerwise:
    r"""Learn a merge layer group by layer group, each to make what its teachers make of the same data.

    The network is cut on its jaxpr. Only the leaves that one group reads are on the device, of all models, with theta and the
    moments of the optimizer for those, and the values of one batch; models, merged leaves and what networks make of the data
    stay on the host. A group minimises the mean over the values that it hands on of ||h - t||^2 / ||t||^2, t its teacher's:
    layer-wise distillation (hints of Romero et al. 2015, "FitNets"; block reconstruction of Li et al. 2021, "BRECQ"). Models
    must be aligned. Running statistics are averaged, and weights learned for these.

    A leaf that several groups read (tied embeddings) is learned in the first of them, and fixed in others; one that none
    reads gets the closed form. A granularity shares coefficients within a group only, and a start sees one group at a time:
    TIES trims within a group, not within the whole model. A group that diverges keeps its last good theta, with a warning
    that names it, and the others go on.

    Args:
        merge: what is learned, such as `np_merge()`.
        apply: the network, `apply(variables, inputs) -> outputs`.
        models: trees whose leaves are arrays, best on the host, or functions without arguments that return one, called each
            time that a group needs the leaf; or stored models (`npmerge.checkpoint.formats.open_checkpoint`) whose tensors are
            named by paths. The last two need `like`.
        batches: `(inputs, targets)` or `(inputs, targets, mask)`; targets may be None. A list is cycled in each group. Of an
            iterator, which must last for all steps, so many are taken and held: every group learns from them.
        optimizer: an Optax transformation; each group starts with fresh moments.
        steps: for each group, not for all together.
        groups: a pattern whose layers are one group each, such as `blocks/(\d+)/`
            (`alignment.layer_groups.cut_places.cut_between`), or names of nodes behind which to cut. None for groups that fit
            into `max_bytes`.
        max_bytes: that a device may hold; None for what the device says. Groups that are given are checked by it.
        teacher: "mean" for the mean of what all models make, or the number of one.
        sequential: whether a merged group is fed what the merged groups before it make, so that it can undo their errors, else
            what the teacher's make (teacher-forced).
        last: what the last group minimises with the targets of the batches, such as `CrossEntropy()`; None as the others, on
            the outputs of the teacher. One that asks the models (`Distillation`) gets what their last groups make of the same
            values. Those that read the inputs (`NextToken`), nodes or several tasks do not go.
        base: that the models were fine-tuned from, for merges of task vectors.
        like: the variables as arrays or `jax.ShapeDtypeStruct`, where models are stored or functions.
        held_out: batches by which the best theta of each group is kept.
        progress: called with the name of the group, the step and the latest loss.
        key: randomness for merges whose start draws.
        folder: for the merged leaves as they come, one file `model.safetensors`, which has this name when it is whole; None
            keeps them in memory. One that is there is refused at once. `npmerge.checkpoint.formats.open_checkpoint(folder)`
            reads it, leaf by leaf, and `npmerge.checkpoint.variables.with_variables(like, open_checkpoint(folder))` as a tree.
        checkpoints: where the fits are saved on their way, a folder for each group; the same call goes on from there.
        options: every, patience, devices, parallel, shard and accumulate of `fit`.

    Raises:
        ValueError: models that differ (path and both shapes), data that end early, a node or layer that is not there (the
            nearest is named), a cut inside a loop, a group that does not fit, and what `fit` raises.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.eye(2)
        >>> models = [{"w": jnp.eye(2), "u": k * jnp.eye(2)} for k in (1.0, 3.0)]
        >>> given = nm.np_merge(), apply, models, [(x, None)], optax.adam(1.0)
        >>> found = nm.fit_layerwise(*given, steps=20, groups=["w"], teacher=1)  # cut behind the node w
        >>> print([group.paths for group in found.groups], found.variables["u"].diagonal().round(1))
        [('w',), ('u',)] [3. 3.]
    """
    check_kinds("fit_layerwise takes (merge, apply, models, ...)", (merge, Merge), (apply, Callable), (models, object))
    _check(merge, models, last, options)
    numbers = _numbers(teacher, len(models))
    check_key(key)
    check_count("steps", steps, 0)
    variables = shapes_of(models[0], like)
    shapes = flatten(variables)
    sources = [Leaves(f"model {k}", model, shapes) for k, model in enumerate(models)]
    layout = _layout(**options)
    with contextlib.closing(Merged(shapes, folder)) as merged:
        data = [_taken(batches, steps), list(measured(held_out, masks=True))]
        sample = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)), data[0][0][0])
        if last is not None:
            _check_targets(last, jax.eval_shape(apply, variables, sample), data)
        learning = Learning(merge, optimizer, len(models), base is not None, layout, options.get("accumulate", 1), sample)
        cuts = cuts_of(groups, device_limit(layout) if max_bytes is None else max_bytes, (apply, variables, sample), learning)
        stream = Stream(
            merge=merge,
            models=sources,
            base=None if base is None else Leaves("the base", base, shapes),
            teachers=numbers,
            merged=merged,
            data=[Features(x, len(numbers), sequential=sequential) for x in data],
            last=last,
            optimizer=optimizer,
            layout=layout,
            key=key,
            checkpoints=Checkpoints(checkpoints) if isinstance(checkpoints, str | Path) else checkpoints,
            progress=progress,
            options={**options, "steps": steps},
        )
        fits = _followed(stream, cuts, sample)
        return Layerwise(merged.finished(variables), fits)


def _followed(stream: Stream, cuts: Cuts, sample: PyTree) -> tuple[GroupFit, ...]:
    """One group after another, and what none of them reads."""
    groups = cuts.groups(sample)
    there: dict[str, None] = {}
    fits = []
    for k, group in enumerate(groups):
        own = tuple(path for path in group.leaves if path not in there)
        earlier = tuple(path for path in group.leaves if path in there)
        keep = frozenset(number for later in groups[k + 1 :] for number in later.needs)
        returns = stream.last is not None and k == len(groups) - 1
        fits.append(stream.group(GroupApply(cuts, k, returns), own, earlier, keep))
        if fits[-1].status == "diverged":
            what = f"the layer group of {fits[-1].name!r} has diverged: its last good theta is kept, and the others go on"
            warnings.warn(what, stacklevel=3)
        there.update(dict.fromkeys(own))
    for path in stream.merged.shapes:
        if path not in there:
            stream.closed_form(path)
    return tuple(fits)


def _check(merge: Merge, models: Any, last: Any, options: dict[str, Any]) -> None:
    """Raise ValueError for what cannot be learned in groups."""
    check_list(models)
    if not models:
        raise ValueError("nothing to merge: got an empty list of models")
    if isinstance(merge, Aligned):
        raise ValueError("layer groups are of models that are aligned: align them first, and give the merge alone")
    if merge.needs:
        raise ValueError(f"{type(merge).__name__} needs statistics of whole networks, which are not there in layer groups")
    if last is not None and not isinstance(last, Objective):
        raise ValueError(f"last must be an objective such as CrossEntropy(), got {kind_of(last)}")
    if isinstance(last, NextToken | FeatureMatching | Joint):
        raise ValueError(
            f"{kind_of(last)} reads more than the outputs of the network: give last an objective of these and the targets, "
            "such as CrossEntropy()"
        )
    if wrong := [name for name in options if name not in OPTIONS]:
        own = [x.name for x in inspect.signature(fit_layerwise).parameters.values() if x.kind is x.KEYWORD_ONLY]
        raise ValueError(unknown("argument of fit_layerwise", wrong[0], (*own, *OPTIONS)))


def _check_targets(last: Objective, outputs: PyTree, data: Sequence[Sequence[tuple]]) -> None:
    """Raise ValueError for what the last group cannot learn from, before the others are learned."""
    for batch in (*data[0], *data[1]):
        last.check(batch, outputs)


def _numbers(teacher: Teacher, models: int) -> list[int]:
    """Those of the teachers. Raises ValueError for others; "own" is none, as groups have no tasks."""
    if isinstance(teacher, str) and teacher == "mean":
        return list(range(models))
    if not isinstance(teacher, int | np.integer) or isinstance(teacher, bool) or not 0 <= teacher < models:
        raise ValueError(f"the teacher of fit_layerwise must be 'mean' or one of the models 0 to {models - 1}, got {teacher!r}")
    return [int(teacher)]


def _layout(devices: Any = None, parallel: Any = "jit", shard: Any = None, **_: Any) -> Layout:
    """Where a group lies while it is learned."""
    if shard is not None and jax.process_count() > 1:
        raise ValueError("layer groups are not divided by features among several processes: give each group fewer layers")
    return layout_of(devices, parallel, shard)


def _taken(batches: Any, steps: int) -> list[tuple]:
    """The batches of a list, or as many of an iterator as there are steps."""
    if isinstance(batches, list | tuple):
        found = list(batches)
        if not found:
            raise ValueError("layer groups are learned from data: got no batches")
    else:
        source = Source(batches, max(steps, 1))
        found = [next(source) for _ in range(max(steps, 1))]
    for batch in found:
        check_batch(batch, masks=True)
        check_filled(batch)
    return found


__all__ = ["GroupFit", "Layerwise", "fit_layerwise"]
