"""Log-likelihoods that Fisher information is made of: which predictions count, and which outcomes they are measured on."""

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from alignment.activations.moments import Statistic
from alignment.checks import check_choice, check_count
from alignment.graph import PyTree
from npmerge.masks import counted

Kind = Literal["exact", "sampled", "empirical"]
KINDS: tuple[Kind, ...] = ("exact", "sampled", "empirical")
INSTEAD = "without classes take RegMean (InputGram), which reads inputs alone, or learn coefficients (np_merge)"


@dataclass(frozen=True)
class OfLikelihood(Statistic):
    """What is measured on gradients of log-likelihoods: its fields.

    Attributes:
        kind: "exact" takes the expectation over y ~ p(y|x), "sampled" draws one y for each prediction, "empirical" takes the
            labels of the data.
        microbatch: examples differentiated at once.
        seed: of the draws.
    """

    always: ClassVar[frozenset[str]] = frozenset({"gradients"})
    kind: Kind = "exact"
    microbatch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("microbatch", self.microbatch)
        check_choice("kind", self.kind, KINDS)
        check_count("seed", self.seed, 0)

    @property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What it always reads, and labels if `kind` says so."""
        return self.always | ({"labels"} if self.kind == "empirical" else set())


def labels_of(name: str, kind: Kind, outputs: PyTree, batch: tuple) -> Int[Array, "examples ..."]:
    """The labels of a batch, one per prediction, -1 for padding; zeros where there are none and none are needed.

    Args:
        name: of the statistic, for messages.
        kind: "empirical" needs labels.
        outputs: shapes of the logits (examples, ..., classes).
        batch: padding is what `npmerge.masks.counted` leaves out.

    Raises:
        ValueError: for a network that has no such outputs, or those of one class, of which it is always certain; for labels
            that do not fit them.

    Warns:
        UserWarning: for targets of real numbers.
    """
    shape: tuple[int, ...] = getattr(outputs, "shape", ())
    targets = batch[1]
    if len(shape) < 2:
        raise ValueError(f"{name} needs logits (examples, ..., classes): the network returns {outputs}")
    if shape[-1] < 2:
        raise ValueError(f"{name} needs logits of two classes at least, got outputs of shape {shape}: {INSTEAD}")
    if kind != "empirical" and jnp.issubdtype(getattr(targets, "dtype", bool), jnp.floating):
        what = f"{name} takes outputs for logits of classes, but the targets are {targets.dtype}, no labels: {INSTEAD}"
        warnings.warn(what, stacklevel=2)
    fit = np.shape(targets) == shape[:-1] and jnp.issubdtype(jnp.result_type(targets), jnp.integer)
    if kind == "empirical" and not fit:
        got = getattr(targets, "shape", targets), getattr(targets, "dtype", type(targets).__name__)
        raise ValueError(f"the empirical Fisher needs integer labels of shape {shape[:-1]}: got {got[0]} of {got[1]}")
    labels = jnp.asarray(targets).astype(jnp.int32) if fit else jnp.zeros(shape[:-1], jnp.int32)
    return jnp.where(_predictions(labels, batch), labels, -1)


def _predictions(labels: Int[Array, "examples ..."], batch: tuple) -> Bool[Array, "examples ..."]:
    """Which of the predictions of a batch are no padding."""
    mask = counted(batch)
    if mask.ndim == 1 or labels.ndim == 1:
        mask = mask.reshape(len(mask), -1).any(1).reshape(-1, *(1,) * (labels.ndim - 1))
    elif mask.shape != labels.shape:
        raise ValueError(f"the mask has {mask.shape[1]} positions, but the network makes {labels.shape[1:]} predictions")
    return jnp.broadcast_to(mask, labels.shape) & (labels >= 0)


def log_likelihood(log_p: Float[Array, "... classes"], label: Int[Array, "..."]) -> Float[Array, ""]:
    """Summed over the predictions whose label is not negative; NaN if one is no class, which indexing would hide."""
    classes = log_p.shape[-1]
    unknown = jnp.where(label < classes, 0.0, jnp.nan).astype(jnp.float32)  # added: XLA makes zero of 0 * NaN
    return jnp.sum((jax.nn.one_hot(label, classes, dtype=jnp.float32) + unknown[..., None]) * log_p)


def drawn(seed: int, example: PyTree, log_p: Float[Array, "... classes"], label: Int[Array, "..."]) -> Int[Array, "..."]:
    """One outcome y ~ p for each prediction that is no padding, by the seed and by what the example holds."""
    return jnp.where(label >= 0, jax.random.categorical(key_of(seed, example), log_p), label)


def key_of(seed: int, example: PyTree) -> PRNGKeyArray:
    """A key that the example itself tells."""
    bits = jnp.concatenate([_bits(x) for x in jax.tree.leaves(example)])
    places = _mixed(jnp.arange(bits.size, dtype=jnp.uint32))
    return jax.random.fold_in(jax.random.key(seed), _mixed(bits + places).sum(dtype=jnp.uint32))


def _bits(x: Array) -> UInt[Array, " words"]:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, kind).ravel().astype(jnp.uint32)


def _mixed(x: UInt[Array, "..."]) -> UInt[Array, "..."]:
    """Bits spread over the whole word, one to one: the last steps of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> jnp.uint32(shift))) * jnp.uint32(factor)
    return x ^ (x >> jnp.uint32(16))
