"""What is to be done to a program so that its norms are folded: which steps go, which leaves change and how."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from alignment.folding.carriers import LAYOUT, Facts
from alignment.folding.norms import Moments, moments
from alignment.folding.streams import Kept, Reader, RefusedError, Stream, readers
from alignment.program import ROOTS, Program, Step, holds, inside
from alignment.tracing.control_flow import CONTROL_FLOW
from alignment.tracing.provenance import source_line


@dataclass(frozen=True)
class Change:
    """What is done to one axis of a leaf: 0 multiply by a norm's scale, 1 add what a norm's bias becomes, 2 centre."""

    order: int
    axis: int
    reader: Reader | None = None


@dataclass(frozen=True)
class NewLeaf:
    """A leaf of the folded network: input number `old` of the program after `changes`; None is a bias that starts at zero."""

    old: int | None
    changes: tuple[Change, ...]


@dataclass(eq=False)
class Edits:
    """What is to be done to a program.

    Attributes:
        gone: results that are to be the value they are computed from: scaled or shifted features, centred streams.
        changes: for an operand of a step, what happens to the leaves that it shows.
        shifts: steps whose results a norm's bias, seen through their weight, is to be added to.
        centred: the values of streams that are centred, with the axis of their features.
        kept: what is left as it is.
    """

    facts: Facts
    gone: dict[int, int] = field(default_factory=dict)
    changes: dict[tuple[int, int], dict[int, tuple[Change, ...]]] = field(default_factory=dict)
    shifts: dict[int, Reader] = field(default_factory=dict)
    centred: dict[int, int] = field(default_factory=dict)
    kept: list[Kept] = field(default_factory=list)

    def change(self, step: int, operand: int, axis: int, change: Change) -> None:
        """Change the leaves behind an operand along its axis."""
        found = self.facts.leaves(self.facts.program.steps[step].ins[operand], axis)
        assert found
        here = self.changes.setdefault((step, operand), {})
        for leaf, d in found.items():
            changes = (*here.get(leaf, ()), replace(change, axis=d))
            here[leaf] = tuple(sorted(changes, key=lambda c: (c.order, c.axis)))

    def fold(self, found: Sequence[Reader]) -> None:
        """Move the scale and bias of one norm into its readers."""
        for reader in found:
            self.gone |= {a.out: a.rest for a in reader.affine}
            if any(a.name in ("mul", "div") for a in reader.affine):
                self.change(reader.step, reader.weight, reader.axis, Change(0, reader.axis, reader))
            if any(a.name in ("add", "sub") for a in reader.affine):
                self.shift(reader)

    def shift(self, reader: Reader) -> None:
        """Add what a bias becomes to the bias of its reader, or to the result of it."""
        place = own_bias(self.facts, reader)
        if place is None:
            self.shifts[reader.step] = reader
            return
        step, operand, leaf = place
        here = self.changes.setdefault((step, operand), {})
        here[leaf] = (Change(1, 0, reader), *here.get(leaf, ()))

    def weight(self, bias: NewLeaf) -> NewLeaf:
        """The leaf that a new bias belongs to."""
        reader = bias.changes[0].reader
        assert reader is not None
        leaf, *_ = self.facts.leaves(self.facts.program.steps[reader.step].ins[reader.weight], reader.axis) or {}
        return NewLeaf(leaf, self.changes.get((reader.step, reader.weight), {}).get(leaf, ()))

    def centre(self, stream: Stream, known: Moments) -> None:
        """Centre what writes to a stream, so that nothing that reads it has to."""
        self.centred |= stream.values
        for writer in stream.writers:
            self.change(writer.step, writer.operand, writer.axis, Change(2, writer.axis))
        for value, moment in known.known.items():
            step = self.facts.program.steps[self.facts.program.producer[value]]
            mean = moment.centred and moment.kind in ("centred", "moment") and step.name == "sub"
            if mean and stream.values.get(moment.x) == moment.axis:
                self.gone[value] = step.ins[0]


def edits(facts: Facts) -> Edits:
    """Everything about the norms of a program that can be folded."""
    known, plan = moments(facts), Edits(facts)
    bare: dict[int, int] = {}  # centring norms that only divide when their mean is gone
    fixed: set[int] = set()
    for norm in known.norms:
        try:
            plan.fold(readers(facts, norm))
            bare |= {norm.x: norm.axis} if norm.centred else {}
        except RefusedError as refused:
            plan.kept.append(refused.kept)
            fixed.add(norm.x)
    plan.kept += [kept for step in facts.program.steps for kept in _unseen(step)]
    seen: set[int] = set()
    for x, axis in bare.items():
        if x not in seen:
            stream = Stream(known).grow(x, axis)
            seen.update(stream.values)
            plan.kept += stream.kept
            if not stream.kept and not fixed.intersection(stream.values):
                plan.centre(stream, known)
    return plan


def _unseen(step: Step) -> Iterator[Kept]:
    """Loops and branches that may have norms inside."""
    if step.eqn is not None and step.name in CONTROL_FLOW and any(holds(inner, ROOTS) for inner in inside(step.eqn)):
        yield Kept(source_line(step.eqn.source_info), f"norms inside {step.name} are not looked for")


def weighed(program: Program, reader: Reader) -> tuple[int, ...]:
    """The axes of a contraction's result that come from its weight."""
    step = program.steps[reader.step]
    contracted, batch = step.params["dimension_numbers"]
    total = len(program.shape(step.outs[0]))
    count = len(program.shape(step.ins[reader.weight])) - len(contracted[reader.weight]) - len(batch[0])
    first = len(batch[0]) if reader.weight == 0 else total - count
    return (*range(len(batch[0])), *range(first, first + count))


def own_bias(facts: Facts, reader: Reader) -> tuple[int, int, int] | None:
    """Where a contraction's own bias is added: step, operand and leaf; None without one, or if that is used elsewhere too."""
    program, axes = facts.program, weighed(facts.program, reader)
    result = program.steps[reader.step].outs[0]
    uses = program.consumers[result]
    if len(uses) != 1 or result in program.outputs or program.steps[uses[0][0]].name != "add":
        return None
    number, k = uses[0]
    value, found = program.steps[number].ins[1 - k], [facts.leaves(program.steps[number].ins[1 - k], d) for d in axes]
    while value in program.producer and len(program.consumers[value]) == 1:
        step = program.steps[program.producer[value]]
        if step.name not in LAYOUT:
            return None
        value = step.ins[0]
    alone = len(program.consumers[value]) == 1 and value not in facts.data and value not in program.constants
    shape = tuple(program.shape(result)[d] for d in axes)
    if not alone or program.shape(value) != shape or found != [{value: i} for i in range(len(axes))]:
        return None
    return number, 1 - k, value
