"""Normal equations of the layers of a network: summed on the device in float32, solved on the host in float64."""

import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.activations.products import gram
from alignment.activations.taps import SiteFeatures
from alignment.maps import HIGHEST
from npmerge.least_squares.pieces import Piece
from npmerge.least_squares.targets import Networks, Targets
from npmerge.linear_layers import Layer
from npmerge.quadratics.regularised import regularised

SOLVING = 8
"""Solving takes at most so many times the memory of the sums of one copy: float64, factors or eigenvectors, work space."""


class Errors(NamedTuple):
    """Sums of squares over all samples of a site: of what is missing from the targets, and of the targets."""

    missing: Float[Array, ""] | float
    targets: Float[Array, ""] | float

    def relative(self) -> float:
        """||Z_in W + b - Z_out|| / ||Z_out||, 0 where both are."""
        missing, targets = float(self.missing), float(self.targets)
        return float(np.sqrt(missing / targets)) if targets > 0 else float(missing > 0)


class Sums(NamedTuple):
    """The normal equations of the change of a layer. With a bias the last row stands for it.

    Attributes:
        samples: how many.
        gram: Z_in^T Z_in (*copies, rows, rows).
        cross: Z_in^T (Z_out - Z_in W - b) (*copies, rows, columns), with the layer as it is.
        errors: of the layer as it is.
    """

    samples: Float[Array, ""]
    gram: Float[Array, "*copies rows rows"]
    cross: Float[Array, "*copies rows columns"]
    errors: Errors


class Change(NamedTuple):
    """What is added to a layer, by how much the sum of squares falls, and whether the inputs left directions open."""

    change: Float[np.ndarray, "*copies rows columns"]
    gain: float
    singular: bool


def sums_of(pair: SiteFeatures, layer: Layer) -> Sums:
    """The sums over the samples of one batch. Pure and traceable; products of highest precision."""
    x, missing = pair.inputs, _missing(pair, layer)
    products, cross = gram(x), jnp.matmul(x.mT, missing, precision=HIGHEST)
    count = jnp.float32(x.shape[-2])
    if layer.bias is not None:
        mean = x.sum(-2, keepdims=True)
        corner = jnp.broadcast_to(count, (*mean.shape[:-1], 1))
        products = jnp.concatenate([jnp.concatenate([products, mean.mT], -1), jnp.concatenate([mean, corner], -1)], -2)
        cross = jnp.concatenate([cross, missing.sum(-2, keepdims=True)], -2)
    return Sums(count, products, cross, Errors(jnp.square(missing).sum(), jnp.square(pair.outputs).sum()))


def errors_of(pair: SiteFeatures, layer: Layer) -> Errors:
    """The sums of squares alone."""
    return Errors(jnp.square(_missing(pair, layer)).sum(), jnp.square(pair.outputs).sum())


def _missing(pair: SiteFeatures, layer: Layer) -> Array:
    return pair.outputs - layer.outputs(pair.inputs, HIGHEST)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def add_sums(
    targets: Targets, total: dict[str, Sums], now: Mapping[str, Layer], networks: Networks, piece: Piece
) -> dict[str, Sums]:
    """The sums so far and those of a piece of the data more, of the sites in `total`."""
    pairs = targets.pairs(total, networks, piece.inputs, piece.wanted)
    return jax.tree.map(jnp.add, total, {name: sums_of(pairs[name], now[name]) for name in total})


def no_sums(now: Mapping[str, Layer]) -> dict[str, Sums]:
    """Sums over no samples."""
    found = {}
    for name, layer in now.items():
        *copies, rows, columns = layer.matrix.shape
        rows += layer.bias is not None
        gram, cross = (_zeros(*copies, rows, n) for n in (rows, columns))
        found[name] = Sums(_zeros(), gram, cross, Errors(_zeros(), _zeros()))
    return found


def _zeros(*shape: int) -> Array:
    """Made on the host: on a device every shape would be compiled."""
    return jnp.asarray(np.zeros(shape, np.float32), np.float32)


def bytes_of(layer: Layer) -> tuple[int, int]:
    """The memory of the sums of a site, and what solving them takes besides."""
    *copies, rows, columns = layer.matrix.shape
    rows += layer.bias is not None
    one = 4 * rows * (rows + columns)
    return int(np.prod(copies, dtype=int)) * one, SOLVING * one


def solved(sums: Sums, allowed: Bool[np.ndarray, "*copies rows columns"], ridge: float) -> Change:
    """The change D of the allowed entries that minimises ||Z_in (W + D) - Z_out||^2 + r ||D||^2, r = ridge tr(G) / rows.

    Columns with the same allowed rows S are solved together: (G_SS + r I) D_S = C_S. Where that is singular and no ridge holds
    it above rounding, D has the least norm: directions that were never seen keep what the layer does.

    Args:
        sums: the normal equations.
        allowed: which entries of the matrix may move; a bias, the last row of the sums, always may.
        ridge: how strongly the layer as it is holds, relative to the mean square of an input.

    Raises:
        ValueError: for sums that are not finite.
    """
    gram, cross = (np.asarray(x) for x in (sums.gram, sums.cross))
    if not (np.isfinite(gram).all() and np.isfinite(cross).all()):
        raise ValueError("the features are not finite: is there a NaN in the data?")
    change, gain, singular = np.zeros(cross.shape), 0.0, False
    for copy in np.ndindex(gram.shape[:-2]):
        g = gram[copy].astype(np.float64)
        size = ridge * np.trace(g) / len(g)
        for rows, columns in _blocks(allowed[copy], len(g)):
            block = np.ix_(rows, columns)
            inside, wanted = g if len(rows) == len(g) else g[np.ix_(rows, rows)], cross[copy][block].astype(np.float64)
            found, vague = regularised(inside, wanted, size, few=float(sums.samples) < len(rows))
            change[copy][block], singular = found, singular or vague
            gain += np.vdot(found, wanted) + size * np.vdot(found, found)  # 2 D.C - D.GD, as (G + r I) D = C
    return Change(change, gain, singular)


def _blocks(allowed: Bool[np.ndarray, "rows columns"], rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows, that of a bias among them, and the columns of each group of columns with the same rows."""
    patterns, group = np.unique(np.packbits(allowed, axis=0), axis=1, return_inverse=True)
    for k in range(patterns.shape[1]):
        columns = np.flatnonzero(group.ravel() == k)
        inside = np.flatnonzero(np.append(allowed[:, columns[0]], [True] * (rows - len(allowed))))
        if len(inside):
            yield inside, columns
