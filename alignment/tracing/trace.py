"""From any pure function to its symmetry graph: `trace` walks the jaxpr and applies one rule per equation."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from alignment.checks import check_kinds
from alignment.graph import Graph, PyTree, flatten
from alignment.lookups import Lookup, lookup_of
from alignment.of_torch import as_arrays, check_no_torch
from alignment.primitives import RULES, UNSUPPORTED, Axes, Equation, Source, Value, fixed, unsupported
from alignment.program import closed_program, is_floating, nested
from alignment.sites import Site, followed, site_of
from alignment.tracing.constants import folded, is_real, is_square
from alignment.tracing.control_flow import CONTROL_FLOW, tied
from alignment.tracing.labelling import Seen, build_graph
from alignment.tracing.provenance import in_library
from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Ref, Term, refs

KEEPS_SQUARE = {"convert_element_type", "copy", "stop_gradient", "reduce_sum"}


def trace(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> Graph:
    """Read the symmetry graph of `apply(variables, *inputs)` off its jaxpr.

    Works for any pure JAX function of a tree of arrays: plain JAX, Flax Linen, NNX split state, Equinox, Haiku. Nothing is
    computed and nothing about the architecture has to be said.

    What is returned is held fixed, but of a function that returns `(outputs, variables)`, as training mode does, the new
    variables transform as the old ones. Where some of them alone are returned, such as new statistics, those are held fixed.

    Args:
        apply: the network in evaluation mode, a pure function.
        variables: its parameters and statistics, arrays or `jax.ShapeDtypeStruct`.
        inputs: example inputs, arrays, tensors of PyTorch or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.

    Returns:
        The `Graph`: nodes with their groups, a label for every axis, what is held fixed and why, where to tap, the
        contractions that each weight takes part in, and the lookups of its rows.

    Raises:
        ValueError: for variables that are not arrays or share a path, a function that returns something other than arrays, has
            side effects, or reads none of its variables. Errors of the function itself come through as they are, with a note
            that says how it was called.

    Warns:
        UserWarning: once for each primitive without a rule whose operands could otherwise have moved.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> v = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> graph = alignment.trace(apply, v, jnp.ones((1, 2)))
        >>> graph.nodes["up"]  # three units, which may be permuted and, thanks to ReLU, scaled
        Node(name='up', size=3, group='scale', index=(), copies=())
        >>> graph.axes["up"]
        (Fixed(size=2, name=''), NodeAxis(node='up', size=3, role='out'))
    """
    check_kinds("trace takes (apply, variables, *inputs)", (apply, Callable), (variables, object))
    check_no_torch(variables)
    walk = walked(apply, variables, as_arrays(inputs))
    for name in walk.costly():
        warnings.warn(
            f"no rule for primitive {name!r}: the axes it touches are held fixed "
            f"(teach it with alignment.primitives.rule({name!r}))",
            stacklevel=2,
        )
    read = walk.closed.in_avals[len(walk.params) :]
    return replace(walk.graph()[0], inputs=tuple(x.shape for x in read), dtypes=tuple(str(x.dtype) for x in read))


def walked(apply: Callable[..., PyTree], variables: PyTree, inputs: tuple) -> "Walk":
    """A finished walk over the jaxpr of `apply(variables, *inputs)`. Raises ValueError as `trace` does."""
    leaves = flatten(variables)
    for path, leaf in leaves.items():
        if not hasattr(leaf, "dtype") and not isinstance(leaf, float | int | complex):
            raise ValueError(f"variables must be arrays, got {type(leaf).__name__} at {path!r}")
    closed, returned = closed_program(apply, variables, inputs)
    walk = Walk(closed, jax.tree.structure(returned))
    walk.params = {path: walk.parameter(path, leaf) for path, leaf in leaves.items()}
    shapes = [_shape(v) for v in closed.jaxpr.invars[len(leaves) :]]
    walk.data = [Value(shape, fixed(walk.terms, shape, "input", moved=False), data=True) for shape in shapes]
    outputs = walk.call(closed, [*walk.params.values(), *walk.data], ())
    walk.used.update((v.source.path, None) for v in outputs if v.source is not None)
    for value in outputs:
        walk.settle(value)
    renewed = len(leaves) if _renews(variables, returned) else 0
    for value in outputs[: len(outputs) - renewed]:
        for term in value.axes:
            if term is not None:
                walk.terms.pin(term, "output")
    for old, new in zip(walk.params.values(), outputs[len(outputs) - renewed :], strict=renewed > 0):
        for d in range(len(old.axes)):
            tied(walk, old, new, d)
    if not walk.used:
        raise ValueError("apply reads none of its variables: does it close over the weights it was built with?")
    return walk


def _renews(variables: PyTree, returned: PyTree) -> bool:
    """Whether a function returns (outputs, variables with new statistics): those transform as the old ones do."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        return False
    old, new = ({path: np.shape(x) for path, x in flatten(tree).items()} for tree in (variables, returned[1]))
    return old == new


class Contraction(NamedTuple):
    """A dot product or convolution, what is known of its operands and its result, and the axes of the loops around it."""

    eqn: JaxprEqn
    ins: Sequence[Value]
    out: Value
    loops: tuple[Term, ...]


class Walk:
    """One pass over a jaxpr, `walked`. Nested calls are entered with fresh variables: a cached jaxpr never ties two calls."""

    def __init__(self, closed: ClosedJaxpr, structure: jax.tree_util.PyTreeDef) -> None:
        self.closed, self.structure = closed, structure  # the program and the tree that its results form
        self.terms = Terms()
        self.params: dict[str, Value] = {}  # the leaves of the variables, by path
        self.data: list[Value] = []  # the inputs
        self.results: dict[tuple[int, ...], list[Value]] = {}  # of every equation, by its location
        self.seen: list[Seen] = []
        self.sites: list[Site] = []
        self.lookups: list[Lookup] = []
        self.contractions: list[Contraction] = []
        self.used: dict[str, None] = {}  # paths of the variables in the order in which the network reads them
        self.readers: dict[str, set[tuple[int, ...]]] = {}  # the equations that read a leaf, but for those that only reshape it
        self.hidden = 0  # depth of calls whose inside cannot be tapped
        self._unknown: dict[str, list[Term]] = {}
        self._borrowed = 0  # depth of calls to library functions, whose lines say nothing to the user

    def parameter(self, path: str, leaf: PyTree) -> Value:
        """The value of a leaf of the variables: free axes, unless it holds something other than real numbers."""
        dtype, shape = getattr(leaf, "dtype", None) or jnp.result_type(leaf), np.shape(leaf)
        if jnp.issubdtype(dtype, jnp.floating):
            axes = tuple(None if n == 1 else self.terms.fresh(n, pin=None if n else "axis of size zero") for n in shape)
        else:
            axes = fixed(self.terms, shape, f"{dtype} leaf", moved=False)
        self.terms.together(axes)
        return Value(shape, axes, source=Source(path))

    def call(self, closed: ClosedJaxpr, args: Sequence[Value], prefix: tuple[int, ...]) -> list[Value]:
        """The outputs of a jaxpr for these arguments."""
        jaxpr: Jaxpr = closed.jaxpr
        env: dict[Var, Value] = dict(zip(jaxpr.invars, args, strict=True))
        consts = dict(zip(jaxpr.constvars, closed.consts, strict=True))

        def read(v: Var | Literal) -> Value:
            if isinstance(v, Literal):
                return self.constant(v.val)
            if v in consts:  # made where it is first read, so that its pins name that line
                env[v] = self.constant(consts.pop(v))
            return env[v]

        borrowed = bool(prefix) and in_library(jaxpr)
        self._borrowed += borrowed
        for index, eqn in enumerate(jaxpr.eqns):
            if not self._borrowed:
                self.terms.where = eqn.source_info
            outs = self.results[*prefix, index] = self.equation(eqn, [read(v) for v in eqn.invars], (*prefix, index))
            env.update(zip(eqn.outvars, outs, strict=True))
        self._borrowed -= borrowed
        return [read(v) for v in jaxpr.outvars]

    def constant(self, x: Any) -> Value:
        """An array that the function brings along: held fixed, except along axes where all its elements are equal."""
        shape = np.shape(x)
        if not shape:
            return Value((), (), constant=float(x) if is_real(jnp.result_type(x)) else None)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended) or not x.size:
            return Value(shape, fixed(self.terms, shape, "constant inside the function"))
        array = np.asarray(x)
        varies = [n > 1 and bool((array != array.take([0], d)).any()) for d, n in enumerate(shape)]
        reason = "constant inside the function"
        axes = tuple(self.terms.fresh(n, pin=reason) if v else None for n, v in zip(shape, varies, strict=True))
        uniform = not any(varies) and is_real(array.dtype)
        return Value(shape, axes, constant=float(array.flat[0]) if uniform else None)

    def equation(self, eqn: JaxprEqn, ins: list[Value], location: tuple[int, ...]) -> list[Value]:
        """The results of one equation."""
        inner = nested(eqn)
        if inner is not None:
            return self.call(inner, ins, location)
        name = eqn.primitive.name
        for value in ins:
            if name not in KEEPS_SQUARE:
                self.settle(value)
        if name in CONTROL_FLOW:
            outs = CONTROL_FLOW[name](self, eqn, ins, location)
            self._see(eqn, outs, location)
            return outs
        self.used.update((v.source.path, None) for v in ins if v.source is not None)
        shapes = [_shape(v) for v in eqn.outvars]
        seen = Equation(name, eqn.params, ins, shapes)
        data, square = any(v.data for v in ins), is_square(eqn)
        axes = [ins[0].axes] if square else self._apply_rule(seen)
        outs = [Value(shape, _without_units(shape, a), data) for shape, a in zip(shapes, axes, strict=True)]
        outs = [replace(v, source=followed(eqn, ins, k)) for k, v in enumerate(outs)]
        if len(outs) == 1:
            square |= bool(ins) and ins[0].square and name in KEEPS_SQUARE - {"reduce_sum"}
            outs = [replace(outs[0], constant=folded(eqn, ins), square=square)]
        for value in outs:
            self.terms.together(value.axes)
        self._see(eqn, outs, location)
        self._note(eqn, ins, outs, location)
        return outs

    def _note(self, eqn: JaxprEqn, ins: list[Value], outs: list[Value], location: tuple[int, ...]) -> None:
        """Note who reads leaves, other than to show them in another shape, and what is contracted with what."""
        if all(v.source is None for v in outs):
            for source in (v.source for v in ins if v.source is not None):
                self.readers.setdefault(source.path, set()).add(location)
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            self.contractions.append(Contraction(eqn, ins, outs[0], self.terms.loops))
        if not outs or not outs[0].data or self.hidden:
            return
        if (site := site_of(eqn, ins, location, self.terms.loops)) is not None:
            self.sites.append(site)
        if (lookup := lookup_of(eqn, ins, location, self.terms.loops)) is not None:
            self.lookups.append(lookup)

    def _see(self, eqn: JaxprEqn, outs: Sequence[Value], location: tuple[int, ...]) -> None:
        """Note the results that depend on the inputs as places to tap."""
        for k, (value, var) in enumerate(zip(outs, eqn.outvars, strict=True)):
            if value.data and not value.square and is_floating(var.aval):
                self.seen.append(Seen(location, k, value, self.terms.loops, hidden=self.hidden > 0))

    def settle(self, value: Value) -> None:
        """A square that is not summed at once tells the coordinates of its axes apart."""
        if value.square:
            for term in value.axes:
                if term is not None:
                    self.terms.restrict(term, Group.PERMUTATION)

    def _apply_rule(self, eqn: Equation) -> list[Axes]:
        known = RULES.get(eqn.name)
        if known is not None:
            return known(self.terms, eqn)
        self._unknown.setdefault(eqn.name, []).extend(t for v in eqn.ins for t in v.axes if t is not None)
        return unsupported(self.terms, eqn)

    def graph(self) -> tuple[Graph, Mapping[str, tuple[int, ...]]]:
        """The graph, and the atoms that each of its nodes is."""
        return build_graph(self.terms, self.params, self.seen, (*self.sites, *self.lookups), list(self.used))

    def costly(self) -> list[str]:
        """The primitives without a rule that hold an axis which nothing else holds."""

        def held_by_them_alone(ref: Ref) -> bool:
            return all(reason.startswith(UNSUPPORTED) for reason in self.terms.pins(Ref(ref.atom)))

        found = {name: [r for t in terms for r in refs(self.terms.resolve(t))] for name, terms in self._unknown.items()}
        return [name for name, atoms in found.items() if any(map(held_by_them_alone, atoms))]


def _shape(v: Var) -> tuple[int, ...]:
    return tuple(getattr(v.aval, "shape", ()))  # tokens and other abstract values have none


def _without_units(shape: tuple[int, ...], axes: Axes) -> Axes:
    return tuple(None if n == 1 else t for n, t in zip(shape, axes, strict=True))
