"""What reads a norm, and what writes to and reads the residual stream in front of it: whether either can be rewritten."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignment.folding.carriers import LAYOUT, Facts
from alignment.folding.norms import Affine, Moments, Norm
from alignment.program import Program, Step
from alignment.tracing.provenance import source_line


@dataclass(frozen=True)
class Kept:
    """Something that stays as it was: the line of the user's source, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Reader:
    """A contraction that reads normalised features: the step, its operand that is the weight, and the axis contracted there."""

    step: int
    weight: int
    axis: int
    affine: tuple[Affine, ...]


@dataclass(frozen=True)
class Writer:
    """An operand of a step that is made of variables and adds to a stream, whose features lie on `axis` of it."""

    step: int
    operand: int
    axis: int


class RefusedError(Exception):
    """Why something cannot be rewritten."""

    def __init__(self, step: Step | None, reason: str):
        super().__init__(reason)
        self.kept = Kept("" if step is None or step.eqn is None else source_line(step.eqn.source_info), reason)


def readers(facts: Facts, norm: Norm) -> tuple[Reader, ...]:
    """The contractions behind which scale and bias of a norm can go. Raises RefusedError if something else reads the norm."""
    program, found = facts.program, []
    todo: list[tuple[int, int, tuple[Affine, ...]]] = [(norm.out, norm.axis, norm.affine)]
    for scale in norm.affine:
        _only_in_norm(facts, scale, norm)
    while todo:
        value, axis, affine = todo.pop()
        if value in program.outputs and affine:
            raise RefusedError(program.steps[norm.step], "the outputs show what the norm makes")
        for number, k in program.consumers[value]:
            step = program.steps[number]
            if (more := _applied(facts, step, k, axis)) is not None:
                todo.append((step.outs[0], axis, (*affine, more)))
            elif (reader := _reading(facts, number, k, axis, affine)) is not None:
                found.append(reader)
            elif _commutes(facts, step, affine) and (further := list(facts.onward(step, k, axis))):
                todo += [(out, d, affine) for out, d in further]
            elif affine:
                raise RefusedError(step, f"{step.name} reads a norm's output, so its scale cannot move into weights")
    return tuple(found)


def _only_in_norm(facts: Facts, affine: Affine, norm: Norm) -> None:
    for number, _ in facts.program.consumers[affine.out]:
        if number != norm.step:
            raise RefusedError(facts.program.steps[number], f"{facts.program.steps[number].name} also reads a norm's scale")


def _applied(facts: Facts, step: Step, k: int, axis: int) -> Affine | None:
    """A product or sum of features with a vector of variables."""
    if step.name not in ("mul", "div", "add", "sub") or len(step.ins) != 2 or (step.name in ("div", "sub") and k == 1):
        return None
    vector, same = step.ins[1 - k], facts.program.shape(step.ins[k]) == facts.program.shape(step.outs[0])
    if not same or not facts.program.shape(vector) or not facts.vector(vector, axis):
        return None
    return Affine(step.name, vector, axis, step.outs[0], step.ins[k])


def _commutes(facts: Facts, step: Step, affine: tuple[Affine, ...]) -> bool:
    """Whether a step that carries an axis also leaves a scale and bias of its features as they are."""
    if step.name in LAYOUT | {"slice", "dynamic_slice", "gather", "split", "unstack", "rev"}:
        return True
    shifted = any(a.name in ("add", "sub") for a in affine)
    return bool(affine) and not shifted and step.name in ("mul", "div", "neg", "reduce_sum", "cumsum", "pad")


def _reading(facts: Facts, number: int, k: int, axis: int, affine: tuple[Affine, ...]) -> Reader | None:
    step = facts.program.steps[number]
    if step.name != "dot_general" or step.ins[1 - k] in facts.data:
        return None
    contracted = step.params["dimension_numbers"][0]
    if axis not in contracted[k]:
        return None
    weighed = contracted[1 - k][tuple(contracted[k]).index(axis)]
    if not facts.leaves(step.ins[1 - k], weighed):
        return None
    return Reader(number, 1 - k, weighed, affine)


@dataclass(eq=False)
class Stream:
    """A residual stream: everything that is summed into a value and everything that it is passed on to, for one axis.

    Centring its features changes nothing if all that reads it are norms that centre, and everything that is added to it is
    made by variables that can be centred instead.

    Attributes:
        values: the values that are the stream, with the axis of the features.
        writers: what to centre.
        kept: why that cannot be done; empty if it can.
    """

    moments: Moments
    values: dict[int, int] = field(default_factory=dict)
    writers: list[Writer] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    _todo: list[int] = field(default_factory=list)

    @property
    def program(self) -> Program:
        """The program."""
        return self.moments.facts.program

    def grow(self, value: int, axis: int) -> "Stream":
        """All of the stream that contains this value."""
        self._join(value, axis)
        while self._todo:
            value = self._todo.pop()
            for visit in (self._write, self._read):
                try:
                    visit(value, self.values[value])
                except RefusedError as refused:
                    self.kept.append(refused.kept)
        for value, moment in self.moments.known.items():
            if moment.x in self.values and not moment.centred:
                self._check_moment(value)
        return self

    def _join(self, value: int, axis: int) -> None:
        if value not in self.values:
            self.values[value] = axis
            self._todo.append(value)
        elif self.values[value] != axis:
            self.kept.append(Kept("", "the features of the stream meet themselves on another axis"))

    def _write(self, value: int, axis: int) -> None:
        """Follow what a value is made of."""
        facts, number = self.moments.facts, self.program.producer.get(value)
        if number is None:
            raise RefusedError(None, "an input or a constant is added to the stream")
        step, known = self.program.steps[number], self.moments.known.get(value)
        if known is not None and known.kind == "centred" and known.axis == axis:
            return
        operands: Mapping[int, int] = facts.carriers(step, axis) or _made(step, facts, axis)
        if not operands:
            raise RefusedError(step, f"{step.name} writes to the stream, and is no contraction, sum or table")
        for k, d in operands.items():
            if step.ins[k] in facts.data:
                self._join(step.ins[k], d)
            elif not facts.leaves(step.ins[k], d):
                raise RefusedError(step, f"{step.name} adds what is not plainly a weight to the stream")
            else:
                self.writers.append(Writer(number, k, d))

    def _read(self, value: int, axis: int) -> None:
        """Follow what a value is passed on to."""
        if value in self.program.outputs:
            raise RefusedError(None, "the outputs show the stream itself")
        unseen: RefusedError | None = None
        for number, k in self.program.consumers[value]:
            step = self.program.steps[number]
            known = self.moments.known.get(step.outs[0])
            if known is not None and known.x == self.moments.root(value) and known.axis in (-1, axis):
                continue
            further = list(self.moments.facts.onward(step, k, axis))
            for out, d in further:
                self._join(out, d)
            if not further:
                unseen = RefusedError(step, f"{step.name} reads the stream without a norm that centres")
        if unseen is not None:
            raise unseen

    def _check_moment(self, value: int) -> None:
        """A sum over the features may end in nothing but a mean that is taken away."""
        moment = self.moments.known[value]
        for number, _ in self.program.consumers[value]:
            step = self.program.steps[number]
            after = self.moments.known.get(step.outs[0])
            if after is None or after.x != moment.x:
                self.kept.append(RefusedError(step, f"{step.name} reads a mean or a square of the stream").kept)
        if value in self.program.outputs:
            self.kept.append(Kept("", "the outputs show a mean of the stream"))


def _made(step: Step, facts: Facts, axis: int) -> dict[int, int]:
    """The weight of a contraction that makes the axis, with its axis there.

    Not of a convolution in groups: its features are made of different ones each, so their mean is made by no such kernel.
    """
    if step.name == "conv_general_dilated":
        numbers = step.params["dimension_numbers"]
        grouped = (step.params["feature_group_count"], step.params["batch_group_count"]) != (1, 1)
        made = axis == numbers.out_spec[1] and not grouped and step.ins[1] not in facts.data
        return {1: numbers.rhs_spec[0]} if made else {}
    if step.name != "dot_general":
        return {}
    contracted, batch = step.params["dimension_numbers"]
    made_of = [
        (k, d) for k in (0, 1) for d in range(len(facts.program.shape(step.ins[k]))) if d not in (*contracted[k], *batch[k])
    ]
    first = len(batch[0])
    k, d = made_of[axis - first] if axis >= first else (-1, -1)
    return {k: d} if k >= 0 and step.ins[k] not in facts.data else {}
