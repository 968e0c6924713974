"""Updates of low rank in thin factors: joined exactly, cut to a rank, taken from a whole matrix."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Update(NamedTuple):
    """B A of one weight.

    Attributes:
        A: (r, in).
        B: (out, r).
        error: relative error in the Frobenius norm that cutting made, 0 where nothing was cut.
    """

    A: np.ndarray
    B: np.ndarray
    error: float = 0.0


def joined(pairs: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float]) -> Update:
    """The weighted sum of updates (A, B), exactly: ranks add up."""
    B = np.concatenate([np.float32(w) * B for w, (_, B) in zip(weights, pairs, strict=True)], 1)
    return Update(np.concatenate([A for A, _ in pairs]), B)


def cut(update: Update, rank: int) -> Update:
    """The nearest update of at most this rank (Eckart & Young 1936), from QR of the factors: their product is never made."""
    if update.A.shape[0] <= rank:
        return update
    Q_B, R_B = np.linalg.qr(update.B.astype(np.float64))
    Q_A, R_A = np.linalg.qr(update.A.T.astype(np.float64))
    U, s, V = np.linalg.svd(R_B @ R_A.T)
    return _split(Q_B @ U[:, : len(s)], s, V[: len(s)] @ Q_A.T, rank)


def extracted(matrix: np.ndarray, rank: int, max_error: float | None = None) -> Update:
    """The nearest update of at most this rank to a whole matrix; of fewer if the relative error then is `max_error` at most."""
    U, s, V = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    if max_error is not None:
        rank = min(rank, _least_rank(s, max_error))
    return _split(U, s, V, min(rank, len(s)))


def _least_rank(s: np.ndarray, max_error: float) -> int:
    """The smallest rank, 1 or more, that leaves out no more than this part of the norm."""
    total = float(np.sum(s**2))
    left = total - np.cumsum(s**2)
    enough = np.flatnonzero(left <= (max_error**2 + 1e-15) * total)
    return int(enough[0]) + 1 if len(enough) else len(s)


def _split(U: np.ndarray, s: np.ndarray, V: np.ndarray, rank: int) -> Update:
    """Factors with the root of the singular values in each."""
    root = np.sqrt(s[:rank])
    total = float(np.sum(s**2))
    error = math.sqrt(float(np.sum(s[rank:] ** 2)) / total) if total else 0.0
    return Update((root[:, None] * V[:rank]).astype(np.float32), (U[:, :rank] * root).astype(np.float32), error)
