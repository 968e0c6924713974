"""Shares of models in a weight from the Gram matrices of what it reads: what RegMean and its successors solve."""

import warnings
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from npmerge.base import Merge
from npmerge.grams import SiteGram
from npmerge.normal_equations import regularised
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
        UserWarning: once, with the sites whose inputs leave directions open that the ridge alone would decide.
    """
    found, open_ones = [], []
    for g in grams:
        shares, singular = gram_shares(off_diagonal(np.asarray(g.gram), scale), ridge)
        found.append((g.site, jnp.asarray(shares)))
        open_ones += [g.site.name] * singular
    if open_ones:
        first = ", ".join(map(repr, open_ones[:3])) + (", ..." if len(open_ones) > 3 else "")
        warnings.warn(
            f"{type(merge).__name__}: the data leave directions open at {len(open_ones)} of {len(found)} sites ({first}); "
            "there weights are averaged",
            stacklevel=4,
        )
    return on_leaves(stack.params, found)


def off_diagonal(
    grams: Float[np.ndarray, "models *copies rows rows"], scale: float
) -> Float[np.ndarray, "models *copies rows rows"]:
    """Scale G + (1 - scale) diag(G)."""
    return grams * np.where(np.eye(grams.shape[-1], dtype=bool), 1, scale).astype(grams.dtype)


def gram_shares(
    grams: Float[Array | np.ndarray, "models *copies rows rows"], ridge: float
) -> tuple[Float[np.ndarray, "models *copies rows rows"], bool]:
    """(sum_k (G_k + r I))^-1 G_m for each model and copy, r = ridge tr(sum_k G_k) / (models rows); float32, solved in float64.

    As the shares of differences from the mean these are those of G_m + r I: what r adds to them all cancels out. Where the sum
    is singular and r does not hold it above the rounding of sums in float32, directions that were never seen have no share.

    Returns:
        The shares, and whether there were such directions in any copy that read anything.
    """
    g = np.asarray(grams)
    models, rows = g.shape[0], g.shape[-1]
    found, singular = np.zeros(g.shape, np.float32), False
    for copy in np.ndindex(g.shape[1:-2]):
        each = g[:, *copy].astype(np.float64)
        total = each.sum(0)
        seen = np.flatnonzero(np.diagonal(total) > 0)
        if len(seen):
            singular |= len(seen) < rows
            wanted = np.moveaxis(each[:, seen][:, :, seen], 0, 1).reshape(len(seen), -1)
            solved, vague = regularised(total[np.ix_(seen, seen)], wanted, ridge * np.trace(total) / rows)
            singular |= vague
            block = np.moveaxis(solved.reshape(len(seen), models, len(seen)), 1, 0)
            found[(slice(None), *copy)][np.ix_(np.arange(models), seen, seen)] = block
    return found, singular
