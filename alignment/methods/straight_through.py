"""Straight-through matching: hard permutations in the forward pass, learned by gradient descent on scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.assignment import assign, assign_in_jit
from alignment.base import Alignment, Stats
from alignment.finite import check_finite
from alignment.graph import Graph, PyTree
from alignment.maps import Maps, NodeMap, permutation
from alignment.methods.starts import orders_of
from alignment.methods.weight_matching import WeightMatching
from alignment.permutations import Order
from alignment.weight_distance import agreement_slopes

Scores = dict[str, Float[Array | np.ndarray, "*copies n n"]]


@dataclass(frozen=True)
class StraightThrough(Alignment):
    """Each node's map is the best assignment of scores, which are theta; the gradient passes to them as if it were they.

    The straight-through estimator of Git Re-Basin (Ainsworth et al. 2022, algorithm 3) keeps latent weights W, matches the
    other model's V with them in each step, and passes the gradient with respect to the permuted V on to W. The assignment
    of a node sees W only through the scores C = sum over tensors of W V^T, and a step of gradient descent on W moves C by
    exactly -lr dL/dP. So the scores themselves are kept, n^2 numbers a node. With one hidden layer that is the published
    algorithm. In deeper networks the other nodes stay at the permutations of `start` inside a node's scores, and a step
    needs one assignment a node rather than a coordinate descent.

    `init` is `start`; `npmerge.fit` learns, the published midpoint loss being `along_line(StraightThrough(), graph, apply,
    objective, interval=(0.5, 0.5))`. With `held_out` it keeps the best permutations by held-out loss, where the published
    code goes by the noisy loss of a mini-batch.

    Scores are divided by their standard deviation over a node, so that one learning rate suits every node; the published
    one for the latent weights is this one times that deviation.

    Attributes:
        start: an alignment by permutations; None leaves every unit where it is.
        device: solve the assignments on the device rather than on the host.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 2.0]]), "down": jnp.array([[1.0], [2.0]])}
        >>> b = {"up": jnp.array([[2.0, 1.0]]), "down": jnp.array([[2.0], [1.0]])}
        >>> graph, matching = alignment.trace(apply, a, jnp.ones((1, 1))), alignment.StraightThrough()
        >>> theta = matching.init(graph, [a, b])  # scores
        >>> matching.maps(theta, graph)[1]["up"].push.tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        >>> slope = jax.jit(jax.grad(lambda theta: alignment.weight_distance(matching, graph, theta, [a, b])))
        >>> slope([{}, {"up": jnp.eye(2)}])[1]["up"].tolist()  # with nothing moved, descent raises the scores of the exchange
        [[2.0, 1.0], [-2.0, -1.0]]
    """

    start: Alignment | None = field(default_factory=WeightMatching)
    device: bool = False

    def __post_init__(self) -> None:
        if self.start is not None and not isinstance(self.start, Alignment):
            raise ValueError(f"start must be an alignment or None, got {self.start!r}")

    @property
    def needs(self) -> tuple[type, ...]:
        """What the start needs."""
        return () if self.start is None else self.start.needs

    def init(
        self, graph: Graph, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None
    ) -> list[Scores]:
        """For each model, node -> scores (*copies, places, units); none for model 0.

        Where the scores of a copy prefer another assignment than `start`, which had more in view (heads with what is inside
        them, another loss), the places that it chose are raised to just above the others of their rows.
        """
        theta: list[Scores] = [{}]
        starts = orders_of(self.start, graph, models, stats=stats, key=key)
        for model, orders in zip(models[1:], starts[1:], strict=True):
            pushes = {name: permutation(jnp.asarray(order)).push for name, order in orders.items()}
            scores = agreement_slopes(graph, pushes, models[0], model)
            theta.append({name: latent_scores(np.asarray(c), orders[name]) for name, c in scores.items()})
        return theta

    def maps(self, theta: list[Scores], graph: Graph) -> Sequence[Maps]:
        """Permutation matrices, exactly 0 and 1, with the derivative of the scores, which must be finite (else ValueError)."""
        check_finite(theta, "scores")
        return [{n: hard_permutation(jnp.asarray(s), device=self.device) for n, s in model.items()} for model in theta]


def hard_permutation(scores: Float[Array, "*copies n n"], *, device: bool = False) -> NodeMap:
    """The permutation of largest total score, exactly 0 and 1, with the derivative of the scores (straight through)."""
    hard = jax.nn.one_hot(assign_in_jit(scores, device=device), scores.shape[-1], dtype=scores.dtype)
    push = hard + (scores - jax.lax.stop_gradient(scores))  # in this order, for the bracket is exactly zero
    return NodeMap(push, push.mT)


def latent_scores(scores: Float[np.ndarray, "*copies n n"], order: Order) -> Float[np.ndarray, "*copies n n"]:
    """Scores of one node over their standard deviation, lifted at the places of `order` where they prefer another one."""
    return _with_margin(_normalised(scores), order)


def _normalised(scores: Float[np.ndarray, "*copies n n"]) -> Float[np.ndarray, "*copies n n"]:
    deviation = scores.std()
    return scores / deviation if deviation > 0 else scores


def _with_margin(scores: Float[np.ndarray, "*copies n n"], order: Order) -> Float[np.ndarray, "*copies n n"]:
    lifted = np.array(scores)
    for copy in np.ndindex(scores.shape[:-2]):
        places = (*copy, np.arange(scores.shape[-1]), order[copy])
        if not np.array_equal(assign(scores[copy]), order[copy]):
            best = np.where(np.eye(scores.shape[-1])[order[copy]], -np.inf, scores[copy]).max(axis=1)
            lifted[places] = np.maximum(scores[places], best + 1e-3)
    return lifted
