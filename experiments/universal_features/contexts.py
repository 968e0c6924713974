"""Contexts in which features are most active, for the page of features."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from experiments.corpora import ALPHABET
from experiments.universal_features.dictionary import encoded
from experiments.universal_features.settings import BASE, MERGES, PARENTS

if TYPE_CHECKING:
    from experiments.universal_features.rows import Experiment

BEFORE, BEHIND = 40, 12
"""Characters around the one where a feature is most active."""


def contexts_of(experiment: "Experiment", name: str) -> Iterator[dict[str, Any]]:
    """Rows of the features of a network that are shown: of each group those that are active most strongly.

    Groups are by what a feature is matched with: parents for a merge, the base for a fine-tune, fine-tunes for the base.
    """
    s, found = experiment.settings, experiment.of(name)
    counted = np.flatnonzero(found.fires >= s.fires)
    groups = _groups(experiment, name, len(counted))
    texts = np.concatenate([inputs for inputs, _ in experiment.compared])
    active = np.asarray(encoded(found.dictionary, found.units))[:, counted]
    for group, members in groups.items():
        order = sorted(np.flatnonzero(members), key=lambda k: -float(active[:, k].max()))
        for k in order[: s.shown]:
            yield {
                "feature": int(counted[k]),
                "group": group,
                "fires": round(float((active[:, k] > 0).mean()), 6),
                "contexts": _strongest(active[:, k].reshape(texts.shape), texts, s.contexts),
            }


def _groups(experiment: "Experiment", name: str, count: int) -> dict[str, np.ndarray]:
    if name == BASE:
        kept = [experiment.match(BASE, parent).kept for parent in PARENTS]
        names = ("persists in both fine-tunes", "persists in one fine-tune", "disappears in both")
        total = np.sum(kept, axis=0)
        return {words: total == n for words, n in zip(names, (2, 1, 0), strict=True)}
    if name in MERGES:
        known = np.sum([experiment.match(parent, name).known for parent in PARENTS], axis=0)
        names = ("in both parents", "in one parent", "in neither parent")
        return {words: known == n for words, n in zip(names, (2, 1, 0), strict=True)}
    known = experiment.match(BASE, name).known
    return {"also in the base": known, "emerges": ~known} if count else {}


def _strongest(active: Float[np.ndarray, "windows length"], texts: np.ndarray, count: int) -> list[list[str]]:
    """The windows with the largest activations: characters, and for each a digit of its activation."""
    found = []
    for row in np.argsort(-active.max(1))[:count]:
        place = int(active[row].argmax())
        part = slice(max(0, place - BEFORE), place + BEHIND)
        digits = np.minimum(9, np.ceil(9 * active[row][part] / active.max())).astype(int)  # rounding may be above
        characters = "".join(ALPHABET[k] for k in texts[row][part])
        found.append([characters, "".join(map(str, digits))])
    return found
