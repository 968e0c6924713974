"""Several tasks at once, each with batches of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.objectives.base import Apply, Check, Objective, Term
from npmerge.objectives.terms import check_weights, one_or_more, scaled, weighted
from npmerge.stack import Stack


@dataclass(frozen=True)
class Joint(Objective):
    """sum_k w_k L_k over tasks k: a batch is a tuple with a batch for each task (`npmerge.by_task` makes them of data of each).

    Coefficients that are learned on one task go to the model that solves it; learned on all tasks they are shared. Task k is
    by convention that of model k; a teacher="own" takes it so.

    Attributes:
        objective: one for all tasks, or one for each.
        weights: w_k; None is the mean over the tasks.
        functions: one network function for each task, in the place of the loss's one, where tasks have heads of their own; ()
            for the same network.

    Raises:
        ValueError: objectives, weights and functions of different numbers of tasks, or such as are none.

    Example:
        >>> batches = (jnp.eye(2), np.array([0, 1])), (jnp.eye(2), np.array([0, 0]))  # of two tasks
        >>> each = [nm.CrossEntropy()(lambda v, x: x @ v, jnp.eye(2), None, batch) for batch in batches]
        >>> joint = nm.Joint(nm.CrossEntropy())(lambda v, x: x @ v, jnp.eye(2), None, batches)
        >>> print([f"{x:.2f}" for x in (*each, joint)])
        ['0.31', '0.81', '0.56']
    """

    objective: Objective | tuple[Objective, ...]
    weights: tuple[float, ...] | None = None
    functions: tuple[Apply, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", tuple(self.functions))
        if not isinstance(self.objective, Objective):
            object.__setattr__(self, "objective", one_or_more("Joint", self.objective))
        check_weights(self)
        sizes = {len(x) for x in (self.objective, self.weights, self.functions) if isinstance(x, tuple) and x}
        if len(sizes) > 1:
            raise ValueError(f"Joint takes an objective, a weight and a function for each task: got {sorted(sizes)} of them")
        if not all(map(callable, self.functions)):
            raise ValueError("Joint takes functions of (variables, inputs), one for each task")

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether all objectives heed masks."""
        return all(o.masks for o in self._objectives(1))

    @property
    def transductive(self) -> bool:  # type: ignore[override]
        """Whether one of the objectives is."""
        return any(o.transductive for o in self._objectives(1))

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The weighted sum."""
        terms = zip(self._tasks(stack, batch), self._functions(apply, batch), batch, strict=True)
        return weighted([o(f, params, stack, b) for o, f, b in terms], self._weights(batch))

    def terms(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> list[Term]:
        """Those of each task: its batches may have a share of the examples that differs from one to the next."""
        tasks = zip(self._tasks(stack, batch), self._functions(apply, batch), batch, strict=True)
        return scaled([o.terms(f, params, stack, b) for o, f, b in tasks], self._weights(batch))

    def check_tasks(self, stack: Stack, tasks: int) -> None:
        """Raise ValueError unless it can be of so many tasks of these models."""
        self._tasks(stack, (None,) * tasks)

    def map_batches(self, function: Callable[[tuple], Any], batch: tuple) -> tuple:
        """The batch of each task, mapped."""
        return tuple(o.map_batches(function, b) for o, b in zip(self._tasks(None, batch), batch, strict=True))

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Check:
        """There must be a batch for each task, and each as its objective asks."""
        terms = zip(self._tasks(stack, batch), self._functions(apply, batch), batch, strict=True)
        checks = [o.checker(f, params, stack, b) for o, f, b in terms]

        def check(batch: tuple) -> None:
            self._tasks(stack, batch)
            if len(batch) != len(checks):
                raise ValueError(f"a joint batch has {len(batch)} tasks, the first one had {len(checks)}")
            for task, each in zip(checks, batch, strict=True):
                task(each)

        return check

    def check(self, batch: tuple, outputs: PyTree) -> None:
        """Each batch as its objective asks; all networks have these outputs."""
        for objective, each in zip(self._tasks(None, batch), batch, strict=True):
            objective.check(each, outputs)

    def _objectives(self, tasks: int) -> tuple[Objective, ...]:
        return (self.objective,) * tasks if isinstance(self.objective, Objective) else self.objective

    def _tasks(self, stack: Stack | None, batch: Any) -> list[Objective]:
        """The objective of each task. Raises ValueError unless there is a batch for each of them."""
        known = [len(x) for x in (self.objective, self.weights, self.functions) if isinstance(x, tuple) and x]
        asked = f"{known[0]} tasks" if known else "all tasks"
        if not isinstance(batch, tuple | list) or not batch or (known and len(batch) != known[0]):
            got = len(batch) if isinstance(batch, tuple | list) else type(batch).__name__
            raise ValueError(f"a joint batch must be a tuple with the batches of {asked}: got {got}; by_task(...) makes them")
        objectives = self._objectives(len(batch))
        found = [objective.of_task(k) for k, objective in enumerate(objectives)]
        if stack is not None and stack.size != len(found) and any(a != b for a, b in zip(found, objectives, strict=True)):
            raise ValueError(
                f"teacher='own' asks for a task for each model: got batches of {len(found)} for {stack.size} models"
            )
        return found

    def _functions(self, apply: Apply, batch: tuple) -> tuple[Apply, ...]:
        return self.functions or (apply,) * len(batch)

    def _weights(self, batch: tuple) -> tuple[float, ...]:
        return (1 / len(batch),) * len(batch) if self.weights is None else self.weights
