"""Shares of models in a weight from the Gram matrices of what it reads: what RegMean and its successors solve."""

import warnings
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree
from alignment.lookups import Lookup
from npmerge.base import Merge
from npmerge.quadratics.operators import on_leaves
from npmerge.quadratics.systems import solved
from npmerge.stack import Stack
from npmerge.statistics.input_grams import SiteGram
from npmerge.telling import note, of_the_caller


def regression_shares(merge: Merge, stack: Stack, grams: Iterable[SiteGram], scale: float, ridge: float) -> PyTree:
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
    grams = list(grams)
    lookups, sites = ([g for g in grams if isinstance(g.site, Lookup) is looked_up] for looked_up in (True, False))
    solved_sites = gram_shares([(g.gram,) for g in sites], ridge, scale)
    warn_of_open(merge, [g.site.name for g, (_, is_open) in zip(sites, solved_sites, strict=True) if is_open], len(sites))
    read = [(g.site, frequency_shares(g.gram, ridge)) for g in lookups]
    return on_leaves(stack.params, [*read, *((g.site, s) for g, ((s,), _) in zip(sites, solved_sites, strict=True))])


def frequency_shares(
    frequencies: Float[Array | np.ndarray, "models *copies rows"], ridge: float
) -> Float[Array, "models *copies rows"]:
    """`gram_shares` of diagonal matrices, as diagonals: each model's part in the reads of a row, zero without any."""
    f = np.asarray(frequencies, np.float64)
    total = f.sum(0)
    held = total + ridge * total.mean(-1, keepdims=True)
    return jnp.asarray(f / np.where(total > 0, held, 1), jnp.float32)


def warn_of_open(merge: Merge, singular: Sequence[str], sites: int) -> None:
    """Warn once of the sites whose inputs leave directions open, and note each."""
    for name in singular:
        note(f"{type(merge).__name__}, {name}: the data leave directions open, along which weights are averaged")
    if singular:
        first = ", ".join(map(repr, singular[:3])) + (", ..." if len(singular) > 3 else "")
        warnings.warn(
            f"{type(merge).__name__}: the data leave directions open at {len(singular)} of {sites} sites ({first}); "
            "there weights are averaged",
            stacklevel=of_the_caller(),
        )


def gram_shares(
    sites: Sequence[Sequence[Float[Array | np.ndarray, "models *copies rows rows"]]], ridge: float, scale: float = 1.0
) -> list[tuple[list[Float[Array, "models *copies rows rows"]], bool]]:
    """(sum_k (G_k + r I))^-1 G_m for each model and copy, r = ridge tr(sum_k G_k) / (models rows); float32, solved in float64.

    As the shares of differences from the mean these are those of G_m + r I: what r adds to them all cancels out. Where the sum
    is singular and r does not hold it above the rounding of sums in float32, directions that were never seen have no share.

    Args:
        sites: for each site G, and others to be solved for in place of G, too.
        ridge: r, relative to the mean of the diagonal.
        scale: of G, a in a G + (1 - a) diag(G).

    Returns:
        For each site the solutions, and whether directions are open in a copy that read anything.
    """
    found = solved([[np.asarray(x) for x in site] for site in sites], ridge, scale)
    return [([jnp.asarray(x) for x in shares], singular) for shares, singular in found]
