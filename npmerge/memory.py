"""Bytes that a computation holds at once, predicted from shapes before anything runs."""

import math
import os
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from alignment.graph import PyTree


def bytes_of(tree: PyTree) -> int:
    """The bytes of the arrays of a tree, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def machine_bytes() -> int | None:
    """What the first device holds, as accelerators say; of a CPU the memory of the machine; None where neither is told."""
    if limit := (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"):
        return limit
    names = ("SC_PHYS_PAGES", "SC_PAGE_SIZE")
    return math.prod(map(os.sysconf, names)) if set(names) <= set(getattr(os, "sysconf_names", ())) else None


def peak_bytes(jaxpr: Jaxpr) -> int:
    """The most bytes that the values of a jaxpr hold together, evaluated as written: each is kept until it is last read.

    The body of a loop counts once. XLA fuses operations and so needs less, as a rule.
    """
    last: dict[Any, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        last.update({v: index for v in eqn.invars if not isinstance(v, Literal)})
    last.update({v: len(jaxpr.eqns) for v in jaxpr.outvars if not isinstance(v, Literal)})
    arguments = [*jaxpr.constvars, *jaxpr.invars]
    last.update({v: len(jaxpr.eqns) for v in arguments})  # whoever calls holds these
    alive = {v: _bytes(v) for v in arguments}
    held = peak = sum(alive.values())
    for index, eqn in enumerate(jaxpr.eqns):
        made = {v: _bytes(v) for v in eqn.outvars}
        inside = max((_inside(p) for p in eqn.params.values()), default=0)
        peak = max(peak, held + sum(made.values()) + inside)
        alive.update(made)
        gone = [v for v in alive if last.get(v, -1) <= index]
        held += sum(made.values()) - sum(alive.pop(v) for v in gone)
    return peak


def _inside(parameter: Any) -> int:
    """What a nested call or the body of a loop holds besides its arguments."""
    if isinstance(parameter, tuple | list):
        return max((_inside(p) for p in parameter), default=0)
    jaxpr = parameter.jaxpr if isinstance(parameter, ClosedJaxpr) else parameter
    if not isinstance(jaxpr, Jaxpr):
        return 0
    return peak_bytes(jaxpr) - sum(map(_bytes, [*jaxpr.constvars, *jaxpr.invars]))


def _bytes(v: Any) -> int:
    aval = v.aval
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)
