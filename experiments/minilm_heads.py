"""Linear heads on the mean feature of a sentence, one for each task, that no network changes; the loss of a recipe on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import npmerge as nm
from experiments.sentences import Part, TextTask

FILE = Path("heads.npz")
"""Where a recipe's loss finds the heads: beside the recipe, in the folder that the command is run in."""


@dataclass(frozen=True, eq=False)
class Heads:
    """The heads of all tasks side by side.

    Attributes:
        weights: (width, classes).
        biases: (classes,).
        tasks: the number of the task that each class is of.
    """

    weights: Float[np.ndarray, "width classes"]
    biases: Float[np.ndarray, " classes"]
    tasks: Int[np.ndarray, " classes"]

    def logits(self, features: Float[Array, "n length width"], tokens: Int[Array, "n length"]) -> Float[Array, "n classes"]:
        """Of the mean feature."""
        return mean_feature(features, tokens) @ self.weights + self.biases[None]

    def save(self, path: Path) -> None:
        """As arrays."""
        np.savez(path, weights=self.weights, biases=self.biases, tasks=self.tasks)


def load_heads(path: Path) -> Heads:
    """What `Heads.save` wrote."""
    with np.load(path) as file:
        return Heads(**file)


def fitted_heads(apply: Callable, variables: Any, tasks: Sequence[TextTask], count: int) -> Heads:
    """Logistic regression on the features of a network for so many training sentences of each task."""
    from sklearn.linear_model import LogisticRegression  # slow to import, and needed nowhere else

    pooled = jax.jit(lambda tokens: mean_feature(apply(variables, tokens), tokens))
    found = []
    for task in tasks:
        tokens, labels = Part(task.train.tokens[:count], task.train.labels[:count])
        features = np.concatenate([pooled(batch) for batch, _ in nm.in_order(tokens, labels, 64)])
        model = LogisticRegression(max_iter=1000).fit(features, labels)
        weights, biases = np.zeros((features.shape[1], len(task.classes))), np.full(len(task.classes), -10.0)
        weights[:, model.classes_ - task.first], biases[model.classes_ - task.first] = model.coef_.T, model.intercept_
        found.append((weights.astype(np.float32), biases.astype(np.float32)))
    counts = [len(task.classes) for task in tasks]
    weights, biases = (np.concatenate(x, -1) for x in zip(*found, strict=True))
    return Heads(weights, biases, np.repeat(np.arange(len(counts)), counts))


def mean_feature(features: Float[Array, "n length width"], tokens: Int[Array, "n length"]) -> Float[Array, "n width"]:
    """Of the tokens of each sentence that are no padding."""
    mask = (tokens != 0).astype(features.dtype)[..., None]
    return (features * mask).sum(1) / mask.sum(1)


def own_task_loss(heads: Heads, apply: Callable, params: Any, stack: Any, batch: tuple) -> Float[Array, ""]:
    """Mean cross entropy of sentences of all tasks, each among the classes of its own task."""
    tokens, labels = batch
    logits, tasks = heads.logits(apply(params, tokens), tokens), jnp.asarray(heads.tasks)
    own = tasks[labels][:, None] == tasks[None]
    return optax.softmax_cross_entropy_with_integer_labels(jnp.where(own, logits, -1e9), labels).mean()


def cross_entropy(apply: Callable, params: Any, stack: Any, batch: tuple) -> Float[Array, ""]:
    """`own_task_loss` with the heads that lie beside the recipe."""
    return own_task_loss(load_heads(FILE), apply, params, stack, batch)


def task_apply(heads: Heads, apply: Callable, task: TextTask) -> Callable:
    """`(variables, tokens) -> logits` of the classes of a task."""
    own = slice(task.first, task.first + len(task.classes))

    def logits(variables: Any, tokens: Array) -> Array:
        return heads.logits(apply(variables, tokens), tokens)[:, own]

    return logits
