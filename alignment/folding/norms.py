"""Finding layer norms in a program, however they are written: by following what is known of moments along one axis.

With x an array and sums over one of its axes, of n features, an expression is recognised as one of
    sum        c sum(x)               square    x^2 or (x - mean)^2       centred   x - mean
    moment     c sum(x^2) + eps, c sum((x - mean)^2) + eps, or the latter as c sum(x^2) - (c sum(x))^2
    root       c sqrt(moment)         inverse   c / sqrt(moment), times vectors made of variables
and a norm is the product of x or x - mean with the inverse of its own moment.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from alignment.folding.carriers import CASTS, LAYOUT, Facts, origins
from alignment.program import Step


@dataclass(frozen=True)
class Affine:
    """A step that multiplies features by a vector of variables or adds one: features lie on `axis` of the vector's array."""

    name: str
    vector: int
    axis: int
    out: int
    rest: int  # what the step makes its result of, beside the vector


@dataclass(frozen=True)
class Moment:
    """What is known of a value: a function of `x`, summed over `axis`. `axes` says which axis of x each of its own axes is."""

    kind: Literal["sum", "squared sum", "square", "centred", "moment", "root", "inverse"]
    x: int
    axis: int
    axes: tuple[int | None, ...]
    factor: float = 1.0
    centred: bool = False
    affine: tuple[Affine, ...] = ()


@dataclass(frozen=True)
class Norm:
    """`out` = (x - mean) / sqrt(moment), or x / sqrt(moment), over `axis`, after `affine`; it is made by step number `step`."""

    x: int
    axis: int
    out: int
    step: int
    centred: bool
    affine: tuple[Affine, ...]


@dataclass(eq=False)
class Moments:
    """One pass over a program.

    Attributes:
        facts: about the program.
        means: the arrays and axes whose means count; None for all. A mean over positions is a part of the stream.
        known: what each value is.
        norms: the norms in order.
        same: values that are another one, cast or with zero added.
    """

    facts: Facts
    means: frozenset[tuple[int, int]] | None = None
    known: dict[int, Moment] = field(default_factory=dict)
    norms: list[Norm] = field(default_factory=list)
    same: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, step in enumerate(self.facts.program.steps):
            if len(step.outs) == 1:
                self._step(number, step)

    def root(self, value: int) -> int:
        """The value that this one only casts."""
        return self.same.get(value, value)

    def _step(self, number: int, step: Step) -> None:
        out = step.outs[0]
        if (k := self._identity(step)) is not None:
            self.same[out] = self.root(step.ins[k])
            if step.ins[k] in self.known:
                self.known[out] = self.known[step.ins[k]]
        elif (moment := self._moment(step)) is not None:
            self.known[out] = moment
        elif (norm := self._norm(number, step)) is not None:
            self.norms.append(norm)

    def _identity(self, step: Step) -> int | None:
        """The operand that a step hands on as it is."""
        constant = [self.facts.constant.get(v) for v in step.ins]
        shapes = [self.facts.program.shape(v) for v in (*step.ins, step.outs[0])]
        match step.name:
            case name if name in CASTS:
                return 0
            case "select_n" if constant[0] is not None:
                return 1 + int(constant[0])
            case "add" | "sub" | "mul" | "div" if len(step.ins) == 2:
                neutral = 0.0 if step.name in ("add", "sub") else 1.0
                return 0 if constant[1] == neutral and shapes[0] == shapes[2] else None
        return None

    def _moment(self, step: Step) -> Moment | None:
        moments = [self.known.get(v) for v in step.ins]
        constants = [self.facts.constant.get(v) for v in step.ins]
        for rule in (self._view, self._raised, self._reduced, self._shifted, _scaled, self._inverse):
            if (moment := rule(step, moments, constants)) is not None:
                return moment
        return None

    def _view(self, step: Step, moments: list, constants: list) -> Moment | None:
        """The same in another layout."""
        moment = moments[0] if step.name in LAYOUT else None
        if moment is None:
            return None
        out = range(len(self.facts.program.shape(step.outs[0])))
        places = [origins(self.facts.program, step, d).get(0) for d in out]
        axes = tuple(None if a is None else moment.axes[a] for a in places)
        kept = {a for a, n in zip(moment.axes, self.facts.program.shape(step.ins[0]), strict=True) if a is not None and n > 1}
        return replace(moment, axes=axes) if kept <= set(axes) else None

    def _raised(self, step: Step, moments: list, constants: list) -> Moment | None:
        """Squares."""
        squares = step.name == "square" or (step.name == "integer_pow" and step.params["y"] == 2)
        if not squares and not (step.name == "mul" and step.ins[0] == step.ins[1]):
            return None
        m = moments[0]
        if m is None:
            return Moment("square", self.root(step.ins[0]), -1, self._identical(step.ins[0]))
        if m.kind == "centred":
            return replace(m, kind="square", centred=True)
        return replace(m, kind="squared sum", factor=m.factor**2) if m.kind == "sum" else None

    def _identical(self, value: int) -> tuple[int, ...]:
        return tuple(range(len(self.facts.program.shape(value))))

    def _reduced(self, step: Step, moments: list, constants: list) -> Moment | None:
        """Sums over one axis."""
        if step.name != "reduce_sum" or len(step.params["axes"]) != 1:
            return None
        m, axis = moments[0], int(step.params["axes"][0])
        every = self._identical(step.ins[0])
        axes = tuple(a for a in every if a != axis)
        if m is None or m.kind == "sum":
            x = self.root(step.ins[0])
            return Moment("sum", x, axis, axes) if self.means is None or (x, axis) in self.means else None
        fits = m.kind == "square" and m.axes == every and m.axis in (-1, axis)
        return replace(m, kind="moment", axis=axis, axes=axes) if fits else None

    def _shifted(self, step: Step, moments: list, constants: list) -> Moment | None:
        """Differences from means, epsilon and guards against negative variances."""
        if step.name not in ("add", "sub", "max") or len(step.ins) != 2:
            return None
        m, c = (moments[0], constants[1]) if step.name == "sub" or constants[1] is not None else (moments[1], constants[0])
        if c is not None:
            fits = m is not None and m.kind == "moment" and c >= 0 and step.name != "sub"
            return m if fits else None
        if step.name != "sub" or (s := moments[1]) is None:
            return None
        n = self.facts.program.shape(s.x)[s.axis]
        if (
            s.kind == "sum"
            and s.x == self.root(step.ins[0])
            and self._lies(s, step)
            and math.isclose(s.factor * n, 1, rel_tol=1e-6)
        ):
            return Moment("centred", s.x, s.axis, self._identical(s.x), centred=True)
        variance = m is not None and m.kind == "moment" and s.kind == "squared sum" and not m.centred
        if variance and (m.x, m.axis, m.axes) == (s.x, s.axis, s.axes):
            exact = math.isclose(m.factor * n, 1, rel_tol=1e-6) and math.isclose(s.factor * n * n, 1, rel_tol=1e-6)
            return replace(m, centred=True) if exact else None
        return None

    def _lies(self, m: Moment, step: Step) -> bool:
        """The axes of a moment meet their own axes of x in a step between both."""
        shape = self.facts.program.shape(m.x)
        fits = all(a == d or (a is None and (d == m.axis or shape[d] == 1)) for d, a in enumerate(m.axes))
        return fits and len(m.axes) == len(shape) == len(self.facts.program.shape(step.outs[0]))

    def _inverse(self, step: Step, moments: list, constants: list) -> Moment | None:
        """Roots, and products with vectors of variables."""
        m = moments[0] if moments else None
        if m is not None and m.kind == "moment":
            power = step.params.get("y") if step.name == "integer_pow" else (constants[1] if step.name == "pow" else None)
            if step.name == "sqrt" or power == 0.5:
                return replace(m, kind="root")
            if step.name == "rsqrt" or power == -0.5:
                return replace(m, kind="inverse")
        if step.name == "div" and constants[0] is not None and moments[1] is not None and moments[1].kind == "root":
            return replace(moments[1], kind="inverse")
        if step.name == "mul":
            for k, m in enumerate(moments):
                vector = step.ins[1 - k]
                if m is not None and m.kind == "inverse" and self._lies(m, step) and self.facts.vector(vector, m.axis):
                    return replace(m, affine=(*m.affine, Affine("mul", vector, m.axis, step.outs[0], step.ins[k])))
        return None

    def _norm(self, number: int, step: Step) -> Norm | None:
        if step.name not in ("mul", "div") or len(step.ins) != 2:
            return None
        for k in (0, 1) if step.name == "mul" else (0,):
            m, x = self.known.get(step.ins[1 - k]), self.known.get(step.ins[k])
            if m is None or m.kind != ("inverse" if step.name == "mul" else "root") or not self._lies(m, step):
                continue
            centred = x is not None and x.kind == "centred" and (x.x, x.axis) == (m.x, m.axis) and m.centred
            if centred or (self.root(step.ins[k]) == m.x and not m.centred):
                return Norm(m.x, m.axis, step.outs[0], number, m.centred, m.affine)
        return None


def _scaled(step: Step, moments: list, constants: list) -> Moment | None:
    """Products with numbers."""
    if step.name not in ("mul", "div") or len(step.ins) != 2:
        return None
    for k, m in enumerate(moments):
        c = constants[1 - k]
        if m is not None and c and m.kind in ("sum", "moment", "root", "inverse") and (step.name == "mul" or k == 0):
            return replace(m, factor=m.factor * (c if step.name == "mul" else 1 / c))
    return None


def moments(facts: Facts) -> Moments:
    """All norms of a program, and all moments that belong to one."""
    first = Moments(facts)
    return Moments(facts, frozenset((m.x, m.axis) for m in first.known.values() if m.kind == "centred"))
