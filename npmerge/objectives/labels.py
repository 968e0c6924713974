"""Whether labels and outputs of a network belong together."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int

from alignment.graph import PyTree
from npmerge.objectives.of_user import of_pair


def check_labels(
    labels: Int[np.ndarray, "examples ..."], outputs: PyTree, mask: Bool[np.ndarray, "examples ..."] | None = None
) -> None:
    """Raise ValueError unless the outputs are logits (examples, ..., classes) and the labels integers in [0, classes).

    Args:
        labels: one per prediction: one per example, or per token of it.
        outputs: what the network returns for the batch, as arrays or `jax.ShapeDtypeStruct`.
        mask: which examples, or positions of them, are no padding: labels of padding may be any.

    Example:
        >>> from npmerge.objectives import check_labels
        >>> check_labels(np.array([0, 1, 2]), jax.ShapeDtypeStruct((3, 2), jnp.float32))
        Traceback (most recent call last):
        ValueError: labels out of range: got 0 to 2, expected 0 to 1
    """
    classes, values = check_label_shapes(labels, outputs), np.asarray(labels)
    if mask is not None:
        check_positions(mask, values.shape)
        values = values[np.asarray(mask)]
    if values.size and not 0 <= values.min() <= values.max() < classes:
        raise ValueError(f"labels out of range: got {values.min()} to {values.max()}, expected 0 to {classes - 1}")


def check_label_shapes(labels: Any, outputs: PyTree) -> int:
    """The number of classes. Raises ValueError unless outputs are logits and the labels integers, one for each prediction."""
    logits = check_logits(outputs)
    if labels is None:
        raise ValueError(f"batches need targets, here labels of shape {logits[:-1]}: got None in their place")
    values = np.asarray(labels)
    if values.ndim != len(logits) - 1 or values.shape[1:] != logits[1:-1]:  # other batches may hold other numbers of examples
        one_hot = "; one-hot labels are numbers of classes by labels.argmax(-1)" if values.shape == logits else ""
        raise ValueError(f"labels must be one per prediction, of shape {logits[:-1]}: got {values.shape}{one_hot}")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(
            f"labels must be integers, got {'floating-point numbers' if values.dtype.kind == 'f' else f'dtype {values.dtype}'}"
        )
    return logits[-1]


def check_logits(outputs: PyTree) -> tuple[int, ...]:
    """The shape of outputs that are logits (examples, ..., classes). Raises ValueError for others."""
    shape = getattr(outputs, "shape", None)
    if shape is None or len(shape) < 2:
        got = of_pair(outputs) or jax.tree.map(lambda x: x.shape, outputs)
        raise ValueError(f"apply must return logits (examples, classes), got {got}")
    return shape


def check_positions(mask: Bool[np.ndarray, "examples ..."], predictions: tuple[int, ...]) -> None:
    """Raise ValueError unless a mask is of these examples, or of these positions of them."""
    shape = np.shape(mask)
    if shape != predictions[: len(shape)]:
        raise ValueError(f"the mask is of shape {shape}, the predictions that it belongs to are of {predictions}")
