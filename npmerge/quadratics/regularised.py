"""A system of normal equations in float64, of the least norm along directions that were never seen."""

import numpy as np
import scipy  # finds its parts when they are used
from jaxtyping import Float

SINGULAR = 1e-6
"""Sums in float32 with a reciprocal condition number below this do not tell a singular system from a regular one."""


def regularised(
    gram: Float[np.ndarray, "rows rows"], wanted: Float[np.ndarray, "rows columns"], size: float, *, few: bool = False
) -> tuple[Float[np.ndarray, "rows columns"], bool]:
    """(G + size I)^-1 C in float64, of the least norm where G is singular and `size` does not hold it above rounding.

    Args:
        gram: G, summed in float32.
        wanted: C, in the span of G up to rounding.
        size: of the ridge.
        few: whether G is known to be singular.

    Returns:
        The solution, and whether G is singular up to rounding.
    """
    singular = few or _is_singular(gram)
    held = _cholesky(gram, size) if not singular or size > _rounding(gram) else None
    return (_by_eigenvalues(gram, wanted, size) if held is None else scipy.linalg.cho_solve((held, True), wanted)), singular


def _cholesky(gram: np.ndarray, size: float = 0.0) -> np.ndarray | None:
    """The lower factor with so much added to the diagonal; None where there is none."""
    held = np.array(gram.T, order="F")  # as LAPACK wants it, copied straight
    held[np.diag_indices_from(held)] += size
    try:
        return scipy.linalg.cholesky(held, lower=True, overwrite_a=True, check_finite=False)
    except np.linalg.LinAlgError:
        return None


def _rounding(gram: np.ndarray) -> float:
    """How far the eigenvalues of sums in float32 may be off: errors of the entries add up like those of a random matrix."""
    return float(SINGULAR * np.trace(gram) / np.sqrt(len(gram)))


def _by_eigenvalues(gram: np.ndarray, wanted: np.ndarray, size: float) -> np.ndarray:
    """Along the directions that hold more than rounding; without a ridge that is the solution of the least norm."""
    values, vectors = np.linalg.eigh(gram)
    seen = values > SINGULAR * values[-1]
    along = vectors[:, seen]
    return along @ ((along.T @ wanted) / (values[seen, None] + size))


def _is_singular(gram: np.ndarray) -> bool:
    """Whether a sum in float32 leaves directions open."""
    factor = _cholesky(gram)
    if factor is None:
        return True
    rcond, _ = scipy.linalg.lapack.dpocon(factor, np.abs(gram).sum(0).max(), uplo="L")
    return bool(rcond < SINGULAR)
