"""Along one axis of an array: where do its features come from, and does an operation treat them linearly and alike?

Let F be an operation and M any linear map of the features of one axis. F carries the axis if F(M x) = M F(x), whatever
shapes the axis has before and after: sums, changes of layout, rows taken from a table. Scaling features (by a norm's gamma)
and centring them (the mean of a LayerNorm) can be moved through everything that carries the axis.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from alignment.program import Program, Step, is_floating, scalar

CASTS = {"convert_element_type", "copy", "stop_gradient", "reduce_precision", "optimization_barrier"}
LAYOUT = CASTS | {"broadcast_in_dim", "reshape", "squeeze", "transpose"}
ELEMENTWISE = CASTS | {"add", "sub", "mul", "div", "neg", "max", "min", "square", "sqrt", "rsqrt", "integer_pow", "pow", "exp"}
ELEMENTWISE |= {"select_n", "add_any", "tanh", "logistic", "log", "gt", "ge", "lt", "le", "eq", "ne", "and", "or", "not"}
LINEAR = LAYOUT | {"add", "sub", "add_any", "neg", "concatenate", "stack", "slice", "dynamic_slice", "gather", "pad", "rev"}
LINEAR |= {"split", "unstack", "reduce_sum", "mul", "div", "select_n", "cumsum"}


def origins(program: Program, step: Step, d: int) -> dict[int, int]:
    """Operands that have axis d of the (first) result, whole and in order, with the number that it has there."""
    shapes, out, name = [program.shape(v) for v in step.ins], program.shape(step.outs[0]), step.name
    if name in ELEMENTWISE:
        return {k: d for k, s in enumerate(shapes) if len(s) == len(out) and s[d] == out[d]}
    if name == "concatenate":
        return {} if d == step.params["dimension"] else dict.fromkeys(range(len(shapes)), d)
    if name == "stack":
        along = step.params["axis"]
        return {} if d == along else dict.fromkeys(range(len(shapes)), d - (d > along))
    axis = _origin(step, shapes[0], out, d) if shapes else None
    return {0: axis} if axis is not None and shapes[0][axis] == out[d] else {}


def _origin(step: Step, before: tuple[int, ...], out: tuple[int, ...], d: int) -> int | None:
    """The axis of the first operand that axis d of the result shows."""
    p, axes = step.params, range(len(before))
    match step.name:
        case "broadcast_in_dim":
            return next((i for i, to in enumerate(p["broadcast_dimensions"]) if to == d), None)
        case "reshape" if p["dimensions"] is None:
            return _unreshaped(before, out, d)
        case "squeeze":
            return [i for i in axes if i not in {n % len(before) for n in p["dimensions"]}][d]
        case "transpose":
            return int(p["permutation"][d])
        case "reduce_sum":
            return [i for i in axes if i not in p["axes"]][d]
        case "unstack":
            return d + (d >= p["axis"])
        case "gather":
            return _gathered(step, before, d)
    if step.name == "pad":
        return d if tuple(p["padding_config"][d]) == (0, 0, 0) else None
    touched = {"split": p.get("axis"), "cumsum": p.get("axis"), "rev": p.get("dimensions"), "slice": (), "dynamic_slice": ()}
    return d if step.name in touched and d not in np.ravel(np.asarray(touched[step.name])) else None


def _unreshaped(before: tuple[int, ...], out: tuple[int, ...], d: int) -> int | None:
    """The axis that a reshape leaves whole."""
    inner = math.prod(out[d + 1 :])
    return next((i for i, n in enumerate(before) if n == out[d] != 1 and math.prod(before[i + 1 :]) == inner), None)


def _gathered(step: Step, before: tuple[int, ...], d: int) -> int | None:
    numbers = step.params["dimension_numbers"]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(before)) if i not in gone]
    fill = step.params["fill_value"]
    if d not in numbers.offset_dims or (fill is not None and not np.isnan(fill)):
        return None
    axis = kept[numbers.offset_dims.index(d)]
    return axis if step.params["slice_sizes"][axis] == before[axis] else None


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of every value of a program.

    Attributes:
        program: the program.
        data: the values that depend on the inputs rather than only on the variables.
        constant: the number that all elements of a value equal.
        uniform: the axes along which a value is known not to vary.
    """

    program: Program
    data: frozenset[int]
    constant: Mapping[int, float]
    uniform: Mapping[int, frozenset[int]]

    def flat(self, value: int, d: int) -> bool:
        """Is the same along axis d of a result that it is broadcast to."""
        return not self.program.shape(value) or d in self.uniform[value]

    def vector(self, value: int, d: int) -> bool:
        """Depends on the variables alone and varies along no axis but d."""
        others = set(range(len(self.program.shape(value)))) - {d}
        return (
            value not in self.data and value not in self.constant and not self.flat(value, d) and others <= self.uniform[value]
        )

    def carriers(self, step: Step, d: int) -> dict[int, int]:
        """The operands through which the step carries axis d of its result; empty if it does not."""
        if step.name not in LINEAR or (step.name == "reduce_sum" and len(self.program.shape(step.ins[0])) < 1):
            return {}
        found = origins(self.program, step, d)
        if step.name in ("mul", "div"):
            found = {k: a for k, a in found.items() if not self.flat(step.ins[k], a)}
            return found if set(found) in ([{0}] if step.name == "div" else [{0}, {1}]) else {}
        if step.name == "select_n":
            flat = self.flat(step.ins[0], d)
            cases = {k: a for k, a in found.items() if k and self.constant.get(step.ins[k]) != 0}
            return cases if flat and set(range(1, len(step.ins))) <= set(found) else {}
        rest = [v for k, v in enumerate(step.ins) if k not in found]
        if step.name in ("add", "sub", "add_any", "pad", "concatenate") and any(self.constant.get(v) != 0 for v in rest):
            return {}
        return {k: a for k, a in found.items() if self.constant.get(step.ins[k]) != 0}

    def onward(self, step: Step, k: int, axis: int) -> Iterator[tuple[int, int]]:
        """The results, and their axes, in which a step carries an axis of its operand k."""
        for d in range(len(self.program.shape(step.outs[0]))):
            if self.carriers(step, d).get(k) == axis:
                yield from ((out, d) for out in step.outs)

    def leaves(self, value: int, axis: int) -> dict[int, int] | None:
        """The leaves that a value made of variables shows along one axis, with their axes; None if that is not all it shows."""
        found: dict[int, int] = {}
        todo = [(value, axis)]
        while todo:
            value, axis = todo.pop()
            if value in self.program.producer:
                step = self.program.steps[self.program.producer[value]]
                carried = self.carriers(step, axis)
                if not carried:
                    return None
                todo += [(step.ins[k], a) for k, a in carried.items()]
            elif not self._floating(value) or found.setdefault(value, axis) != axis:
                return None
        return found

    def _floating(self, value: int) -> bool:
        """Whether a value is an input of real numbers: integers (of a quantised table) cannot be scaled."""
        return value in self.program.inputs and is_floating(self.program.avals[value])


def facts(program: Program, leaves: int) -> Facts:
    """Look at every value once; the first `leaves` inputs are the variables."""
    constant = {v: c for v, x in program.constants.items() if (c := scalar(x)) is not None}
    uniform = {v: _units(program.shape(v)) for v in [*program.inputs, *program.constants]}
    for step in program.steps:
        known = [constant.get(v) for v in step.ins]
        result = _number(step, known)
        for out in step.outs:
            shape = program.shape(out)
            uniform[out] = frozenset(range(len(shape))) if result is not None else _uniform(program, step, out, uniform)
            if result is not None:
                constant[out] = result
    return Facts(program, program.reached(program.inputs[leaves:]), constant, uniform)


def _units(shape: tuple[int, ...]) -> frozenset[int]:
    return frozenset(d for d, n in enumerate(shape) if n == 1)


def _uniform(program: Program, step: Step, out: int, uniform: Mapping[int, frozenset[int]]) -> frozenset[int]:
    units = _units(program.shape(out))
    if step.name not in ELEMENTWISE | LAYOUT | {"reduce_sum", "reduce_max"} or not step.ins:
        return units
    axes = range(len(program.shape(out)))
    if step.name in ELEMENTWISE:
        arrays = [v for v in step.ins if program.shape(v)]
        return units | {d for d in axes if all(d in uniform[v] for v in arrays)}
    if step.name == "broadcast_in_dim":
        source = dict(zip(step.params["broadcast_dimensions"], range(len(program.shape(step.ins[0]))), strict=True))
        return units | {d for d in axes if d not in source or source[d] in uniform[step.ins[0]]}
    if step.name == "reduce_max":
        return units
    before = {d: origins(program, step, d).get(0) for d in axes if d not in units}
    return units | {d for d, a in before.items() if a is not None and a in uniform[step.ins[0]]}


def _number(step: Step, known: list[float | None]) -> float | None:
    """The number that a step makes of numbers."""
    if not known or any(c is None for c in known):
        return None
    a, b = known[0], known[-1]
    assert a is not None and b is not None
    match step.name:
        case "add":
            return a + b
        case "sub":
            return a - b
        case "mul":
            return a * b
        case "div":
            return a / b if b else None
        case "gt":
            return float(a > b)
        case "sqrt":
            return math.sqrt(a) if a >= 0 else None
        case name if name in LAYOUT - {"convert_element_type"}:
            return a
        case "convert_element_type":
            return a if np.issubdtype(step.params["new_dtype"], np.floating) or a == int(a) else None
    return None
