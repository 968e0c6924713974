"""The jaxpr of a pure function, and the same as a flat list of steps that may be left out, replaced and added to."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

from alignment.called import note_of
from alignment.graph import PyTree, flatten, path_name

CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "checkpoint", "remat", "remat2"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call"}
ROOTS = {"rsqrt", "sqrt", "pow"}
PRODUCTS = {"dot_general", "conv_general_dilated"}


@dataclass(frozen=True, eq=False)
class Step:
    """One operation: `call(*ins) -> outs`, with values by number.

    Attributes:
        eqn: the equation that it is, None for an added step.
        location: of the equation, one number for each level of nested calls.
    """

    call: Callable[..., Sequence[Any]]
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    eqn: JaxprEqn | None = None
    location: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The primitive, "" for an added step."""
        return "" if self.eqn is None else self.eqn.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """The parameters of the equation."""
        return {} if self.eqn is None else self.eqn.params


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in order of evaluation.

    Attributes:
        steps: the operations.
        inputs: the numbers of the arguments.
        constants: values that the function brings along, by number.
        outputs: the numbers of the results.
        avals: shape and dtype of every value of the jaxpr.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    constants: Mapping[int, Any]
    outputs: tuple[int, ...]
    avals: Mapping[int, Any]

    def shape(self, value: int) -> tuple[int, ...]:
        """The shape of a value."""
        return tuple(getattr(self.avals[value], "shape", ()))

    @functools.cached_property
    def producer(self) -> Mapping[int, int]:
        """The step that makes each value which is neither an input nor a constant."""
        return {out: i for i, step in enumerate(self.steps) for out in step.outs}

    @functools.cached_property
    def consumers(self) -> Mapping[int, list[tuple[int, int]]]:
        """Where each value is read: steps and numbers of their operands."""
        found: dict[int, list[tuple[int, int]]] = {value: [] for value in self.avals}
        for i, step in enumerate(self.steps):
            for k, value in enumerate(step.ins):
                found[value].append((i, k))
        return found

    def wanted(self, outputs: Iterable[int]) -> "Program":
        """What is needed for these outputs, and nothing else."""
        outputs = tuple(outputs)
        live, kept = set(outputs), []
        for step in reversed(self.steps):
            if live.intersection(step.outs):
                live.update(step.ins)
                kept.append(step)
        return replace(self, steps=tuple(reversed(kept)), outputs=outputs)

    def reached(self, start: Iterable[int]) -> frozenset[int]:
        """The values that depend on some of these."""
        found = set(start)
        for step in self.steps:
            if found.intersection(step.ins):
                found.update(step.outs)
        return frozenset(found)

    def run(self, values: Mapping[int, Any]) -> list[Any]:
        """The outputs, given the inputs that they need by number."""
        env = {**self.constants, **values}
        for step in self.steps:
            env.update(zip(step.outs, step.call(*(env[v] for v in step.ins)), strict=True))
        return [env[v] for v in self.outputs]


def closed_program(apply: Callable[..., PyTree], variables: PyTree, inputs: tuple) -> tuple[ClosedJaxpr, PyTree]:
    """The jaxpr of a pure function of arrays, and what it returns as shapes. Raises ValueError where it is none."""

    def checked(*args: PyTree) -> PyTree:
        outputs = apply(*args)
        for path, leaf in jax.tree_util.tree_flatten_with_path(outputs)[0]:
            if not isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int | complex):
                where = f" at {path_name(path)!r}" if path else ""
                raise ValueError(f"apply must return arrays, got {type(leaf).__name__}{where}")
        return outputs

    try:
        closed, returned = jax.make_jaxpr(checked, return_shape=True)(variables, *inputs)
    except Exception as error:  # the function's own: it comes through as it is
        error.add_note(note_of(error, apply, variables, inputs))
        raise
    if not closed.jaxpr.outvars:
        raise ValueError("apply must return arrays, got none")
    if effects := [str(effect) for effect in closed.jaxpr.effects if "debug" not in type(effect).__name__.lower()]:
        raise ValueError(f"apply must be pure, got side effects: {', '.join(effects)}")
    return closed, returned


def nested(eqn: JaxprEqn) -> ClosedJaxpr | None:
    """The jaxpr of a call that does nothing but run it (jit, custom derivatives, checkpoint), else None."""
    if eqn.primitive.name not in CALLS:
        return None
    inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, [])


def flattened(closed: ClosedJaxpr, opens: Callable[[JaxprEqn, tuple[int, ...]], bool] | None = None) -> Program:
    """The program of a jaxpr.

    Args:
        closed: the jaxpr.
        opens: whether the call at a location is inlined; None for all but functions with derivatives of their own, which keep
            them unless a norm or a contraction is inside.
    """
    opens = opens or _holds_products
    constants: dict[int, Any] = {}
    avals: dict[int, Any] = {}
    steps: list[Step] = []

    def new(aval: Any) -> int:
        avals[len(avals)] = aval
        return len(avals) - 1

    def constant(x: Any, aval: Any) -> int:
        constants[value := new(aval)] = x
        return value

    def walk(inner: ClosedJaxpr, args: Sequence[int], prefix: tuple[int, ...]) -> list[int]:
        jaxpr: Jaxpr = inner.jaxpr
        env: dict[Var, int] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: constant(x, v.aval) for v, x in zip(jaxpr.constvars, inner.consts, strict=True)}

        def read(v: Var | Literal) -> int:
            return constant(v.val, v.aval) if isinstance(v, Literal) else env[v]

        for index, eqn in enumerate(jaxpr.eqns):
            ins, location = [read(v) for v in eqn.invars], (*prefix, index)
            if (called := nested(eqn)) is not None and opens(eqn, location):
                outs = walk(called, ins, location)
            else:
                outs = [new(v.aval) for v in eqn.outvars]
                steps.append(Step(functools.partial(evaluated, eqn, jaxpr), tuple(ins), tuple(outs), eqn, location))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    inputs = [new(v.aval) for v in closed.jaxpr.invars]
    outputs = walk(closed, inputs, ())
    return Program(tuple(steps), tuple(inputs), constants, tuple(outputs), avals)


def _holds_products(eqn: JaxprEqn, _: tuple[int, ...]) -> bool:
    called = nested(eqn)
    return eqn.primitive.name not in CUSTOM or (called is not None and holds(called.jaxpr, ROOTS | PRODUCTS))


def holds(jaxpr: Jaxpr, names: set[str]) -> bool:
    """Whether an equation with one of these primitives is anywhere inside."""
    return any(eqn.primitive.name in names or any(holds(inner, names) for inner in inside(eqn)) for eqn in jaxpr.eqns)


def inside(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs."""
    flat = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr))
    return [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in flat if isinstance(x, Jaxpr | ClosedJaxpr)]


def is_floating(aval: Any) -> bool:
    """Whether a value is of floating-point numbers."""
    dtype = getattr(aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def scalar(x: Any) -> float | None:
    """The number that a constant of one element is, None for any other."""
    if isinstance(x, jax.core.Tracer) or np.size(x) != 1:
        return None
    dtype = jnp.result_type(x)
    real = jnp.issubdtype(dtype, np.floating) or jnp.issubdtype(dtype, np.integer) or dtype == np.bool_
    return float(np.asarray(x).item()) if real else None


def evaluated(eqn: JaxprEqn, whole: Jaxpr, *ins: Any) -> list[Any]:
    """One equation of a jaxpr run as a jaxpr of its own, so that JAX itself restores the context it was traced in."""
    args = {v: x for v, x in zip(eqn.invars, ins, strict=True) if isinstance(v, Var)}
    info = whole.debug_info._replace(arg_names=None, result_paths=None)
    alone = Jaxpr((), list(args), eqn.outvars, [eqn], eqn.effects, info)
    return list(jax.core.eval_jaxpr(alone, (), *args.values()))


def order_of_use(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> list[str]:
    """The paths of the variables, from the inputs of the network to its outputs; those that it never uses last.

    A leaf is used where it, or what is made of leaves alone (a cast, a product of two factors), first meets what depends on the
    inputs. Leaves that meet it in one step (the layers of a scan) stand in the order of the tree.

    Args:
        apply: a pure function of variables and inputs.
        variables: arrays or `jax.ShapeDtypeStruct`.
        inputs: examples, likewise; only shapes and dtypes matter.
    """
    paths = list(flatten(variables))
    program = flattened(jax.make_jaxpr(apply)(variables, *inputs), opens=lambda *_: True)
    leaves: dict[int, tuple[str, ...]] = {value: (path,) for value, path in zip(program.inputs, paths, strict=False)}
    data = set(program.inputs[len(paths) :])
    found: list[str] = []
    for step in program.steps:
        read = tuple(dict.fromkeys(path for value in step.ins for path in leaves.get(value, ())))
        if data.intersection(step.ins):
            found += read
            data.update(step.outs)
        else:
            leaves.update(dict.fromkeys(step.outs, read))
    return list(dict.fromkeys([*found, *paths]))


def deciding(jaxpr: Jaxpr, outputs: Sequence[bool], paths: Sequence[str]) -> list[str]:
    """The leaves that some outputs of a program depend on.

    Args:
        jaxpr: of a function whose first argument has the leaves.
        outputs: which.
        paths: of the leaves, in their order.
    """
    _, used = partial_eval.dce_jaxpr(jaxpr, list(outputs))
    return [path for path, read in zip(paths, used, strict=False) if read]
