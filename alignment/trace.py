"""From any pure function to its symmetry graph: `trace` walks the jaxpr and applies one rule per equation."""

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from alignment.graph import (
    AxisLabel,
    Fixed,
    Graph,
    GroupName,
    Interval,
    Node,
    NodeAxis,
    Part,
    Pinned,
    Product,
    PyTree,
    Role,
    Segments,
    Tap,
    flatten,
)
from alignment.primitives import KEEPS_ZERO, RULES, UNSUPPORTED, Axes, Equation, Value, fixed, unsupported
from alignment.terms import Group, Prod, Ref, Seq, Term, Terms, refs

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2"}
GROUP_NAMES: dict[Group, GroupName] = {
    Group.PERMUTATION: "permutation",
    Group.SCALE: "scale",
    Group.ORTHOGONAL: "orthogonal",
    Group.LINEAR: "linear",
}


def trace(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> Graph:
    """Read the symmetry graph of `apply(variables, *inputs)` off its jaxpr.

    Works for any pure JAX function of a tree of arrays: plain JAX, Flax Linen, NNX split state. Nothing is computed and
    nothing about the architecture has to be said.

    Args:
        apply: the network in evaluation mode, a pure function.
        variables: its parameters and statistics, arrays or `jax.ShapeDtypeStruct`.
        inputs: example inputs, arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.

    Returns:
        The `Graph`: nodes with their groups, a label for every axis, what is held fixed and why, where to tap.

    Warns:
        UserWarning: once for each primitive without a rule whose operands could otherwise have moved.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    leaves = flatten(variables)
    walk = _Walk()
    params = [walk.parameter(path, leaf) for path, leaf in leaves.items()]
    shapes = [_shape(v) for v in closed.jaxpr.invars[len(params) :]]
    data = [Value(shape, fixed(walk.terms, shape, "input"), data=True) for shape in shapes]
    outputs = walk.call(closed.jaxpr, closed.consts, [*params, *data], ())
    for value in outputs:
        for term in value.axes:
            if term is not None:
                walk.terms.pin(term, "output")
    for name in walk.costly():
        warnings.warn(
            f"no rule for primitive {name!r}: the axes it touches are held fixed "
            f"(teach it with alignment.primitives.rule({name!r}))",
            stacklevel=2,
        )
    return _build(walk, dict(zip(leaves, params, strict=True)))


@dataclass(frozen=True)
class _Seen:
    """A value on the way from the inputs, and the equation that made it."""

    location: tuple[int, ...]
    output: int
    value: Value


class _Walk:
    """One pass over a jaxpr. Nested calls are entered with fresh variables: a cached jaxpr never ties two calls."""

    def __init__(self) -> None:
        self.terms = Terms()
        self.seen: list[_Seen] = []
        self.made: list[Value] = []  # every value, whether or not the inputs had a part in it
        self.unknown: dict[str, list[Term]] = {}
        self.used: dict[str, None] = {}  # paths of the variables in the order in which the network reads them
        self._paths: dict[int, str] = {}

    def parameter(self, path: str, leaf: PyTree) -> Value:
        dtype, shape = getattr(leaf, "dtype", None) or jnp.result_type(leaf), np.shape(leaf)
        if jnp.issubdtype(dtype, jnp.inexact):
            value = Value(shape, tuple(self.terms.fresh(n) for n in shape))
        else:
            value = Value(shape, fixed(self.terms, shape, f"{dtype} leaf"))
        self._paths[id(value)] = path
        return value

    def call(self, jaxpr: Jaxpr, consts: list, args: list[Value], prefix: tuple[int, ...]) -> list[Value]:
        env: dict[Var, Value] = dict(zip(jaxpr.invars, args, strict=True))
        for var in jaxpr.constvars:
            env[var] = Value(_shape(var), fixed(self.terms, _shape(var), "constant inside the function"))

        def read(v: Var | Literal) -> Value:
            if isinstance(v, Literal):
                return Value((), (), zero=bool(v.val == 0))  # literals are scalars
            return env[v]

        for index, eqn in enumerate(jaxpr.eqns):
            outs = self.equation(eqn, [read(v) for v in eqn.invars], (*prefix, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
        inner = nested(eqn)
        if inner is not None:
            return self.call(inner.jaxpr, inner.consts, ins, location)
        self.used.update((self._paths[id(v)], None) for v in ins if id(v) in self._paths)
        shapes = [_shape(v) for v in eqn.outvars]
        seen = Equation(eqn.primitive.name, eqn.params, ins, shapes)
        data = any(v.data for v in ins)
        zero = seen.name in KEEPS_ZERO and all(v.zero for v in ins)
        outs = [
            Value(shape, _without_units(shape, axes), data=data, zero=zero)
            for shape, axes in zip(shapes, self.apply_rule(seen), strict=True)
        ]
        self.made += outs
        for k, (value, var) in enumerate(zip(outs, eqn.outvars, strict=True)):
            if data and jnp.issubdtype(_dtype(var), jnp.floating):
                self.seen.append(_Seen(location, k, value))
        return outs

    def apply_rule(self, eqn: Equation) -> list[Axes]:
        known = RULES.get(eqn.name)
        if known is not None:
            return known(self.terms, eqn)
        self.unknown.setdefault(eqn.name, []).extend(t for v in eqn.ins for t in v.axes if t is not None)
        return unsupported(self.terms, eqn)

    def costly(self) -> list[str]:
        """The primitives without a rule that hold an axis which nothing else holds."""

        def held_by_them_alone(ref: Ref) -> bool:
            return all(reason.startswith(UNSUPPORTED) for reason in self.terms.pins(Ref(ref.atom)))

        found = {name: [r for t in terms for r in refs(self.terms.resolve(t))] for name, terms in self.unknown.items()}
        return [name for name, atoms in found.items() if any(map(held_by_them_alone, atoms))]


def nested(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a call that does nothing but run it (jit, custom derivatives, checkpoint), else None."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])


def _shape(v: Var) -> tuple[int, ...]:
    return tuple(getattr(v.aval, "shape", ()))  # tokens and other abstract values have none


def _dtype(v: Var) -> Any:
    return getattr(v.aval, "dtype", None)


def _without_units(shape: tuple[int, ...], axes: Axes) -> Axes:
    return tuple(None if n == 1 else t for n, t in zip(shape, axes, strict=True))


# --------------------------------------------------------------------------------------------- from terms to the graph


def _build(walk: _Walk, params: dict[str, Value]) -> Graph:
    terms = walk.terms
    axes = {path: [_resolved(terms, t) for t in value.axes] for path, value in params.items()}
    seen = [(s, [_resolved(terms, t) for t in s.value.axes]) for s in walk.seen]
    moved = {ref.atom for _, labels in seen for t in labels for ref in refs(t)}
    free = {a for labels in axes.values() for t in labels for a in (r.atom for r in refs(t)) if not terms.pins(Ref(a))}
    free &= moved  # a leaf that never meets the data has no symmetry worth the name

    every = [t for labels in axes.values() for t in labels] + [_resolved(terms, t) for v in walk.made for t in v.axes]
    joined = _join_twins(every, free, terms)
    signs = _signs(seen, axes)
    ordered = {path: axes[path] for path in [*walk.used, *axes]}
    names = _names(ordered, joined, signs)
    label = _Labeller(terms, joined, names, signs)

    order: dict[str, Node] = {}
    taps: dict[str, tuple[int, Tap]] = {}
    for item, labels in seen:
        for d, term in enumerate(labels):
            for name, size, intervals in _direct(label(term)):
                group = GROUP_NAMES[terms.group(label.atoms[name][0])]
                order.setdefault(name, Node(name, size, group))
                count = math.prod(item.value.shape) // item.value.shape[d]
                if count >= taps.get(name, (0,))[0]:  # the widest view of the node, the last of its kind
                    taps[name] = count, Tap(item.location, item.output, d, intervals)
    for name, atoms in label.atoms.items():  # nodes that only ever appear inside a product
        group = GROUP_NAMES[terms.group(atoms[0])]
        order.setdefault(name, Node(name, sum(terms.size(Ref(a)) for a in atoms), group))
    return Graph(
        nodes=order,
        axes={path: tuple(label(t) for t in labels) for path, labels in axes.items()},
        pinned=_pins(terms, axes, moved),
        taps={name: tap for name, (_, tap) in taps.items()},
        shapes={path: value.shape for path, value in params.items()},
    )


def _resolved(terms: Terms, term: Term | None) -> Term:
    return Prod(()) if term is None else terms.resolve(term)


def _sequences(term: Term) -> Iterator[Seq | Ref]:
    """Every sequence inside a term, and every atom that stands outside of one."""
    match term:
        case Seq(parts):
            yield term
            for part in parts:
                if not isinstance(part, Ref):
                    yield from _sequences(part)
        case Prod(factors):
            for factor in factors:
                yield from _sequences(factor)
        case Ref():
            yield term


def _join_twins(every: list[Term], free: set[int], terms: Terms) -> dict[int, tuple[int, ...]]:
    """Atoms that always stand in the same sequences, once each, are one node: both ends of a zero-padded shortcut.

    No operation tells such atoms apart, so their units may be exchanged with each other as well as among themselves.
    Returns, for each free atom, the tuple of atoms of its node.
    """
    contexts: dict[int, set] = {a: set() for a in free}
    for term in every:
        for item in _sequences(term):
            if isinstance(item, Ref):
                if item.atom in free:
                    contexts[item.atom].add(item.atom)  # stands alone: a context of its own
                continue
            direct = [p for p in item.parts if isinstance(p, Ref) and p.atom in free]
            for ref in direct:
                once = sum(p.atom == ref.atom for p in direct) == 1
                contexts[ref.atom].add((item, ref.variance) if once else (item, ref.atom))
    twins: dict[tuple, list[int]] = {}
    for atom in sorted(free):
        own = atom if terms.alone(atom) else None
        twins.setdefault((frozenset(contexts[atom]), terms.group(atom), own), []).append(atom)
    return {atom: tuple(group) for group in twins.values() for atom in group}


def _signs(seen: list, axes: dict[str, list[Term]]) -> dict[int, int]:
    """The variance that means "carries the features": the one an atom has where it first appears in the data."""
    signs: dict[int, int] = {}
    for labels in [*(labels for _, labels in seen), *axes.values()]:
        for term in labels:
            for ref in refs(term):
                signs.setdefault(ref.atom, ref.variance)
    return signs


def _names(
    axes: dict[str, list[Term]], joined: dict[int, tuple[int, ...]], signs: dict[int, int]
) -> dict[tuple[int, ...], str]:
    """A name for each node: the module (or leaf) whose weight first produces it, made unique."""
    makers: dict[tuple[int, ...], str] = {}
    for rank, role in ((2, True), (0, True), (0, False)):  # weights, then vectors, then consumers
        for path, labels in axes.items():
            for ref in (r for term in labels if len(labels) >= rank for r in refs(term)):
                if ref.atom in joined and (ref.variance == signs[ref.atom]) == role:
                    makers.setdefault(joined[ref.atom], path)
    parents = [re.sub(r"/[^/]*$", "", path) for path in makers.values()]
    short = [p if parents.count(p) == 1 else path for p, path in zip(parents, makers.values(), strict=True)]
    total = {name: short.count(name) for name in short}
    used: dict[str, int] = {}
    names: dict[tuple[int, ...], str] = {}
    for node, name in zip(makers, short, strict=True):
        k = used[name] = used.get(name, 0) + 1
        names[node] = name if total[name] == 1 else f"{name}#{k}"
    return names


class _Labeller:
    """Turns resolved terms into the labels of the graph."""

    def __init__(
        self, terms: Terms, joined: dict[int, tuple[int, ...]], names: dict[tuple[int, ...], str], signs: dict[int, int]
    ):
        self.terms, self.joined, self.names, self.signs = terms, joined, names, signs
        self.atoms = {name: node for node, name in names.items()}

    def __call__(self, term: Term) -> AxisLabel:
        match term:
            case Ref(atom):
                if atom not in self.joined or self.joined[atom] not in self.names:
                    return Fixed(self.terms.size(term))
                return NodeAxis(self.names[self.joined[atom]], self.terms.size(term), self.role(term))
            case Prod(factors):
                return self.product(factors)
            case Seq(parts):
                return self.segments(parts)

    def role(self, ref: Ref) -> Role:
        return "out" if ref.variance == self.signs[ref.atom] else "in"

    def product(self, factors: tuple[Term, ...]) -> AxisLabel:
        labels: list[AxisLabel] = []
        for factor in factors:
            label = self(factor)
            if isinstance(label, Fixed) and labels and isinstance(labels[-1], Fixed):
                label = Fixed(labels.pop().size * label.size)
            labels.append(label)
        return Product(tuple(labels)) if len(labels) > 1 else [*labels, Fixed(1)][0]

    def segments(self, parts: tuple[Term, ...]) -> AxisLabel:
        found: list[Part] = []
        shared: dict[str, tuple[AxisLabel, list[Interval]]] = {}
        start = 0
        for term in parts:
            here = (start, start + self.terms.size(term))
            start = here[1]
            label = self(term)
            twins = self.joined.get(term.atom, ()) if isinstance(term, Ref) else ()
            if isinstance(label, NodeAxis) and len(twins) > 1:
                shared.setdefault(label.node, (label, []))[1].append(here)
            else:
                found.append(Part(label, (here,)))
        for label, intervals in shared.values():
            assert isinstance(label, NodeAxis)
            whole = NodeAxis(label.node, sum(b - a for a, b in intervals), label.role)
            found.append(Part(whole, tuple(intervals)))
        if all(isinstance(p.label, Fixed) for p in found):
            return Fixed(start)
        return Segments(tuple(found))


def _direct(label: AxisLabel) -> Iterator[tuple[str, int, tuple[Interval, ...]]]:
    """The nodes whose units stand bare on an axis, with the intervals they fill."""
    match label:
        case NodeAxis(node, size, "out"):
            yield node, size, ((0, size),)
        case Segments(parts):
            for part in parts:
                if isinstance(part.label, NodeAxis) and part.label.role == "out":
                    yield part.label.node, part.label.size, part.intervals


def _pins(terms: Terms, axes: dict[str, list[Term]], moved: set[int]) -> tuple[Pinned, ...]:
    found = []
    for path, labels in axes.items():
        for d, term in enumerate(labels):
            found += [Pinned(path, d, reason) for reason in terms.pins(term)]
            if any(r.atom not in moved for r in refs(term)) and not terms.pins(term):
                found.append(Pinned(path, d, "does not meet the inputs"))
    return tuple(found)
