"""Shares of models in a weight from the Gram matrices of what it reads: what RegMean and its successors solve."""

import warnings
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from alignment.lookups import Lookup
from alignment.sites import Use
from npmerge.base import Merge
from npmerge.grams import SiteGram
from npmerge.normal_equations import regularised
from npmerge.operations import tell
from npmerge.quadratic import on_leaves
from npmerge.stack import Stack


def shares_of(merge: Merge, stack: Stack, grams: Iterable[SiteGram], scale: float, ridge: float) -> PyTree:
    """The shares of a quadratic merge, an operator for each leaf; leaves without a Gram matrix are averaged.

    Args:
        merge: named in the warning.
        stack: the models.
        grams: of the sites, one for each part of a leaf.
        scale: what off-diagonal elements are multiplied with.
        ridge: see `gram_shares`.

    Warns:
        UserWarning: once, with the sites whose inputs leave directions open that the ridge alone would decide. That some rows
            of an embedding are never read is expected, and no reason to warn.
    """
    found: list[tuple[Use, Array]] = []
    sites, singular = 0, []
    for g in grams:
        if isinstance(g.site, Lookup):
            found.append((g.site, frequency_shares(g.gram, ridge)))
            continue
        (share,), is_open = gram_shares(off_diagonal(g.gram, scale), ridge)
        found.append((g.site, share))
        sites += 1
        singular += [g.site.name] * is_open
    warn_of_open(merge, singular, sites)
    return on_leaves(stack.params, found)


def frequency_shares(
    frequencies: Float[Array | np.ndarray, "models *copies rows"], ridge: float
) -> Float[Array, "models *copies rows"]:
    """`gram_shares` of diagonal matrices, as diagonals: each model's part in the reads of a row, zero without any."""
    f = np.asarray(frequencies, np.float64)
    total = f.sum(0)
    held = total + ridge * total.mean(-1, keepdims=True)
    return jnp.asarray(f / np.where(total > 0, held, 1), jnp.float32)


def warn_of_open(merge: Merge, singular: Sequence[str], sites: int) -> None:
    """Warn once of the sites whose inputs leave directions open."""
    if singular:
        first = ", ".join(map(repr, singular[:3])) + (", ..." if len(singular) > 3 else "")
        warnings.warn(
            f"{type(merge).__name__}: the data leave directions open at {len(singular)} of {sites} sites ({first}); "
            "there weights are averaged",
            stacklevel=5,
        )


def off_diagonal(
    grams: Float[Array | np.ndarray, "models *copies rows rows"], scale: float
) -> Float[np.ndarray, "models *copies rows rows"]:
    """Scale G + (1 - scale) diag(G)."""
    g = np.asarray(grams)
    return g * np.where(np.eye(g.shape[-1], dtype=bool), 1, scale).astype(g.dtype)


def gram_shares(
    grams: Float[Array | np.ndarray, "models *copies rows rows"],
    ridge: float,
    *others: Float[Array | np.ndarray, "models *copies rows rows"],
) -> tuple[list[Float[Array, "models *copies rows rows"]], bool]:
    """(sum_k (G_k + r I))^-1 G_m for each model and copy, r = ridge tr(sum_k G_k) / (models rows); float32, solved in float64.

    As the shares of differences from the mean these are those of G_m + r I: what r adds to them all cancels out. Where the sum
    is singular and r does not hold it above the rounding of sums in float32, directions that were never seen have no share.

    Args:
        grams: G.
        ridge: r, relative to the mean of the diagonal.
        others: to be solved for in place of G, too.

    Returns:
        The solutions for G and for the others, and whether directions are open in a copy that read anything.
    """
    g = np.asarray(grams)
    wanted = np.stack([g, *(np.asarray(x) for x in others)])
    found, singular = np.zeros(wanted.shape, np.float32), False
    for copy in np.ndindex(g.shape[1:-2]):
        total = g[:, *copy].astype(np.float64).sum(0)
        seen = np.flatnonzero(np.diagonal(total) > 0)
        if len(seen):
            sides = np.moveaxis(wanted[:, :, *copy][:, :, seen].astype(np.float64), 2, 0)
            inside = total[np.ix_(seen, seen)]
            solved, vague = regularised(inside, sides.reshape(len(seen), -1), ridge * np.trace(total) / len(total))
            tell((9 if vague else 1 / 3) * len(seen) ** 3 + 2 * len(seen) * sides.size)  # eigenvectors, or Cholesky's factor
            found[:, :, *copy][:, :, seen] = np.moveaxis(solved.reshape(sides.shape), 0, 2)
            singular |= vague or len(seen) < len(total)
    return [jnp.asarray(x) for x in found], singular
