"""The diagonal of the Fisher information of each model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignment.finite import check_finite
from alignment.graph import Graph, PyTree, flatten
from alignment.maps import HIGHEST
from npmerge.base import Merge, Stats
from npmerge.stack import Stack
from npmerge.statistics.collected import collected_for
from npmerge.statistics.likelihood import OfLikelihood, drawn, labels_of, log_likelihood
from npmerge.statistics.one_by_one import alone, of_models


@dataclass(frozen=True)
class DiagonalFisher(OfLikelihood):
    """The diagonal of each model's Fisher information, E_x E_y (d log p(y|x) / d theta)^2.

    Gradients are squared per example, then averaged (Matena and Raffel 2022; squaring the gradient of a batch is a
    common mistake). `apply` returns logits (examples, ..., classes); an example of several predictions, a sequence of tokens,
    has the sum of their log-likelihoods. Padding (`npmerge.masks.counted`) is left out, examples of nothing else do not
    count. Finalised to a tree like the variables with leaves (models, ...), float32.

    What it costs, for each example and model: "exact" takes a backward pass for each class of each prediction, "sampled" and
    "empirical" take one, with a gradient as large as the model.

    Implementations disagree on y. Matena and Raffel draw it from the model, or take the expectation over few classes; the
    program of Tam et al. 2023 takes the labels of the data, which is another matrix (Kunstner et al. 2019).

    Attributes:
        kind: "exact" takes the expectation over y ~ p(y|x), which needs no labels; "sampled" draws one y ~ p(y|x), unbiased and
            at a cost that does not grow with the classes; "empirical" takes the labels of the data.
        microbatch: examples differentiated at once; memory is microbatch x parameters, times the predictions and their classes
            of an example if `kind` is "exact".
        seed: of the draws. They depend on it and on what the example holds, so on no order or size of batches, and are made
            with the same random numbers for all models.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 2))}, jnp.array([[1.0, 0.0]])
        >>> stats = nm.collect(apply, nm.trace(apply, v, x), [v], [(x, None)], [nm.DiagonalFisher()])
        >>> print(np.array(stats[nm.DiagonalFisher]["w"]).round(3))  # (models, in, out): nothing depends on the second row
        [[[0.25 0.25]
          [0.   0.  ]]]
    """

    def measure(
        self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple
    ) -> tuple[Array, PyTree]:
        """Number of examples and sums of squares over one batch. Raises ValueError for labels that do not fit."""
        labels = labels_of("DiagonalFisher", self.kind, jax.eval_shape(apply, models[0], batch[0]), batch)
        mask = labels >= 0

        def sums(model: PyTree, x: PyTree, labels: Int[Array, "n ..."], mask: Bool[Array, "n ..."]) -> PyTree:
            squares = jax.vmap(lambda *one: self._squares(apply, model, *one))(x, jnp.where(mask, labels, -1))
            return jax.tree.map(lambda s: s.sum(0), squares)

        examples = mask.reshape(len(mask), -1).any(1).sum(dtype=jnp.float32)
        return examples, of_models(sums, self.microbatch, models, batch[0], labels, mask)

    def combine(self, a: tuple[Array, PyTree], b: tuple[Array, PyTree]) -> tuple[Array, PyTree]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: tuple[Array, PyTree]) -> PyTree:
        """Divide by the number of examples."""
        return jax.tree.map(lambda s: s / jnp.maximum(state[0], 1), state[1])

    def _squares(self, apply: Callable[..., PyTree], model: PyTree, x: PyTree, label: Int[Array, "..."]) -> PyTree:
        """Of the scores of one example; a negative label is padding."""

        def log_p(v: PyTree) -> Float[Array, "... classes"]:
            return jax.nn.log_softmax(apply(v, *alone(x))[0].astype(jnp.float32))

        if self.kind == "exact":  # scores of different predictions are uncorrelated: their squares add up
            p = jnp.where(label[..., None] >= 0, jnp.exp(log_p(model)), 0)
            jacobian = jax.jacrev(log_p)(model)
            return jax.tree.map(
                lambda j: jnp.tensordot(p, jnp.square(j.astype(jnp.float32)), p.ndim, precision=HIGHEST), jacobian
            )
        if self.kind == "sampled":
            label = drawn(self.seed, x, log_p(model), label)
        gradient = jax.grad(lambda v: log_likelihood(log_p(v), label))(model)
        return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradient)


def information_of(merge: Merge, stack: Stack, stats: Stats | None) -> PyTree:
    """The diagonal Fisher information of the models of a stack, among all that was collected. `merge` is named in the message.

    Raises:
        ValueError: none, that of other models, or values that are not finite.
    """
    information = collected_for(merge, stats, DiagonalFisher)
    mine, theirs = ({path: x.shape for path, x in flatten(tree).items()} for tree in (stack.params, information))
    for path in [*mine, *theirs]:
        if mine.get(path) != theirs.get(path):
            raise ValueError(
                f"the Fisher statistics are of other models: at {path!r} got {theirs.get(path)}, expected {mine.get(path)}"
            )
    check_finite(information, "the Fisher information (is a label no class of the network?)")
    return information
