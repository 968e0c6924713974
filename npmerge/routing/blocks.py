"""The blocks of a network: the parts of its jaxpr between the first and the last use of some of its leaves."""

import difflib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from alignment.checks import LISTED, check_pattern
from alignment.layer_groups.groups import Flow
from alignment.program import Program, Step, is_floating

Spot = tuple[int, int]  # a step of a block, and one of its results


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a program that depends on its inputs.

    Attributes:
        name: what the pattern has found in the paths of its leaves.
        steps: those of the program, by number.
        leaves: the paths of all leaves that they read, also of those that the pattern does not match.
        reads: the values from outside that they read, by number, which depend on the inputs of the network.
        makes: the values that are read outside.
        gate: which of `reads` a router may look at; None where that are no features.
        axis: that of the features of `gate`, -1 where it is the last.
    """

    name: str
    steps: tuple[int, ...]
    leaves: tuple[str, ...]
    reads: tuple[int, ...]
    makes: tuple[Spot, ...]
    gate: int | None
    axis: int

    def made(self, program: Program, spots: Sequence[Spot]) -> tuple[int, ...]:
        """The values at these places of the block."""
        return tuple(program.steps[self.steps[k]].outs[which] for k, which in spots)


def blocks_of(flow: Flow, pattern: str) -> tuple[Block, ...]:
    r"""The blocks of a network in its order.

    Args:
        flow: the program, and what in it depends on what.
        pattern: a regular expression that is searched in each path. Leaves with the same first group (or whole match) are of
            one block: `blocks/(\d+)/feed_forward/`.

    Raises:
        ValueError: a pattern that is none, or matches nothing (the nearest parts are named); leaves that no step reads, or
            that a loop takes apart; two blocks of which one is inside the other.
    """
    readers = {name: _readers(flow, name, paths) for name, paths in _named(flow.names, pattern).items()}
    blocks = [_block(flow, name, steps) for name, steps in readers.items()]
    owner: dict[int, str] = {}
    for block in blocks:
        for i in block.steps:
            if (other := owner.setdefault(i, block.name)) != block.name:
                raise ValueError(
                    f"the blocks {other!r} and {block.name!r} of {pattern!r} share a {flow.program.steps[i].name!r}: one uses "
                    "its leaves before and behind the other"
                )
    return tuple(sorted(blocks, key=lambda block: block.steps[0]))


def part(flow: Flow, block: Block, spots: Sequence[Spot]) -> Program:
    """The steps of a block, and what they need that depends on no data, as a program of the values at these places."""
    hidden = set(flow.order).difference(block.steps)
    kept = tuple(step for i, step in enumerate(flow.program.steps) if i not in hidden)
    return replace(flow.program, steps=kept).wanted(block.made(flow.program, spots))


def check_alike(flow: Flow, block: Block, other: Block) -> None:
    """Raise ValueError unless a block can read what another one reads, in its place, and make what that makes."""
    program = flow.program

    def steps(b: Block) -> list[str]:
        return [program.steps[i].name for i in b.steps]

    if steps(block) != steps(other) or len(block.reads) != len(other.reads):
        raise ValueError(
            f"the blocks {other.name!r} and {block.name!r} are not computed alike, so neither can stand in the place of the "
            "other: take layers=1"
        )
    for what, ours, theirs in (
        ("reads", block.reads, other.reads),
        ("makes", block.made(program, other.makes), other.made(program, other.makes)),
    ):
        for a, b in zip(ours, theirs, strict=True):
            got, expected = (f"{program.avals[v].dtype}{list(program.shape(v))}" for v in (a, b))
            if got != expected:
                raise ValueError(
                    f"the block {block.name!r} {what} {got} where {other.name!r} {what} {expected}, so it cannot stand in "
                    "its place: take layers=1"
                )


def _named(paths: Sequence[str], pattern: str) -> dict[str, set[str]]:
    """Blocks by name, with the leaves that are theirs."""
    check_pattern("the pattern of blocks", pattern)
    named: dict[str, set[str]] = {}
    for path in paths:
        if (found := re.search(pattern, path)) is not None:
            named.setdefault(found.group(found.re.groups and 1) or "", set()).add(path)
    if not named:
        raise ValueError(_unmatched(pattern, paths))
    return named


def _unmatched(pattern: str, paths: Sequence[str]) -> str:
    """The message where a pattern matches no path: the nearest part of the network, and all parts, layers together."""
    parts = dict.fromkeys("/".join(keys[:k]) for keys in (path.split("/") for path in paths) for k in range(1, len(keys) + 1))
    words = re.sub(r"\\[a-zA-Z]|[^\w/]", "", pattern)
    nearest = max(parts, key=lambda part: difflib.SequenceMatcher(None, words, part, autojunk=False).ratio())
    listed = list(dict.fromkeys(re.sub(r"\d+(?=/|$)", "*", path.rpartition("/")[0] or path) for path in paths))
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return (
        f"the pattern of blocks {pattern!r} is found in no path: the nearest part of the network is {nearest!r}, parts are "
        f"{', '.join(listed[:LISTED])}{more}"
    )


def _readers(flow: Flow, name: str, paths: Collection[str]) -> frozenset[int]:
    """The steps in which leaves meet what depends on the inputs."""
    found = [i for i in flow.order if any(path in paths for path in _read(flow, flow.program.steps[i].ins))]
    if not found:
        raise ValueError(f"no step of the network reads {min(paths)!r} of the block {name!r}, so it has no outputs to mix")
    for i in found:
        step = flow.program.steps[i]
        if step.name == "scan" and any(p in paths for p in _read(flow, _taken_apart(step))):
            raise ValueError(
                f"the leaves of the block {name!r} are stacked and taken apart by a scan, which is one step: write the layers "
                "as a Python loop, with leaves of their own"
            )
    return frozenset(found)


def _read(flow: Flow, values: Sequence[int]) -> list[str]:
    return [path for v in values for path in flow.leaves.get(v, ())]


def _taken_apart(scan: Step) -> tuple[int, ...]:
    return scan.ins[scan.params["num_consts"] + scan.params["num_carry"] :]


def _block(flow: Flow, name: str, readers: Collection[int]) -> Block:
    """Every step on a way from one of the readers to another, and these."""
    program = flow.program
    behind: set[int] = set()
    before: set[int] = set()
    for i in flow.order:
        if i in readers or behind.intersection(program.steps[i].ins):
            behind.update(program.steps[i].outs)
    for i in reversed(flow.order):
        if i in readers or before.intersection(program.steps[i].outs):
            before.update(program.steps[i].ins)
    steps = tuple(
        i
        for i in flow.order
        if i in readers or (behind.intersection(program.steps[i].ins) and before.intersection(program.steps[i].outs))
    )
    own = [v for i in steps for v in program.steps[i].outs]
    read = dict.fromkeys(v for i in steps for v in program.steps[i].ins)
    reads = tuple(v for v in read if v in flow.data and v not in own)
    gate, axis = _gate(program, steps, reads)
    leaves = tuple(dict.fromkeys(_read(flow, tuple(read))))
    return Block(name, steps, leaves, reads, _made(program, steps), gate, axis)


def _made(program: Program, steps: Sequence[int]) -> tuple[Spot, ...]:
    """Where in a block the values are that are read outside."""
    inside, returned = set(steps), set(program.outputs)

    def leaves(value: int) -> bool:
        return value in returned or any(i not in inside for i, _ in program.consumers[value])

    return tuple((k, which) for k, i in enumerate(steps) for which, v in enumerate(program.steps[i].outs) if leaves(v))


def _gate(program: Program, steps: Sequence[int], reads: Sequence[int]) -> tuple[int | None, int]:
    """The first value that a block reads which has several features, or any, with their axis: its number in `reads`.

    A norm whose scale is the first weight of a block reads one over the deviation, which is one number for all features.
    """
    found: list[tuple[int, int, int]] = []
    for number, v in enumerate(reads):
        shape = program.shape(v)
        convolved = [axis for i in steps if (axis := _channels(program.steps[i], v)) is not None]
        axis = convolved[0] if convolved else len(shape) - 1
        if is_floating(program.avals[v]) and len(shape) > 1:
            found.append((shape[axis], number, -1 if axis == len(shape) - 1 else axis))
    several = [(number, axis) for size, number, axis in found if size > 1]
    return next(iter(several or [(number, axis) for _, number, axis in found]), (None, -1))


def _channels(step: Step, value: int) -> int | None:
    """The axis of the channels of a value that a convolution reads."""
    reads = step.name == "conv_general_dilated" and step.ins[0] == value
    return step.params["dimension_numbers"].lhs_spec[1] if reads else None
