"""Loops and branches: `scan`, `while` and `cond`, entered with the values of their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jax.extend.core import ClosedJaxpr, JaxprEqn

from alignment.primitives import Value
from alignment.primitives.registry import STEP, concrete, restrict
from alignment.unification.terms import UNIT, Group, Term

if TYPE_CHECKING:
    from alignment.tracing.trace import Walk


def scan(walk: Walk, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
    """One step stands for all: what is carried has one map, what is stacked may have another in each step.

    The axis of the steps stands unseen in every expression of the body but not in the carry, so it is the index of the
    nodes inside the step (`alignment.unification.families`).
    """
    terms, first, last = walk.terms, eqn.params["num_consts"], eqn.params["num_consts"] + eqn.params["num_carry"]
    consts, carry, stacked = ins[:first], _carried(walk, ins[first:last], ins), ins[last:]
    steps = terms.fresh(eqn.params["length"], pin="steps of a loop are in order")
    for value in stacked:
        if value.axes[0] is not None:
            terms.unify(value.axes[0], steps)
    around, terms.loops = terms.loops, (*terms.loops, steps)
    outs = walk.call(eqn.params["jaxpr"], [*consts, *carry, *(_step(v, len(around)) for v in stacked)], location)
    terms.loops = around
    _tie_carry(walk, carry, outs[: len(carry)])
    made = [replace(v, shape=(eqn.params["length"], *v.shape), axes=(steps, *v.axes), source=None) for v in outs[len(carry) :]]
    made = [replace(v, axes=tuple(None if t == UNIT else t for t in v.axes)) for v in made]
    for value in made:
        walk.settle(value)
        terms.together(value.axes)
    return [*carry, *made]


def while_loop(walk: Walk, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
    """What is carried keeps its map from step to step."""
    p = eqn.params
    first, last = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    carry = _carried(walk, ins[last:], ins)
    _hidden_call(walk, p["cond_jaxpr"], [*ins[:first], *carry], (*location, 0))
    _tie_carry(walk, carry, _hidden_call(walk, p["body_jaxpr"], [*ins[first:last], *carry], (*location, 1)))
    return carry


def cond(walk: Walk, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
    """The results of all branches transform alike."""
    which, *operands = ins
    branches = [_hidden_call(walk, b, operands, (*location, k)) for k, b in enumerate(eqn.params["branches"])]
    outs = []
    for results in zip(*branches, strict=True):
        merged = results[0]
        for other in results[1:]:
            axes = tuple(tied(walk, merged, other, d) for d in range(len(merged.axes)))
            merged = replace(merged, axes=axes, constant=merged.constant if merged.constant == other.constant else None)
        outs.append(Value(merged.shape, merged.axes, data=any(v.data for v in (which, *results))))
        walk.terms.together(merged.axes)
    return outs


CONTROL_FLOW: dict[str, Callable[[Walk, JaxprEqn, list[Value], tuple[int, ...]], list[Value]]] = {
    "scan": scan,
    "while": while_loop,
    "cond": cond,
}


def _hidden_call(walk: Walk, jaxpr: ClosedJaxpr, args: Sequence[Value], location: tuple[int, ...]) -> list[Value]:
    """A call whose inside cannot be tapped: it runs a number of times that is not known beforehand, or not at all."""
    walk.hidden += 1
    outs = walk.call(jaxpr, args, location)
    walk.hidden -= 1
    for value in outs:
        walk.settle(value)
    return outs


def _carried(walk: Walk, carry: Sequence[Value], ins: Sequence[Value]) -> list[Value]:
    """The values of a carry inside its loop: constant only to begin with."""
    data = any(v.data for v in ins)
    values = []
    for value in carry:
        axes = tuple(None if n == 1 else concrete(walk.terms, value, d) for d, n in enumerate(value.shape))
        walk.terms.together(axes)
        values.append(Value(value.shape, axes, data))
    return values


def _tie_carry(walk: Walk, before: Sequence[Value], after: Sequence[Value]) -> None:
    for old, new in zip(before, after, strict=True):
        walk.settle(new)
        for d in range(len(old.axes)):
            tied(walk, old, new, d)


def tied(walk: Walk, a: Value, b: Value, d: int) -> Term | None:
    """One axis of two arrays of which either may stand in the same place."""
    x, y = a.axes[d], b.axes[d]
    if x is not None and y is not None:
        walk.terms.unify(x, y)
    elif not (a.zero if x is None else b.zero):
        restrict(walk.terms, y if x is None else x, Group.PERMUTATION)
    return y if x is None else x


def _step(stacked: Value, depth: int) -> Value:
    """What one step sees of a stacked array."""
    source = stacked.source and stacked.source.then((STEP, depth))
    return replace(stacked, shape=stacked.shape[1:], axes=stacked.axes[1:], source=source)
