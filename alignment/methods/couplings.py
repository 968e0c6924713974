"""Optimal transport between two sets of units: exact couplings by assignment or linear programming, entropic by Sinkhorn."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.optimize import linear_sum_assignment, linprog
from scipy.special import logsumexp

from alignment.checks import check_number

LARGEST_ASSIGNMENT = 4096  # copies of units: up to here assignment beats linear programming, however many share a mass
ITERATIONS = 2_000
TOLERANCE = 1e-9

Cost = Float[np.ndarray, "rows columns"]
Masses = Int[np.ndarray, " units"]


def coupling(cost: Cost, rows: Masses, columns: Masses, *, regularisation: float = 0) -> Cost:
    """The coupling T >= 0 of two distributions that minimises <T, cost> - regularisation * entropy(T).

    Computed on the host in float64. Without regularisation T is a vertex of the polytope of couplings: for uniform masses and
    as many rows as columns it is 1 / n times a permutation. Masses are whole numbers so that it is a whole number of quanta
    that flows between two units, and found exactly; ties are broken the same way on every call.

    Args:
        cost: of moving a unit of mass from row to column.
        rows: the relative mass of each row, whole numbers.
        columns: that of each column.
        regularisation: the weight of the entropy -sum T (log T - 1); below 1e-10 of the largest cost it counts as none.

    Returns:
        T, of total mass 1. An entropic one sums to the masses over columns up to rounding, over rows as far
        as the iterations have converged, which takes more of them at lower regularisations.

    Raises:
        ValueError: masses that are not positive whole numbers, one for each row and column; a cost that is not finite; a
            negative regularisation.
    """
    cost, rows, columns = np.asarray(cost, np.float64), np.asarray(rows), np.asarray(columns)
    if cost.shape != (rows.size, columns.size):
        raise ValueError(f"a cost of shape {cost.shape} needs as many masses, got {rows.size} and {columns.size}")
    for masses in (rows, columns):
        if not np.issubdtype(masses.dtype, np.integer) or (masses < 1).any():
            raise ValueError(f"masses must be positive whole numbers, got {masses.tolist()}")
    if not np.isfinite(cost).all():
        raise ValueError(f"transport costs of shape {cost.shape} hold non-finite values")
    check_number("regularisation", regularisation)
    if regularisation > 1e-10 * np.abs(cost).max(initial=0):  # below, it is lost in the rounding of cost / regularisation
        return _entropic(cost, np.log(rows / rows.sum()), np.log(columns / columns.sum()), regularisation)
    total = math.lcm(int(rows.sum()), int(columns.sum()))
    rows, columns = rows * (total // int(rows.sum())), columns * (total // int(columns.sum()))
    common = int(np.gcd.reduce(np.concatenate([rows, columns])))
    rows, columns, total = rows // common, columns // common, total // common
    return (_by_assignment if total <= LARGEST_ASSIGNMENT else _by_programming)(cost, rows, columns) / total


def support(distances: Float[np.ndarray, "n n"], width: int) -> Float[np.ndarray, "width n"]:
    """Which units each new one is made of, 0 or 1: one of them, or all that have the same nearest of the units chosen."""
    n = len(distances)
    if width >= n:
        return np.eye(n)[np.arange(width) % n]
    chosen = _medoids(distances, width)
    nearest = distances[:, chosen].argmin(1)
    nearest[chosen] = np.arange(width)  # not another one at the same place
    return np.eye(width)[:, nearest]


def _medoids(distances: Float[np.ndarray, "n n"], width: int) -> np.ndarray:
    """Units chosen one by one, so that the sum of all distances to the nearest falls most. In ascending order."""
    nearest, chosen = np.full(len(distances), np.inf), np.zeros(len(distances), bool)
    for _ in range(width):
        total = np.minimum(nearest[:, None], distances).sum(0)
        best = np.where(chosen, np.inf, total).argmin()
        chosen[best], nearest = True, np.minimum(nearest, distances[:, best])
    return np.flatnonzero(chosen)


def masses_of(made: Float[np.ndarray, "width n"]) -> np.ndarray:
    """The mass of each new unit in whole quanta: that of the units it is made of, shared among all that they make."""
    parts = made.sum(0).astype(int)
    return (made.astype(int) * (math.lcm(*parts.tolist()) // parts)).sum(1)


def _by_assignment(cost: Cost, rows: Masses, columns: Masses) -> Cost:
    """Every unit stands as often as it has mass: the flow is an assignment of the copies."""
    source, target = (np.repeat(np.arange(masses.size), masses) for masses in (rows, columns))
    i, j = linear_sum_assignment(cost[np.ix_(source, target)])
    flow = np.zeros(cost.shape)
    np.add.at(flow, (source[i], target[j]), 1)
    return flow


def _by_programming(cost: Cost, rows: Masses, columns: Masses) -> Cost:
    """The linear programme of n m unknowns. Its vertices are whole numbers, for its matrix is totally unimodular."""
    n, m = cost.shape
    sums = [sparse.kron(sparse.eye_array(n), np.ones((1, m))), sparse.kron(np.ones((1, n)), sparse.eye_array(m))]
    sparse_sums: Any = sparse.vstack(sums).tocsr()  # the stubs of scipy know dense ones only
    found = linprog(cost.ravel(), A_eq=sparse_sums, b_eq=np.concatenate([rows, columns]), method="highs-ds")
    if found.x is None:
        raise RuntimeError(f"the transport between {n} and {m} units was not solved: {found.message}")
    return np.rint(found.x).reshape(n, m)  # off by the solver's tolerance, which must not be cut off


def _entropic(cost: Cost, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"], regularisation: float) -> Cost:
    """Sinkhorn in the log domain (Cuturi 2013), T_ij = exp((f_i + g_j - cost_ij) / regularisation), from log masses.

    The regularisation falls by halves to the one wanted, so that potentials start near those of the next.
    """
    g, epsilon = np.zeros(columns.size), max(regularisation, float(np.ptp(cost)))
    while True:
        last = epsilon <= regularisation
        f, g = _scaled(cost / epsilon, rows, columns, g / epsilon, ITERATIONS if last else 100)
        if last:
            return np.exp(f[:, None] + g[None] - cost / epsilon)
        g, epsilon = g * epsilon, max(epsilon / 2, regularisation)


def _scaled(
    cost: Cost, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"], g: Float[np.ndarray, " m"], iterations: int
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]]:
    """Potentials in units of the regularisation, after rows and columns are normalised in turn until they hold."""
    for _ in range(iterations):
        f = rows - logsumexp(g[None] - cost, axis=1)
        new = columns - logsumexp(f[:, None] - cost, axis=0)
        moved, g = np.abs(new - g).max(), new
        if moved < TOLERANCE:
            break
    return f, g
