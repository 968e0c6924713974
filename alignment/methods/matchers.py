"""Which units of several models come to one slot: matchers from the correlations of all their units with each other.

All models have the same number of units, laid end to end: those of model 0, then those of model 1. A matcher gives every unit
the number of its slot; slots are numbered by their first unit, so model 0 keeps its order where its units stay apart.
"""

import numpy as np
from jaxtyping import Float, Int

from alignment.activations.correlation import ROUNDING, living
from alignment.activations.moments import Joint, against_reference
from alignment.assignment import assign

Similarity = Float[np.ndarray, "units units"]
Slots = Int[np.ndarray, " units"]


def similarity(joint: Joint, models: int) -> Similarity:
    """Pearson correlation of every unit with every other, of one copy of a node: what the matchers read.

    Rounded to 1e-5, so that correlations which rounding alone tells apart are ties, broken by the order of the units. Units
    that do not vary are dead: the i-th dead unit of a model is the partner of the i-th of every other (1); dead units are
    otherwise nearly alike (1 - 1e-5); between a dead one and a living one stands 0.
    """
    alive = living(against_reference(joint, models))
    covariance = np.asarray(joint.covariance, np.float64)
    scale = np.where(alive.ravel(), np.sqrt(np.maximum(np.diagonal(covariance), 0)), np.inf)
    found = (covariance + covariance.T) / 2 / np.outer(scale, scale)
    dead, rank = np.flatnonzero(~alive), np.cumsum(~alive, axis=-1)[~alive]
    found[np.ix_(dead, dead)] = np.where(np.equal.outer(rank, rank), 1, 1 - ROUNDING)
    return np.round(found / ROUNDING) * ROUNDING


def exact(scores: Similarity, width: int) -> Slots:
    """The pairs of two models' units that correlate most in sum; the best of them share a slot until `width` slots remain."""
    n = len(scores) // 2
    partner = n + assign(scores[:n, n:])
    best = np.argsort(-scores[np.arange(n), partner], kind="stable")[: 2 * n - width]
    slots = np.arange(2 * n)
    slots[partner[best]] = best
    return numbered(slots)


def k_means(scores: Similarity, width: int, iterations: int = 100) -> Slots:
    """Lloyd's clusters of the rows of the correlation matrix.

    Started from the first unit and, one after another, the unit farthest from all that were taken; a cluster that runs empty
    takes the unit that is farthest from its own centre. So nothing is random.
    """
    slots, centres = np.full(len(scores), -1), scores[_spread(scores, width)]
    for _ in range(iterations):
        distance = _distances(scores, centres)
        found = _filled(distance.argmin(1), distance, width)
        if np.array_equal(found, slots):
            break
        slots = found
        centres = np.stack([scores[slots == c].mean(0) for c in range(width)])
    return numbered(slots)


def _spread(points: Similarity, count: int) -> list[int]:
    distance, chosen = _distances(points, points), [0]
    nearest = distance[0]
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[chosen[-1]])
    return chosen


def _distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    return np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T


def _filled(slots: Slots, distance: Float[np.ndarray, "units width"], width: int) -> Slots:
    away = distance[np.arange(len(slots)), slots]
    for empty in np.setdiff1d(np.arange(width), slots):
        alone = np.bincount(slots, minlength=width)[slots] == 1
        moved = np.where(alone, -np.inf, away).argmax()
        slots[moved], away[moved] = empty, -np.inf
    return slots


def greedy(scores: Similarity, models: int, width: int, alpha: float, beta: float) -> Slots:
    """Join the two slots that are most alike until `width` remain (Stoica et al. 2024, section 4, as their code has it).

    Ties go to the first pair, by the first units of the slots. See `ZipIt` for alpha and beta.
    """
    inside = inside_budget(len(scores), models, width, beta)
    zipping = _Zipping(scores, models, alpha, inside)
    while zipping.count > width and (pair := zipping.closest() or zipping.reopened()):
        zipping.join(*pair)
    while zipping.count > width:
        zipping.dissolve()
    return numbered(zipping.slot)


def inside_budget(units: int, models: int, width: int, beta: float) -> int:
    """How many pairs inside each model may be joined: the share beta of what each model has to give up."""
    return int((units - width) // models * beta + 1e-4)


class _Zipping:
    """Slots of units while they are joined. A slot goes by the number of its first unit.

    Row maxima are kept, so that a step looks at two rows and at those whose best partner has changed.
    """

    def __init__(self, scores: Similarity, models: int, alpha: float, inside: int):
        self.alpha, self.count, self.slot = alpha, len(scores), np.arange(len(scores))
        self.model = np.repeat(np.arange(models), len(scores) // models)
        self.budget = np.full(models, inside)
        self.units = np.array(scores, np.float64)  # between units; -inf where they may not be joined any more
        self.links = self.units.copy()  # between slots
        np.fill_diagonal(self.links, -np.inf)
        self.partner, self.best = self.links.argmax(1), self.links.max(1)
        for model in np.flatnonzero(self.budget <= 0):
            self._close(int(model))

    def closest(self) -> tuple[int, int] | None:
        """The most alike of the slots that may be joined, the first of equals; None if there are none."""
        row = int(self.best.argmax())
        return None if self.best[row] == -np.inf else (row, int(self.partner[row]))

    def join(self, row: int, col: int) -> None:
        """Put the units of two slots into the first: as like the others as the less alike of the two, times alpha."""
        self.slot[self.slot == col] = row
        self.count -= 1
        least = np.minimum(self.links[row], self.links[col])
        self.links[col] = self.links[:, col] = -np.inf
        self.links[row] = self.links[:, row] = self.alpha * least if self.alpha > 0 else -np.inf
        link = self.links[row]
        stale = (self.partner == row) | (self.partner == col)
        stale[[row, col]] = True
        better = (link > self.best) | ((link == self.best) & (row < self.partner))
        self.best, self.partner = np.where(better, link, self.best), np.where(better, row, self.partner)
        self._refresh(np.flatnonzero(stale))
        if (origin := int(self.model[row])) == self.model[col]:
            self.budget[origin] -= 1
            if self.budget[origin] <= 0:
                self._close(origin)

    def reopened(self) -> tuple[int, int] | None:
        """A new round, where no pair is left: joined slots may be joined again. The closest pair, if that gives any."""
        ids, place = np.unique(self.slot, return_inverse=True)
        order = np.argsort(place, kind="stable")
        starts = np.searchsorted(place[order], np.arange(len(ids)))
        least = np.minimum.reduceat(np.minimum.reduceat(self.units[np.ix_(order, order)], starts, 0), starts, 1)
        np.fill_diagonal(least, -np.inf)
        self.links[np.ix_(ids, ids)] = least
        self._refresh(ids)
        return self.closest()

    def dissolve(self) -> None:
        """Share out the units of the smallest slot, the last of equals, where no pair is left.

        Each model's go to the slot without units of that model which they are most alike. There is one: a model has no more
        slots than `width` by the time that it is closed, and this one of them.
        """
        ids, sizes = np.unique(self.slot, return_counts=True)
        gone = ids[::-1][sizes[::-1].argmin()]
        members = np.flatnonzero(self.slot == gone)
        for model in np.unique(self.model[members]):
            group = members[self.model[members] == model]
            free = np.setdiff1d(ids, self.slot[self.model == model])
            least = np.full(len(self.slot), np.inf)
            np.minimum.at(least, self.slot, self.units[group].min(0))
            free = free if len(free) else ids[ids != gone]  # of a model that is still open
            self.slot[group] = free[least[free].argmax()]
        self.count -= 1

    def _close(self, model: int) -> None:
        """Join no more slots of one model: a slot is of the model of its first unit."""
        of = self.model == model
        self.units[np.ix_(of, of)] = -np.inf
        first = np.flatnonzero(of & (self.slot == np.arange(len(self.slot))))
        self.links[np.ix_(first, first)] = -np.inf
        self._refresh(first)

    def _refresh(self, rows: Int[np.ndarray, " rows"]) -> None:
        for row in rows:
            self.partner[row] = self.links[row].argmax()
            self.best[row] = self.links[row, self.partner[row]]


def numbered(slots: Slots) -> Slots:
    """The same slots, numbered in the order of their first units."""
    _, first, place = np.unique(slots, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place]
