"""The program of a network with its norms folded, made step by step from the old one."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.folding.edits import Change, Edits, NewLeaf, weighed
from alignment.folding.streams import Reader
from alignment.program import Program, Step


@dataclass(eq=False)
class Rewriting:
    """The new program, step by step.

    Attributes:
        made: for every new leaf its number in the new program.
    """

    edits: Edits
    made: dict[NewLeaf, int] = field(default_factory=dict)
    avals: dict[int, Any] = field(default_factory=dict)
    _steps: list[Step] = field(default_factory=list)
    _copies: dict[tuple, int] = field(default_factory=dict)
    _same: dict[int, int] = field(default_factory=dict)

    def program(self) -> Program:
        """The steps that are needed, in order."""
        old = self.edits.facts.program
        self.avals.update(old.avals)
        for number, step in enumerate(old.steps):
            self._rewrite(number, step)
        outputs = [self._same.get(v, v) for v in old.outputs]
        new = Program(tuple(self._steps), old.inputs, old.constants, tuple(outputs), self.avals)
        return new.wanted(outputs)

    def _new(self, aval: Any) -> int:
        self.avals[len(self.avals)] = aval
        return len(self.avals) - 1

    def _leaf(self, leaf: NewLeaf, aval: Any) -> int:
        if leaf.old is not None and not leaf.changes:
            return leaf.old
        if leaf not in self.made:
            self.made[leaf] = self._new(aval)
        return self.made[leaf]

    def _rewrite(self, number: int, step: Step) -> None:
        out = step.outs[0] if step.outs else -1
        if out in self.edits.gone:
            self._pass(self._same.get(self.edits.gone[out], self.edits.gone[out]), out)
            return
        ins = tuple(self._operand(v, self.edits.changes.get((number, k), {})) for k, v in enumerate(step.ins))
        reader = self.edits.shifts.get(number)
        if reader is None:
            self._steps.append(replace(step, ins=ins))
            return
        raw = self._new(self.avals[out])
        self._steps.append(replace(step, ins=ins, outs=(raw,)))
        self._steps.append(
            Step(functools.partial(_shifted, weighed(self.edits.facts.program, reader)), (raw, self._bias(reader)), (out,))
        )

    def _pass(self, value: int, out: int) -> None:
        """Make `out` the value, in the shape and dtype that it had."""
        shape, dtype = self.avals[out].shape, self.avals[out].dtype
        if (self.avals[value].shape, self.avals[value].dtype) == (shape, dtype):
            self._same[out] = value
        else:
            self._steps.append(Step(functools.partial(_like, shape, dtype), (value,), (out,)))

    def _operand(self, value: int, changes: Mapping[int, tuple[Change, ...]]) -> int:
        """A value, or what it is with some leaves changed."""
        if not changes:
            return self._same.get(value, value)
        program = self.edits.facts.program
        copies = {leaf: self._leaf(NewLeaf(leaf, changes[leaf]), self.avals[leaf]) for leaf in changes}
        which = tuple(sorted(copies.items()))
        for step in program.wanted([value]).steps:
            if copies.keys() & set(step.ins):
                for out in step.outs:
                    copies[out] = self._copies.setdefault((out, which), -1)
                if any(copies[out] < 0 for out in step.outs):
                    self._copy(step, copies, which)
        return copies[value]

    def _copy(self, step: Step, copies: dict[int, int], which: tuple) -> None:
        for out in step.outs:
            copies[out] = self._copies[out, which] = self._new(self.avals[out])
        self._steps.append(
            replace(step, ins=tuple(copies.get(v, v) for v in step.ins), outs=tuple(copies[v] for v in step.outs))
        )

    def _bias(self, reader: Reader) -> int:
        program, axes = self.edits.facts.program, weighed(self.edits.facts.program, reader)
        out = program.steps[reader.step].outs[0]
        changes = [Change(1, 0, reader)]
        if out in self.edits.centred:
            changes.append(Change(2, axes.index(self.edits.centred[out])))
        shape = tuple(self.avals[out].shape[d] for d in axes)
        return self._leaf(NewLeaf(None, tuple(changes)), jax.ShapeDtypeStruct(shape, self.avals[out].dtype))


def _like(shape: tuple[int, ...], dtype: Any, x: Array) -> list[Array]:
    return [jnp.broadcast_to(x, shape).astype(dtype)]


def _shifted(axes: tuple[int, ...], y: Array, bias: Array) -> list[Array]:
    """The bias added along those axes of a result that come from the weight."""
    shape = tuple(n if d in axes else 1 for d, n in enumerate(y.shape))
    return [y + jnp.broadcast_to(bias.reshape(shape), y.shape).astype(y.dtype)]
