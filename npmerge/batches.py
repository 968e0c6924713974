"""Arrays as batches: in order for measuring, shuffled without end for learning."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped

from alignment.checks import check_count
from alignment.graph import Graph, PyTree

Data = Shaped[Array | np.ndarray, "n ..."]


def in_order(inputs: Data, targets: Data, size: int) -> list[tuple]:
    """All examples once, in order; the last batch may be smaller. Raises ValueError if the lengths differ or are zero."""
    _check(inputs, targets, size)
    return [(inputs[k : k + size], targets[k : k + size]) for k in range(0, len(inputs), size)]


def shuffled(inputs: Data, targets: Data, size: int, *, seed: int) -> "Shuffled":
    """Batches of exactly `size` without end: one random order after another, cut without regard to its borders.

    Few examples thus fill large batches by repetition, and every example is seen equally often up to one. It is an iterator
    that goes on where it was left: fits that are to see the same batches take one each, of the same seed. Raises ValueError if
    the lengths differ or are zero.
    """
    _check(inputs, targets, size)
    return Shuffled(inputs, targets, size, seed)


class Shuffled(Iterator[tuple]):
    """What `shuffled` returns: an iterator that never ends."""

    endless = "shuffled"

    def __init__(self, inputs: Data, targets: Data, size: int, seed: int):
        self.inputs, self.targets, self.size = inputs, targets, size
        self.rng = np.random.default_rng(seed)
        self.waiting = np.empty(0, np.int64)

    def __next__(self) -> tuple:
        while len(self.waiting) < self.size:
            self.waiting = np.concatenate([self.waiting, self.rng.permutation(len(self.inputs))])
        chosen, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return self.inputs[chosen], self.targets[chosen]

    def get_state(self) -> dict[str, Any]:
        """Where it is, as JSON holds it."""
        return {"rng": self.rng.bit_generator.state, "waiting": self.waiting.tolist()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.rng.bit_generator.state = state["rng"]
        self.waiting = np.array(state["waiting"], np.int64)


def measured(
    batches: Iterable[tuple], *, masks: bool = False, each: Callable[[Callable, tuple], Any] | None = None
) -> Iterator[tuple]:
    """The batches of something that measures: each must be a tuple `(inputs, targets)`, and they must end.

    Args:
        batches: of examples.
        masks: whether a batch may also be `(inputs, targets, mask)`.
        each: where batches are written otherwise, or are those of several tasks: a function of a function and a batch, which
            calls it for every `(inputs, targets)` in it (`Objective.map_batches`).

    Raises:
        ValueError: for endless batches, for a bare batch in the place of a list of them, for batches without targets or
            without examples, for another number of targets than of inputs, for inputs with NaN or infinity: some networks make
            finite outputs of those.
    """
    if name := getattr(batches, "endless", ""):
        raise ValueError(f"measuring needs batches that end: got {name}(...), use in_order(...) or a list")
    check = functools.partial(_check_measurable, masks=masks)
    for batch in batches:
        if each is None:
            check(batch)
        else:
            each(check, batch)
        yield batch


def _check_measurable(batch: tuple, *, masks: bool) -> None:
    check_batch(batch, masks=masks)
    check_filled(batch)
    check_lengths(batch)
    for x in jax.tree.leaves(batch[0]):
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and (bad := _not_finite(x)):
            raise ValueError(f"the inputs of a batch have {bad} non-finite values of {np.size(x)}")


def check_batch(batch: object, *, masks: bool = False) -> None:
    """Raise ValueError unless a batch is `(inputs, targets)`, or `(inputs, targets, mask)` where masks are heeded."""
    if masks and isinstance(batch, tuple | list) and len(batch) == 3:
        _check_mask(batch)
    else:
        check_pair(batch)


def masked_mean(values: Float[Array, "examples ..."], batch: tuple) -> Float[Array, ""]:
    """The mean of values over the examples of a batch, or positions of them, that its mask keeps; over all without one.

    Zero where none is kept. What is padding must be finite all the same, for gradients to be. Traceable.
    """
    return values.mean() if len(batch) < 3 else mean_where(values, jnp.asarray(batch[2]))


def mean_where(values: Float[Array, "examples ..."], mask: Bool[Array, "examples ..."]) -> Float[Array, ""]:
    """The mean of the values that a mask over the first axes keeps, zero of none."""
    where = kept(mask, values.shape)
    return jnp.where(where, values, 0).sum() / jnp.maximum(where.sum(dtype=values.dtype), 1)


def kept(mask: Bool[Array, "examples ..."], shape: tuple[int, ...]) -> Bool[Array, "examples ..."]:
    """A mask over the first axes as one over all of them; an example whose positions are not told apart counts if one does.

    Raises:
        ValueError: if it is of other examples or positions.
    """
    mask = jnp.asarray(mask)
    mask = mask.any(tuple(range(len(shape), mask.ndim)))
    if mask.shape != shape[: mask.ndim]:
        raise ValueError(f"the mask is of shape {mask.shape}, the values that it belongs to are of {shape}")
    return jnp.broadcast_to(mask.reshape(*mask.shape, *(1,) * (len(shape) - mask.ndim)), shape)


def counted(batch: tuple) -> Bool[Array, "examples ..."]:
    """Which examples of a batch, or positions of each, are no padding. Traceable.

    That is the mask of `(inputs, targets, mask)`, (examples,) or (examples, positions). Without one, integer targets of such a
    shape mark padding by negative numbers, as labels to be ignored are usually written; else everything counts.
    """
    examples = len(jax.tree.leaves(batch[0])[0])
    if len(batch) == 3:
        return jnp.asarray(batch[2])
    labels = batch[1]
    if (
        getattr(labels, "ndim", 0) in (1, 2)
        and len(labels) == examples
        and jnp.issubdtype(jnp.result_type(labels), jnp.integer)
    ):
        return jnp.asarray(labels) >= 0
    return jnp.ones(examples, bool)


def weight_of(batch: tuple) -> Float[Array, ""]:
    """How many examples, or positions, of a batch count: by its mask if it has one. Traceable."""
    if len(batch) == 3 and jnp.result_type(batch[2]) == jnp.bool_:
        return batch[2].sum().astype(jnp.float32)
    return jnp.float32(_examples(batch))


def padded(batch: tuple, size: int) -> tuple:
    """A batch with examples of zeros up to a size, and the mask of those that were there.

    Args:
        batch: `(inputs, targets)`, or with a mask of bool as its third part, which is padded with False.
        size: number of examples that it gets.

    Raises:
        ValueError: more examples than that.
    """
    count = _examples(batch)
    if count > size:
        raise ValueError(f"a batch of {count} examples cannot be filled up to {size}")
    whole = batch if len(batch) == 3 else (*batch, np.ones(count, bool))
    if count == size:
        return whole

    def fill(x: Data) -> Data:
        xp: Any = jnp if isinstance(x, jax.Array) else np
        return xp.concatenate([x, xp.zeros((size - count, *x.shape[1:]), x.dtype)]) if np.ndim(x) else x

    return jax.tree.map(fill, whole)


def _examples(batch: tuple) -> int:
    return next((len(x) for x in jax.tree.leaves(batch) if np.ndim(x)), 1)


def with_mask(batch: tuple) -> tuple:
    """The batch, with a mask as its third part where its targets mark padding; not traceable."""
    if len(batch) == 3 or bool((mask := counted(batch)).all()):
        return batch
    return (*batch, mask)


def _check_mask(batch: Sequence) -> None:
    """Raise ValueError unless the third of a batch is true or false for each example, or each position of each."""
    mask, examples = batch[2], len(jax.tree.leaves(batch[0])[0])
    if not hasattr(mask, "dtype") or np.ndim(mask) not in (1, 2) or len(mask) != examples or mask.dtype != bool:
        got = f"{np.shape(mask)} of {mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
        raise ValueError(f"a mask must be of bool, ({examples},) or ({examples}, positions) as the inputs: got {got}")


def check_lengths(batch: tuple) -> None:
    """Raise ValueError unless all arrays of the targets are of as many examples as the inputs; single numbers are of none."""
    first = jax.tree.leaves(batch[0])[0]
    for y in jax.tree.leaves(batch[1]):
        if np.ndim(first) and np.ndim(y) and len(y) != len(first):
            raise ValueError(f"a batch has {len(first)} inputs and {len(y)} labels")


def check_inputs(network: tuple[Callable[..., PyTree], Graph, PyTree], inputs: PyTree) -> None:
    """Raise ValueError, with the shapes that the graph was traced with, unless the function takes these inputs."""
    apply, graph, variables = network
    shapes = tuple(np.shape(x) for x in jax.tree.leaves(inputs))
    if [s[1:] for s in shapes] == [s[1:] for s in graph.inputs]:
        return
    try:
        jax.eval_shape(apply, variables, inputs)
    except Exception as error:  # whatever the network's library raises
        got, traced = (", ".join(map(str, s)) for s in (shapes, graph.inputs))
        line = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the network does not take inputs of shape {got}: expected such as {traced}, with which its graph was traced "
            f"({line})"
        ) from error


def check_filled(batch: tuple) -> None:
    """Raise ValueError for a batch without examples."""
    for x in jax.tree.leaves(batch):
        if not np.size(x):
            raise ValueError(f"a batch must hold examples: got an array of shape {np.shape(x)}")


def _not_finite(x: Data) -> int:
    """How many values are not: counted where they are."""
    finite = jnp.isfinite(x) if isinstance(x, jax.Array) else np.isfinite(x)
    return int((~finite).sum())


def check_pair(batch: object) -> None:
    """Raise ValueError unless a batch is a tuple `(inputs, targets)`."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = f"an array of shape {np.shape(batch)}" if hasattr(batch, "shape") else f"{type(batch).__name__}"
        raise ValueError(f"each batch must be a tuple (inputs, targets): got {got}; one batch alone is [(inputs, targets)]")


def _check(inputs: Data, targets: Data, size: int) -> None:
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise ValueError(f"inputs and targets must have one equal, positive length: got {len(inputs)} and {len(targets)}")
    check_count("the batch size", size)
