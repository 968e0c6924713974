"""Arrays as batches: in order for measuring, shuffled without end for learning; and what a batch must be."""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from alignment.checks import check_count, first_line
from alignment.graph import Graph, PyTree
from alignment.of_torch import as_arrays
from npmerge.masks import check_mask

Data = Shaped[Array | np.ndarray, "n ..."]


def in_order(inputs: PyTree, targets: PyTree, size: int) -> list[tuple]:
    """All examples once, in order; the last batch may be smaller.

    Args:
        inputs: (examples, ...), or a tuple or dict of such arrays.
        targets: of the same examples, likewise, such as `{"labels": labels, "weights": weights}` for a loss of your own; None
            where there are none.
        size: how many examples a batch has.

    Raises:
        ValueError: lengths that differ or are zero, a size below 1.

    Example:
        >>> x, labels = np.arange(10.0).reshape(5, 2), np.array([0, 1, 1, 0, 1])
        >>> [(inputs.shape, targets.tolist()) for inputs, targets in nm.in_order(x, labels, 2)]
        [((2, 2), [0, 1]), ((2, 2), [1, 0]), ((1, 2), [1])]
    """
    data, examples = _data(inputs, targets, size)
    return [jax.tree.map(lambda x, k=k: x[k : k + size], data) for k in range(0, examples, size)]


def shuffled(inputs: PyTree, targets: PyTree, size: int, *, seed: int) -> "Shuffled":
    """Batches of exactly `size` without end: one random order after another, cut without regard to its borders.

    Few examples thus fill large batches by repetition, and every example is seen equally often up to one. It is an iterator
    that goes on where it was left: fits that are to see the same batches take one each, of the same seed.

    Args:
        inputs: (examples, ...), or a tuple or dict of such arrays.
        targets: of the same examples, likewise, such as `{"labels": labels, "weights": weights}` for a loss of your own; None
            where there are none.
        size: how many examples a batch has.
        seed: of the orders.

    Raises:
        ValueError: lengths that differ or are zero, a size below 1.

    Example:
        >>> batches = nm.shuffled(np.arange(3), np.arange(3), 2, seed=0)
        >>> seen = [next(batches)[0] for _ in range(3)]
        >>> [len(x) for x in seen], sorted(np.concatenate(seen).tolist())  # two orders of three examples
        ([2, 2, 2], [0, 0, 1, 1, 2, 2])
    """
    return Shuffled(*_data(inputs, targets, size), size, seed)


class Shuffled(Iterator[tuple]):
    """What `shuffled` returns: an iterator that never ends."""

    endless = "shuffled"

    def __init__(self, data: tuple, examples: int, size: int, seed: int):
        self.data, self.examples, self.size, self.seed = data, examples, size, seed
        self.rng = np.random.default_rng(seed)
        self.waiting = np.empty(0, np.int64)

    def __next__(self) -> tuple:
        while len(self.waiting) < self.size:
            self.waiting = np.concatenate([self.waiting, self.rng.permutation(self.examples)])
        chosen, self.waiting = self.waiting[: self.size], self.waiting[self.size :]
        return jax.tree.map(lambda x: x[chosen], self.data)

    def __repr__(self) -> str:
        return f"shuffled({self.examples} examples, {self.size} in a batch, seed={self.seed})"

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
        batches: of examples: a list, or a loader of PyTorch, whose tensors are taken as arrays.
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
    for batch in map(as_arrays, batches):
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
        if jnp.issubdtype(jnp.result_type(x), jnp.inexact) and (bad := non_finite(x)):
            raise ValueError(f"the inputs of a batch have {bad} non-finite values of {np.size(x)}")


def check_batch(batch: object, *, masks: bool = False) -> None:
    """Raise ValueError unless a batch is `(inputs, targets)`, or `(inputs, targets, mask)` where masks are heeded."""
    if masks and isinstance(batch, tuple | list) and len(batch) == 3:
        check_mask(batch)
    else:
        check_pair(batch)


def check_lengths(batch: tuple) -> None:
    """Raise ValueError unless all arrays of the targets are of as many examples as the inputs; single numbers are of none."""
    first: Any = next(iter(jax.tree.leaves(batch[0])), None)
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
        raise ValueError(
            f"the network does not take inputs of shape {got}: expected such as {traced}, with which its graph was traced "
            f"({first_line(error)})"
        ) from error


def warn_of_pixels(inputs: PyTree, *, stacklevel: int) -> None:
    """Warn of inputs that are images of bytes; `stacklevel` of the caller's warning, as `warnings.warn` counts."""
    if getattr(inputs, "dtype", None) == np.uint8 and np.ndim(inputs) > 2:
        warnings.warn(
            "inputs are uint8, numbers from 0 to 255: unless the network takes them so, divide by 255 and normalise as in "
            "its training",
            stacklevel=stacklevel + 1,
        )


def check_filled(batch: tuple) -> None:
    """Raise ValueError for a batch without examples."""
    for x in jax.tree.leaves(batch):
        if not np.size(x):
            raise ValueError(f"a batch must hold examples: got an array of shape {np.shape(x)}")


def non_finite(x: Data) -> int:
    """How many values are not: counted where they are."""
    finite = jnp.isfinite(x) if isinstance(x, jax.Array) else np.isfinite(x)
    return int((~finite).sum())


def check_pair(batch: object) -> None:
    """Raise ValueError unless a batch is a tuple `(inputs, targets)`."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = f"an array of shape {np.shape(batch)}" if hasattr(batch, "shape") else f"{type(batch).__name__}"
        got += f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise ValueError(f"each batch must be a tuple (inputs, targets): got {got}; one batch alone is [(inputs, targets)]")


def _data(inputs: PyTree, targets: PyTree, size: int) -> tuple[tuple, int]:
    """Both as trees of arrays, and how many examples they have. Raises ValueError unless all have the same, one or more."""
    data = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, list) else x, (inputs, targets), is_leaf=_is_list)
    lengths = [len(x) if np.ndim(x) else 0 for x in jax.tree.leaves(data)]
    if not jax.tree.leaves(inputs) or len(set(lengths)) > 1 or not lengths[0]:
        got = " and ".join(map(str, lengths))
        raise ValueError(f"inputs and targets must have one equal, positive length: got {got}")
    check_count("the batch size", size)
    return data, lengths[0]


def _is_list(x: Any) -> bool:
    return isinstance(x, list)
