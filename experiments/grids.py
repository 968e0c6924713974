"""How each method is built for several models, and the values that validation chooses its hyper-parameters from."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import npmerge as nm
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.catalogue import asks
from npmerge.linear import constant

SCALES = tuple(round(0.2 * k, 1) for k in range(1, 11))
TENTHS = tuple(k / 10 for k in range(11))

OURS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "Breadcrumbs": {"scale": SCALES, "density": (0.7, 0.8, 0.9)},
    "ConsensusTA": {"scale": SCALES},
    "Della": {"scale": SCALES, "density": (0.3, 0.5, 0.7)},
    "IsoC": {"scale": SCALES},
    "IsoCTS": {"scale": SCALES},
    "Pcb": {"scale": SCALES, "density": (0.05, 0.1, 0.2)},
    "RegMeanPlusPlus": {"scale": TENTHS},
    "Sce": {"scale": SCALES, "density": (0.1, 0.3, 0.5, 1.0)},
    "TallMasks": {"scale": SCALES},
    "TsvM": {"scale": SCALES},
}
"""For hyper-parameters whose fields declare no published grid; of most of these papers do not say where they search."""


class Choice(NamedTuple):
    """The fields of lowest loss, that loss, and how many merges were judged."""

    fields: dict[str, Any]
    loss: float
    tried: int


class Way(NamedTuple):
    """How a method is built from its fields, and the values that each of them is chosen from."""

    make: Callable[..., nm.Merge]
    grids: Mapping[str, Sequence[Any]]

    def needs(self) -> tuple[type, ...]:
        """The statistics of all that may be chosen."""
        merges = [self.make(), *(self.make(**{name: v}) for name, values in self.grids.items() for v in values)]
        return tuple(dict.fromkeys(kind for merge in merges for kind in merge.needs))

    def tuned(self, judge: Callable[[nm.Merge], float]) -> Choice:
        """Choose the fields: one after another, the others as they are, twice around, from the defaults.

        Values that a method refuses beside the others are passed over.

        Raises:
            ValueError: what the method says if it refuses all of them; if no merge has a finite loss.
        """
        seen: dict[tuple, float] = {}
        problems: list[ValueError] = []

        def loss(fields: dict[str, Any]) -> float:
            key = tuple(sorted(fields.items()))
            if key not in seen:
                try:
                    seen[key] = judge(self.make(**fields))
                except ValueError as error:
                    problems.append(error)
                    seen[key] = math.inf
            return seen[key]

        chosen: dict[str, Any] = {}
        for name, values in [*self.grids.items()] * 2:
            chosen = min(({**chosen, name: v} for v in values), key=loss)
        if loss(chosen) == math.inf:
            raise problems[0] if problems else ValueError(f"none of {len(seen)} merges has a finite loss")
        return Choice(chosen, loss(chosen), len(seen))


def way_of(method: type[nm.Merge], models: int, offered: Mapping[str, Any]) -> Way:
    """For so many models: methods that take one or two are made to take all.

    Args:
        method: one of METHODS.
        models: how many are merged.
        offered: what fields of these names are set to, where the method has no default for them: such as a `score`.
    """
    hyper = asks(method).hyper
    make = functools.partial(method, **{h.name: offered[h.name] for h in hyper if h.required and h.name in offered})
    if method is nm.WeightedAverage:
        return Way(lambda weights=(1.0,) * models: method(weights), {"weights": simplex(models)})
    if method.models == (1, 1):
        return Way(lambda model=0: Only(model), {"model": tuple(range(models))})
    published = {h.name: h.grid or h.choices for h in hyper if h.grid or h.choices}
    grids = {**OURS.get(method.__name__, {}), **published}
    if method.models == (2, 2) and issubclass(method, nm.LinearMerge):
        pair = functools.partial(_in_turn, method)
        return Way(pair, {name: values for name, values in grids.items() if name != "t"})
    return Way(make, grids)


def simplex(models: int) -> tuple[tuple[float, ...], ...]:
    """Weights of so many models in tenths, equal ones first."""
    tenths = itertools.product(range(11), repeat=models)
    return ((1.0,) * models, *(tuple(k / 10 for k in each) for each in tenths if sum(each) == 10))


@dataclass(frozen=True)
class Only(nm.LinearMerge):
    """One of several models, as it is: `Passthrough` of a stack that holds it alone."""

    model: int

    def init(self, stack: nm.Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """One for this model and zero for the others."""
        return constant(stack, np.eye(stack.size)[self.model])


@dataclass(frozen=True)
class InTurn(nm.LinearMerge):
    """A merge of two models for several: of the first two, of what came of it and the third, and so on.

    Methods that weigh the two give all models an equal share: t = 1 / k for the k-th.
    """

    merge: nm.LinearMerge

    @property
    def needs_base(self) -> bool:  # type: ignore[override]
        """Whether the merge of two does."""
        return self.merge.needs_base

    def init(self, stack: nm.Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The coefficients of all turns multiplied out: a linear merge of linear merges is linear."""
        merged, *others = stack.models()
        total = jax.tree.map(lambda x: jnp.ones((1,) * (x.ndim + 1), jnp.float32), merged)
        for k, model in enumerate(others, 1):
            pair = nm.stack_models([merged, model], stack.base)
            turn = self._weighing(k).init(pair, stats=stats, key=key)
            total = jax.tree.map(_joined, total, turn)
            merged = self.merge.apply(turn, pair)
        return total

    def _weighing(self, before: int) -> nm.LinearMerge:
        if isinstance(self.merge, nm.Slerp):
            return dataclasses.replace(self.merge, t=1 / (before + 1))
        if isinstance(self.merge, nm.NuSlerp):
            return dataclasses.replace(self.merge, weights=(before, 1.0))
        return self.merge


def _in_turn(method: type[nm.LinearMerge], **fields: Any) -> InTurn:
    return InTurn(method(**fields))


def _joined(total: Array, turn: Array) -> Array:
    """The coefficients so far times the share of what they made, and that of the new model."""
    before = total * turn[:1]
    return jnp.concatenate([before, jnp.broadcast_to(turn[1:], (1, *before.shape[1:]))])
