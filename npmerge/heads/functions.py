"""Networks that share a part and keep heads or stems of their own, as functions of the variables of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array

from alignment.checks import check_count, kind_of
from alignment.graph import PyTree
from npmerge.arithmetic import mean_of
from npmerge.heads.side_by_side import side_by_side

Function = Callable[..., Any]


@dataclass(frozen=True)
class MultiHead:
    """`multi_head(variables, inputs) -> [outputs of every head]`, under `jax.jit` the shared part computed once.

    The variables are `{"shared": tree, "heads": [tree, ...]}`, where what a tree does not hold is None. XLA sees that all heads
    do the same computation and does it once.

    Attributes:
        functions: for each head the function of one network, with the widths of the merged one.
        entries: where stems end: the weights, by path, whose outputs are averaged over the networks.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> models = [{"w": jnp.eye(2), "u": jnp.ones((2, 3))}, {"w": 3 * jnp.eye(2), "u": jnp.ones((2, 5))}]
        >>> graphs = [nm.trace(apply, model, jnp.eye(2)) for model in models]
        >>> headed = nm.multi_head(apply, graphs, models, [{"w": alignment.identity(2)}] * 2)
        >>> second = headed.apply.head(1)  # a network like any other
        >>> print(second(headed.variables, jnp.eye(2)))
        [[2. 2. 2. 2. 2.]
         [2. 2. 2. 2. 2.]]
    """

    functions: tuple[Function, ...]
    entries: tuple[str, ...] = ()

    def __call__(self, variables: dict[str, Any], inputs: Array) -> list[Any]:
        """What the functions return."""
        return side_by_side(self.functions, self.entries, self.networks(variables), inputs)

    def networks(self, variables: dict[str, Any]) -> list[PyTree]:
        """The variables of each task's network: shared ones and its own. Raises ValueError for variables of another kind."""
        return _networks(variables, len(self.functions))

    def head(self, number: int) -> "OneHead":
        """The network of one task: `(variables, inputs) -> outputs`, for `evaluate` and losses. Raises ValueError for none."""
        check_count("the number of a head", number, 0)
        if number >= len(self.functions):
            raise ValueError(f"no head {number}: there are {len(self.functions)}, counted from 0")
        return OneHead(self, number)

    def mean(self, variables: dict[str, Any], inputs: Array) -> Any:
        """The mean of what all heads return, where they are of one task."""
        return mean_of(self(variables, inputs))


@dataclass(frozen=True)
class OneHead:
    """What leads to one of the heads, as a function of the variables of all."""

    whole: MultiHead
    number: int

    def __call__(self, variables: dict[str, Any], inputs: Array) -> Any:
        """What the function returns."""
        if self.whole.entries:  # every stem leads to it
            return self.whole(variables, inputs)[self.number]
        return self.whole.functions[self.number](self.whole.networks(variables)[self.number], inputs)


@dataclass(frozen=True)
class MultiHeadTraining:
    """A `MultiHead` in training mode: `(variables, inputs) -> (outputs, variables with new statistics)`.

    Attributes:
        whole: the training modes of all networks, as a `MultiHead`.
    """

    whole: MultiHead

    def __call__(self, variables: dict[str, Any], inputs: Array) -> tuple[list[Any], dict[str, Any]]:
        """Outputs of every head; the shared statistics are those that all heads saw."""
        made = self.whole(variables, inputs)
        if odd := [x for x in made if not isinstance(x, tuple) or len(x) != 2]:
            raise ValueError(
                f"train_apply must return (outputs, variables with new statistics), got {kind_of(odd[0])}: is it training mode?"
            )
        shared = only(made[0][1], variables["shared"])
        heads = [only(new, head) for (_, new), head in zip(made, variables["heads"], strict=True)]
        return [outputs for outputs, _ in made], {"shared": shared, "heads": heads}


def _networks(variables: dict[str, Any], count: int) -> list[PyTree]:
    """The variables of each network, shared ones and its own."""
    if not isinstance(variables, Mapping) or variables.keys() != {"shared", "heads"} or len(variables["heads"]) != count:
        raise ValueError(
            f"expected the variables that multi_head made, {{'shared': tree, 'heads': [tree, ...]}} with {count} heads: "
            f"got {kind_of(variables)}"
        )
    return [_joined(variables["shared"], head) for head in variables["heads"]]


def _joined(shared: PyTree, head: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: b if a is None else a, shared, head, is_leaf=_is_none)


def only(tree: PyTree, like: PyTree) -> PyTree:
    """The leaves of a tree in whose places another one has some; None elsewhere."""
    return jax.tree.map(lambda x, old: None if old is None else x, tree, like, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None
