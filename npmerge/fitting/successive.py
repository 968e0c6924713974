"""Many models merged in pairs, one after another, each pair learned: NP Merge as it is published for more than two."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from alignment.checks import check_key
from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.arithmetic import wide
from npmerge.constraints import Simplex
from npmerge.fitting.fit import FitResult, fit
from npmerge.granularity import Granularity, PerParameter
from npmerge.learned import Learned
from npmerge.methods import Average, WeightedAverage
from npmerge.objectives import Apply, Objective, weight_space
from npmerge.stack import Stack, check_models

Realign = Callable[[PyTree, PyTree], PyTree]
PER_PARAMETER = PerParameter()


class Successive(NamedTuple):
    """What came of merging models one after another.

    Attributes:
        network: the merge of all of them.
        shares: how much of each model is in it, one array per leaf that broadcasts against (models, ...), the models in the
            order in which they were given: the coefficients of all turns multiplied out. `combine(shares, stack)` of the
            stack of `models` is the network.
        turns: what the fit of each pair gave, in the order of merging.
        models: what was merged: the models that were given, or what `realign` made of them.

    Example:
        >>> models = [{"w": k * jnp.eye(2)} for k in (1.0, 3.0, 8.0)]
        >>> given = lambda v, x: x @ v["w"], nm.CrossEntropy(), [(jnp.eye(2), np.array([0, 1]))], optax.adam(9.0)
        >>> found = nm.successive(models, *given, steps=1)  # the largest logits have the least loss
        >>> print(found.network["w"].diagonal().round(1), found.shares["w"][:, 0, 0].round(2))
        [8. 8.] [0. 0. 1.]
    """

    network: PyTree
    shares: PyTree
    turns: tuple[FitResult, ...]
    models: tuple[PyTree, ...]


def successive(
    models: Sequence[PyTree],
    apply: Apply,
    objective: Objective,
    batches: Iterable[tuple],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    granularity: Granularity = PER_PARAMETER,
    order: Sequence[int] | None = None,
    realign: Realign | None = None,
    held_out: Iterable[tuple] = (),
    key: Array | None = None,
    **options: Any,
) -> Successive:
    """Merge the first two models, what came of them with the third, and so on (Orozco Camacho et al. 2024).

    The k-th model joins the merge M of the k - 1 before it by a M + (1 - a) theta_k, a = sigmoid(latent), learned from a =
    (k - 1) / k, the latent logit((k - 1) / k) = log(k - 1): zero steps give the plain average of all, where a start at one half
    would leave half of the network to the last model. Learning holds two models and one latent for each coefficient,
    however many models there are; the joint merge (`np_merge()` of a stack of all) holds all models and a latent for each.
    All pairs share one compiled step. Running statistics are averaged over the models so far, as in every merge.

    Args:
        models: two or more networks of one structure, aligned to one another.
        apply: evaluation mode, or the outputs of training mode.
        objective: what is minimised for each pair; one of all tasks together, or merges forget the models before the last.
        batches: `(inputs, targets)`; a list starts anew for each pair, an iterator goes on and must last for all of them.
        optimizer: an Optax transformation; each pair starts with fresh moments.
        steps: for each pair.
        granularity: which parameters share a coefficient.
        order: the numbers of the models in the order of merging; as they are given by default.
        realign: called with the merge so far and the next model, it returns that model brought into the merge's units.
        held_out: batches by which the best theta of each pair is kept, its start included.
        key: randomness for objectives that draw, another one for each pair.
        options: further arguments of `fit`.

    Raises:
        ValueError: fewer than two models, models that differ (which and where), an order that does not name each model once,
            and what `fit` raises.

    Example:
        >>> models = [{"w": k * jnp.eye(2)} for k in (1.0, 3.0, 8.0)]
        >>> given = lambda v, x: x @ v["w"], nm.CrossEntropy(), [(jnp.eye(2), np.array([0, 1]))], optax.adam(0.1)
        >>> found = nm.successive(models, *given, steps=0)  # no learning: the average of all
        >>> print(found.network["w"].diagonal(), len(found.turns))
        [4. 4.] 2
    """
    numbers = _checked_order(models, order)
    check_key(key)
    chain = _Chain(Learned(Average(), granularity, Simplex()), models[numbers[0]])
    loss, held_out = weight_space(chain.merge, apply, objective), list(held_out)

    def learn(theta: PyTree, pair: Stack) -> FitResult:
        random = None if key is None else jax.random.fold_in(key, chain.size)
        return fit(theta, loss, pair, batches, optimizer, steps=steps, held_out=held_out, key=random, **options)

    moved, turns = list(models), []
    for number in numbers[1:]:
        if realign is not None:
            moved[number] = realign(chain.network, models[number])
            check_models([models[number], moved[number]])
        turns.append(chain.append(moved[number], learn))
    shares = jax.tree.map(lambda c: c[np.argsort(numbers)], chain.shares)
    return Successive(chain.network, shares, tuple(turns), tuple(moved))


class _Chain:
    """The merge of the models so far and their shares in it, in the order of merging."""

    def __init__(self, merge: Learned, first: PyTree):
        self.merge, self.first, self.size = merge, first, 1
        self.exact = jax.tree.map(lambda x: wide(jnp.asarray(x)), first)  # rounded once, however many turns there are
        self.shares = jax.tree.map(lambda x: np.ones((1,) * (np.ndim(x) + 1), np.float32), first)

    @property
    def network(self) -> PyTree:
        """The merge so far, in the dtypes of the models."""
        return _rounded(self.exact, self.first)

    def append(self, model: PyTree, learn: Callable[[PyTree, Stack], FitResult]) -> FitResult:
        """Merge one more model by coefficients that are learned from equal shares of all models."""
        start = Learned(WeightedAverage((float(self.size), 1.0)), self.merge.granularity, self.merge.constraint)
        exact = _pair(self.exact, model, 1 / (self.size + 1))
        pair = Stack(_rounded(exact, model))
        found = learn(start.init(pair), pair)
        self.exact, turn = _merged(self.merge, found.theta, Stack(exact))
        self.size += 1
        self.shares = jax.tree_util.tree_map_with_path(functools.partial(_joined, self.size), self.shares, turn)
        return found


@jax.jit
def _pair(merged: PyTree, model: PyTree, share: Float[Array, ""]) -> PyTree:
    """Both side by side; of running statistics, which merges average, the mean over all models so far in both places."""

    def leaf(path: tuple, a: Array, b: Array) -> Array:
        b = b.astype(a.dtype)
        if is_statistic(path_name(path)):
            a = b = a + jnp.asarray(share, a.dtype) * (b - a)
        return jnp.stack([a, b])

    return jax.tree_util.tree_map_with_path(leaf, merged, model)


def _rounded(exact: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), exact, like)


@functools.partial(jax.jit, static_argnums=0)
def _merged(merge: Learned, theta: PyTree, pair: Stack) -> tuple[PyTree, PyTree]:
    """The merge of a pair, and its coefficients."""
    return merge.apply(theta, pair), merge.coefficients(theta, pair)


def _joined(size: int, path: tuple, shares: np.ndarray, turn: Array) -> np.ndarray:
    """The shares so far times that of the merge which they made, and the share of the new model."""
    if is_statistic(path_name(path)):
        return np.full((size, *shares.shape[1:]), 1 / size, np.float32)
    of_merge, of_model = np.asarray(turn[:1]), np.asarray(turn[1:])
    return np.concatenate([shares * of_merge, of_model])


def _checked_order(models: Sequence[PyTree], order: Sequence[int] | None) -> list[int]:
    """The numbers of the models in the order of merging."""
    check_models(models)
    if len(models) < 2:
        raise ValueError("merging in pairs needs two models or more, got 1")
    numbers = list(range(len(models))) if order is None else list(order)
    if sorted(numbers) != list(range(len(models))):
        raise ValueError(f"order must name each of the models 0 to {len(models) - 1} once, got {numbers}")
    return numbers
