"""What an objective is: a scalar to minimise, as a value."""

import abc
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.batches import check_batch
from npmerge.masks import weight_of
from npmerge.objectives.of_user import outputs_of
from npmerge.stack import Stack

Apply = Callable[[PyTree, Array], Array]
Loss = Callable[..., Array]  # (theta, stack, batch), and key= if it draws at random
Check = Callable[[Any], None]
Term = tuple[Float[Array, ""], Float[Array, ""]]


class Objective(abc.ABC):
    """A scalar to minimise, averaged over the examples of a batch. Subclasses are frozen dataclasses.

    Example:
        >>> class Size(nm.Objective):
        ...     def __call__(self, apply, params, stack, batch):
        ...         return jnp.abs(params["w"]).sum()
        >>> loss = nm.fine_tuning(lambda v, x: x @ v["w"], nm.Sum((nm.CrossEntropy(), Size()), (1.0, 0.1)))
        >>> f"{loss({'w': jnp.eye(2)}, None, (jnp.eye(2), np.array([0, 1]))):.2f}"  # 0.31 + 0.1 x 2
        '0.51'
    """

    masks: bool = False
    """Whether a batch may be `(inputs, targets, mask)`: then the average is over what the mask keeps."""

    transductive: bool = False
    """Whether it is made for the inputs that are tested on: results on those must be called transductive."""

    reads_batches: bool = True
    """Whether the batch matters; not where weights alone are judged."""

    @abc.abstractmethod
    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Float[Array, ""]:
        """The value for the network `params`; `stack` holds the models it was merged from."""

    def map_batches(self, function: Callable[[tuple], Any], batch: Any) -> Any:
        """`function` of the batch, written as `(inputs, targets)` or `(inputs, targets, mask)`.

        Where the batch is one of several tasks, a tuple of what the function makes of that of each. What this returns is a
        batch of the objective again if the function returns batches: so they are checked, padded and put in their places.
        """
        return function(batch)

    def weight(self, batch: Any) -> Float[Array, ""]:
        """How many examples, or positions of them, of a batch the value is the mean of. Traceable."""
        found: list[Array] = []
        self.map_batches(lambda pair: found.append(weight_of(pair)), batch)
        return sum(found[1:], found[0]) if found else jnp.float32(1)

    def terms(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
        """The value as a sum of means, each with how many examples it is of: over several batches each is averaged alone."""
        weight = self.weight(batch) if self.reads_batches else jnp.float32(1)
        return [(self(apply, params, stack, batch), weight)]

    def of_task(self, task: int) -> "Objective":
        """What takes the place of the objective on the data of one of several tasks (`Joint`): as a rule, itself."""
        return self

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> Check:
        """A check for batches like this one, on the host: it raises ValueError for those that cannot be learned from.

        Args:
            apply: the network.
            params: its variables, as arrays or `jax.ShapeDtypeStruct`.
            stack: the models, likewise.
            batch: the first one.
        """
        check_batch(batch, masks=self.masks)
        return functools.partial(self.check, outputs=outputs_of(apply, params, batch[0]))

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """Raise ValueError if a network with these outputs (`jax.ShapeDtypeStruct`) cannot learn from the batch."""
        check_batch(batch, masks=self.masks)


def mean_over_batches(found: Sequence[Sequence[Term]]) -> float:
    """The value over several batches, of their terms: each term is the mean over all its examples, on the host in float64."""
    values, sizes = np.moveaxis(np.array(jax.device_get(found), np.float64), 2, 0)
    totals, counts = (np.where(sizes > 0, values, 0) * sizes).sum(axis=0), sizes.sum(axis=0)
    return float((totals / np.where(counts > 0, counts, 1)).sum())


def value_over(objective: Objective, apply: Apply, params: PyTree, stack: Stack | None, batches: Iterable[Any]) -> float:
    """The value for a network over several batches, each term weighed by the examples of which it is the mean."""
    return mean_over_batches([terms_of(objective, apply, params, stack, batch) for batch in batches])


@functools.partial(jax.jit, static_argnums=(0, 1))
def terms_of(objective: Objective, apply: Apply, params: PyTree, stack: Stack | None, batch: Any) -> list[Term]:
    """`Objective.terms`, compiled."""
    return objective.terms(apply, params, stack, batch)


def tasks_of(objective: Objective, batch: Any) -> int:
    """The number of tasks whose batches make up one of an objective."""
    found: list[tuple] = []
    objective.map_batches(found.append, batch)
    return len(found)
