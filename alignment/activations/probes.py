"""A jaxpr evaluated with probes: what they read of its equations comes out beside the results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jaxtyping import Array

from alignment.program import evaluated, nested
from alignment.sites import Use

LOST = (
    "{} is not where it was traced: trace and what measures must get the same function (both jitted or both not), variables "
    "and inputs of the dtypes and numbers of axes that were traced: are these images of uint8, or half precision?"
)


class LostError(ValueError):
    """What was traced is not found where it was."""

    def __init__(self, what: str):
        super().__init__(LOST.format(what))


@dataclass(frozen=True)
class Probe:
    """What to read of one equation, and what to change there.

    Attributes:
        key: what it is found under.
        location: the equation, one number for each level of nested calls.
        result: whether one of its results is read, rather than an operand.
        number: which of them.
        arrange: what is made of it; for features (*index, samples, units).
        site: what the equation must be, if it is known.
        nudge: added to the result first; of loops around the equation one for each step.
    """

    key: tuple[str, ...]
    location: tuple[int, ...]
    result: bool
    number: int
    arrange: Callable[[Array], Array]
    site: Use | None = None
    nudge: Array | None = None

    def fits(self, eqn: JaxprEqn, ins: Sequence[Any]) -> bool:
        """Whether an equation can be that of the site."""
        site = self.site
        return site is None or (eqn.primitive.name == site.primitive and jnp.shape(ins[site.weight]) == site.shape)


def run_with(probes: Sequence[Probe], closed: ClosedJaxpr, args: list) -> tuple[list[Any], dict[tuple[str, ...], Array]]:
    """The results, and what the probes found, in one evaluation; loops around an equation are leading axes."""
    at: dict[tuple[int, ...], list[Probe]] = {}
    for probe in probes:
        at.setdefault(probe.location, []).append(probe)
    found: dict[tuple[str, ...], Array] = {}
    outs = _run(closed, args, (), at, found)
    for probe in probes:
        if probe.key not in found:
            raise LostError(repr(probe.key[0]))
    return outs, found


def _run(closed: ClosedJaxpr, args: Sequence[Any], prefix: tuple[int, ...], probes: Mapping, found: dict) -> list[Any]:
    """Evaluate a jaxpr, entering the calls that hold a probe and keeping what the probes ask for."""
    jaxpr: Jaxpr = closed.jaxpr
    env: dict[Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *args], strict=True))

    def read(v: Var | Literal) -> Any:
        return v.val if isinstance(v, Literal) else env[v]

    for index, eqn in enumerate(jaxpr.eqns):
        here = (*prefix, index)
        ins = [read(v) for v in eqn.invars]
        inside = any(location[: len(here)] == here and location != here for location in probes)
        if inside and (inner := nested(eqn)) is not None:
            outs = _run(inner, ins, here, probes, found)
        elif inside and eqn.primitive.name == "scan":
            outs = _scanned(eqn, ins, here, probes, found)
        else:
            outs = evaluated(eqn, jaxpr, *ins)
        if nudges := [probe.nudge for probe in probes.get(here, ()) if probe.nudge is not None]:
            outs = [outs[0] + nudges[0]]
        env.update(zip(eqn.outvars, outs, strict=True))
        for probe in probes.get(here, ()):
            values = outs if probe.result else ins
            if not probe.fits(eqn, ins):
                raise LostError(repr(probe.key[0]))
            try:
                found[probe.key] = probe.arrange(values[probe.number])
            except (TypeError, ValueError, IndexError, AttributeError) as error:
                raise LostError(repr(probe.key[0])) from error
    return [read(v) for v in jaxpr.outvars]


def _scanned(eqn: JaxprEqn, ins: list[Any], here: tuple[int, ...], probes: Mapping, found: dict) -> list[Any]:
    """A scan that also stacks what the probes in its body find."""
    p = eqn.params
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    inside = {location: several for location, several in probes.items() if location[: len(here)] == here}
    nudges = {probe.key: probe.nudge for several in inside.values() for probe in several if probe.nudge is not None}

    def body(carry: list, x: tuple[list, dict]) -> tuple[list, tuple[list, dict]]:
        inner: dict = {}
        here_now = {place: [replace(probe, nudge=x[1].get(probe.key)) for probe in ps] for place, ps in inside.items()}
        outs = _run(p["jaxpr"], [*ins[:first], *carry, *x[0]], here, here_now, inner)
        return outs[: len(carry)], (outs[len(carry) :], inner)

    carry, (stacked, inner) = jax.lax.scan(
        body, ins[first:last], (ins[last:], nudges), p["length"], reverse=p["reverse"], unroll=p["unroll"]
    )
    found.update(inner)
    return [*carry, *stacked]
