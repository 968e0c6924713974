"""Numbers in a network's code that stand for widths: the units that a mean divides by, the root in an RMSNorm.

A jaxpr holds 16 where the code said `x.shape[-1]`, and 4 where it said the root of it. Such a number is recognised by what it
meets. What was summed over n units grows as a power of n (a sum as n, a norm as its root): a number that is a form of n and
undoes that is the number of units, and follows. So does one that looks like nothing else (a root or a logarithm that is no
whole number). Every other number that equals a form of a width, and meets features with that width, what was contracted
over it, or a mean over it, stays with a warning: so it suits variables that `transport` moved, which undo in the weights
what changes in the features, while a network built at that width would have another number.

The scale of attention, the root of what queries and keys have in common, is one of those that stay, without a warning:
`transport` leaves the products of queries and keys as they are, so their scale must stay, too.
"""

import collections
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from alignment.resizing.counts import Powers, raised, summed
from alignment.resizing.sizes import Extent, Sizes
from alignment.resizing.values import Doubt, Equation, Known, Trail
from alignment.tracing.provenance import in_activation, source_line

COMPARES = {"add", "sub", "max", "min", "pow", "rem", "gt", "ge", "lt", "le"}
ATTENTION = {1 / 2, 1 / 4}
MOST_AXES = 4  # whose lengths one number may be the product of: those of a batch of images


class Form(NamedTuple):
    """A function of a width n, written with it, and the power of n that it grows as."""

    text: str
    power: float | None
    of: Callable[[float], float]


FORMS = (
    Form("{}", 1, lambda n: n),
    Form("sqrt({})", 1 / 2, math.sqrt),
    Form("{} ** 0.25", 1 / 4, lambda n: n**0.25),
    Form("log({})", None, math.log),
)
ONE_LESS = (Form("{} - 1", 1, lambda n: n - 1), Form("sqrt({} - 1)", 1 / 2, lambda n: math.sqrt(n - 1)))


class Match(NamedTuple):
    """A number read as a form of the lengths of some axes: its power (negative for one over it), and what it would be now."""

    text: str
    power: float | None
    extents: tuple[Extent, ...]
    new: float
    plain: bool  # a whole number, or one over it, which may mean anything

    @property
    def powers(self) -> dict[Extent, float | None]:
        """How the number grows with these lengths."""
        several = collections.Counter(self.extents)
        return {extent: None if self.power is None else self.power * n for extent, n in several.items()}


class Numbers:
    """The numbers of one program, while it is evaluated at other widths.

    Attributes:
        where: the source of the equation at hand.
        hidden: whether that is inside a function of a library, whose own constants (of a GELU) are no widths.
    """

    def __init__(self, sizes: Sizes):
        self.sizes, self.hidden = sizes, False
        self.where: Any = None
        self._messages: list[str] = []  # of the numbers that stay, by their places
        self._settled: set[int] = set()  # the places of those that are known to be right

    def followed(self, e: Equation) -> list[Known]:
        """The operands of an equation, numbers that stand for a width changed to the new one."""
        ins, name = list(e.ins), e.eqn.primitive.name
        if len(ins) != 2 or name not in {"mul", "div", "dot_general"} | COMPARES:
            return ins
        for k, other in ((0, 1), (1, 0)):
            number, x = ins[k].value.constant, e.ins[other]
            if number is not None and x.value.constant is None:
                ins[k] = self._met(e, k, number, x)
        return ins

    def settled(self, e: Equation, made: list[Any], trail: Trail) -> list[Any]:
        """The results, where numbers that features were multiplied by turn out to be of a mean or of attention."""
        doubts = frozenset().union(*(known.trail.doubts for known in e.ins))
        self._settled |= {x.place for x in doubts if x.extent in trail.paired and abs(x.power or 0) in ATTENTION}
        counted = summed(e) if doubts else {}
        means = {
            x.place: x.factor for x in doubts if counted.get(x.extent) == 1 and x.power == -1 and x.place not in self._settled
        }
        self._settled |= means.keys()
        factor = math.prod(means.values())
        return [x * jnp.asarray(factor, x.dtype) for x in made] if means else made

    def warn(self) -> None:
        """Tell of the numbers that stay though they may stand for widths."""
        for message in dict.fromkeys(m for place, m in enumerate(self._messages) if place not in self._settled):
            warnings.warn(message, stacklevel=2)

    def _met(self, e: Equation, k: int, number: float, x: Known) -> Known:
        """The number that is operand `k` of an equation with x."""
        name, dtype = e.eqn.primitive.name, e.eqn.invars[k].aval.dtype  # type: ignore[attr-defined]
        tolerance = max(1e-6, float(jnp.finfo(dtype).eps)) if jnp.issubdtype(dtype, jnp.inexact) else 1e-6
        enters = 0 if name in COMPARES else -1 if (name, k) == ("div", 1) else 1
        powers = {**x.trail.powers, **summed(e)} if name == "dot_general" else x.trail.powers
        powers = raised(powers, -1) if (name, k) == ("div", 0) else powers
        found = [m for forms in (FORMS, ONE_LESS) for m in _matches(number, _factors(powers), tolerance, forms)]
        follows = [m for m in found if _undoes(m, enters, powers)] or [m for m in found if not m.plain]
        if follows and (abs(number) != 1 or name == "div"):
            match = follows[0]
            array = jnp.full(np.shape(e.ins[k].array), math.copysign(match.new, number), dtype)
            return Known(array, e.ins[k].value, Trail(match.powers))
        own = self.hidden or in_activation(self.where)
        if enters and not found and name != "dot_general" and not own:
            found = self._met_features(x, number, tolerance)
        changed = [m for m in found if any(extent.old != extent.new for extent in m.extents)]
        if not changed or abs(number) == 1 or (not enters and abs(number) < 1):
            return e.ins[k]
        place = len(self._messages)
        self._messages.append(_message(number, changed[0], source_line(self.where)))
        return replace(e.ins[k], trail=Trail(doubts=frozenset(_doubt(place, number, enters, m) for m in found)))

    def _met_features(self, x: Known, number: float, tolerance: float) -> list[Match]:
        """The widths that a number may stand for which x has, was contracted along or is a mean over."""
        if x.trail.paired:  # attention: any number is the scale of it
            found = list(_matches(number, _each(x.trail.paired), tolerance))
            return [] if any(abs(m.power or 0) in ATTENTION for m in found) else found
        own = [extent for axis in zip(x.value.axes, x.value.shape, strict=True) for extent in self.sizes.extents(*axis)]
        return list(_matches(number, _each([*own, *x.trail.powers, *x.trail.weighted]), tolerance))


def _each(extents: Iterable[Extent]) -> list[tuple[Extent, ...]]:
    return [(extent,) for extent in dict.fromkeys(extents)]


def _factors(powers: Powers) -> list[tuple[Extent, ...]]:
    """The lengths whose product a number may stand for: of axes that were summed over, some of them more than once."""
    several = [extent for extent, p in powers.items() if p != 0 for _ in range(math.ceil(2 * abs(p or 0.5)))]
    return list(dict.fromkeys(itertools.chain(*(itertools.combinations(several, r + 1) for r in range(MOST_AXES)))))


def _matches(
    number: float, products: Iterable[tuple[Extent, ...]], tolerance: float, forms: Sequence[Form] = FORMS
) -> Iterator[Match]:
    """The forms of these products of lengths that a number is equal to."""
    size = abs(number)
    for extents in products:
        old, new = (math.prod(getattr(extent, side) for extent in extents) for side in ("old", "new"))
        for form in forms if old > 1 and new > 0 else ():
            then, now = float(form.of(old)), float(form.of(new))
            if math.isclose(size, then, rel_tol=tolerance):
                yield Match(form.text.format(old), form.power, extents, now, then.is_integer())
            elif math.isclose(size * then, 1, rel_tol=tolerance) and now:
                power = None if form.power is None else -form.power
                yield Match(f"1 / ({form.text.format(old)})", power, extents, 1 / now, then.is_integer())


def _undoes(match: Match, enters: int, powers: Powers) -> bool:
    """Whether what was summed no longer grows with these lengths once the number is applied, or was summed once less."""
    if not enters or match.power is None:
        return False
    for extent, power in match.powers.items():
        before = powers[extent]
        if before is None or power is None:
            return False
        after = before + enters * power
        if after != 0 and not (abs(match.power) == 1 and abs(after) >= 1 and after * before > 0):
            return False
    return True


def _doubt(place: int, number: float, enters: int, match: Match) -> Doubt:
    power = None if match.power is None else enters * match.power
    return Doubt(place, match.extents[0], power, (match.new / abs(number)) ** enters)


def _message(number: float, match: Match, line: str) -> str:
    extent = next(extent for extent in match.extents if extent.old != extent.new)
    nodes = " and ".join(map(repr, extent.nodes))
    return (
        f"the number {number:g} at {line or 'an unknown line'} equals {match.text}, and {nodes} "
        f"now has {extent.new} units instead of {extent.old} there: it stays as it is, as suits variables that "
        f"`transport` moved; a network built with these widths would have {math.copysign(match.new, number):g}"
    )
