"""The greedy soup."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import kind_of
from alignment.graph import PyTree
from npmerge.arithmetic import column
from npmerge.base import Stats
from npmerge.linear import LinearMerge, combine, constant
from npmerge.stack import Stack
from npmerge.telling import listening, tell, tell_of, tell_unknown


@dataclass(frozen=True)
class GreedySoup(LinearMerge):
    """The mean of some of the models: from the best one on, each is added unless the mean scores less with it.

    Wortsman et al. 2022. Models are tried in the order of their own scores, those of equal scores in the order of the
    stack; one that leaves the score as it is is added. Scores are asked 2 N - 1 times, of candidates as they would be stored,
    whose running statistics are averages: let `score` re-estimate them where there are any (`resetting`).

    Attributes:
        score: how good a network is, one number of which more is better, on data that no model was trained on: such as
            `lambda variables: evaluate(apply, variables, batches).accuracy`. It is called by `init` alone; values of the merge
            compare by it, so make it once.

    Example:
        >>> stack = nm.stack_models([{"w": jnp.array([w])} for w in (0.0, 2.0, 9.0)])
        >>> soup = nm.GreedySoup(lambda variables: -abs(variables["w"][0] - 1.2))  # the nearer to 1.2 the better
        >>> print(soup(stack)["w"])  # the mean of the first two: with the third it would score less
        [1.]
    """

    score: Callable[[PyTree], float]

    def __post_init__(self) -> None:
        if not callable(self.score):
            raise ValueError(f"GreedySoup needs a score, a function of the variables, got {kind_of(self.score)}")
        try:
            hash(self.score)
        except TypeError:
            raise ValueError(f"GreedySoup needs a score that has a hash, got {kind_of(self.score)} without one") from None

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """1 / k for each of the k models chosen, 0 for the others. Raises ValueError for a score that is no number."""
        scores = [self._score(model) for model in stack.models()]
        first, *others = sorted(range(stack.size), key=lambda k: -scores[k])
        chosen, best = [first], scores[first]
        for k in others:
            shares = jnp.asarray(_shares([*chosen, k], stack))
            tell_of(_soup, shares, stack.params)
            score = self._score(_soup(shares, stack.params))
            if score >= best:
                chosen, best = [*chosen, k], score
        return constant(stack, _shares(chosen, stack))

    def _score(self, variables: PyTree) -> float:
        with listening() as told:
            value = self.score(variables)
        tell(sum(told)) if told else tell_unknown()
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise ValueError(f"GreedySoup needs a score that is one number, got {kind_of(value)}") from None
        if math.isnan(number):
            raise ValueError("GreedySoup needs scores that can be compared, got NaN")
        return number


def _shares(chosen: list[int], stack: Stack) -> Float[np.ndarray, " models"]:
    return np.isin(np.arange(stack.size), chosen).astype(np.float32) / np.float32(len(chosen))


@jax.jit
def _soup(shares: Float[Array, " models"], params: PyTree) -> PyTree:
    return combine(jax.tree.map(lambda x: column(shares, x), params), Stack(params))
