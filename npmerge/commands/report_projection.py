"""What each model contributes where a method decides from the values: the coefficients that explain the result best."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64

from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands.report_weights import groups_of, short
from npmerge.commands.values import blocks, each_tensor, values_of

Gram = Float64[np.ndarray, "models+1 models+1"]


def projected(merged: StoredModel, models: Mapping[str, StoredModel], base: StoredModel | None) -> dict[str, Any]:
    """For each layer the c_m that minimise |p - base - sum_m c_m (p_m - base)|^2, where p are its weights in the result.

    Args:
        merged: the result.
        models: by name, with tensors of its names.
        base: what differences are from; None for the weights themselves.

    Returns:
        Coefficients by layer, and the fraction of the squared norm that they explain. Layers that are the base's have none.
    """
    every = [*models.values(), merged, *([] if base is None else [base])]
    shared = [
        x for name, x in merged.entries.items() if all(name in m.entries and m.entries[name].shape == x.shape for m in every)
    ]
    grams = each_tensor(functools.partial(_gram, every, base is not None), shared, lambda _: None)
    of, sums = groups_of(list(merged.entries)), dict[str, Gram]()
    for entry, gram in zip(shared, grams, strict=True):
        sums[of[entry.name]] = sums.get(of[entry.name], 0) + gram
    layers = [name for name in dict.fromkeys(of.values()) if name in sums]
    found = {short(name): _solved(sums[name]) for name in layers}
    return {
        "kind": "projected",
        "models": list(models),
        "modules": {name: c.tolist() for name, (c, _) in found.items()},
        "explained": {name: part for name, (_, part) in found.items()},
    }


def _gram(every: list[StoredModel], based: bool, entry: Entry) -> Gram:
    """Inner products of one tensor's deltas, block by block in float64; the result's are the last."""
    size = len(every) - based
    total = np.zeros((size, size))
    for pieces in zip(*(blocks(model, entry.name) for model in every), strict=True):
        rows = np.nan_to_num(np.stack([values_of(x).wide for x in pieces]), nan=0.0, posinf=0.0, neginf=0.0)
        deltas = rows[:-1] - rows[-1] if based else rows
        total += np.einsum("ik,jk->ij", deltas, deltas)  # not `@`, whose threads wait for each other
    return total


def _solved(gram: Gram) -> tuple[Float64[np.ndarray, " models"], float]:
    """The coefficients, and the fraction of the result's squared norm that they explain; NaN where there is nothing."""
    inner, target, whole = gram[:-1, :-1], gram[:-1, -1], gram[-1, -1]
    if whole == 0:
        return np.full(len(target), np.nan), 1.0
    found = np.linalg.lstsq(inner, target, rcond=1e-12)[0]
    left = whole - 2 * found @ target + found @ inner @ found
    return found, float(np.clip(1 - left / whole, 0, 1))
