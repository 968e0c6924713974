"""The order in which a network with blocks taken out of it is computed."""

import functools
import graphlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax

from alignment.graph import Signature
from alignment.layer_groups.groups import Apply, Flow, flow_of
from alignment.program import Program, Step, is_floating
from npmerge.routing.blocks import Block, Spot, blocks_of, check_alike, part
from npmerge.routing.routers import pools


@dataclass(frozen=True, eq=False)
class Plan:
    """A network for inputs of one shape.

    Attributes:
        flow: its program.
        structure: the tree that its outputs form.
        blocks: in the order of the network.
        pools: for each block the blocks whose experts it has.
        units: what is computed one after another: steps between the blocks, and blocks by number.
        trunk: the paths of the leaves that no block reads, or something besides.
    """

    flow: Flow
    structure: jax.tree_util.PyTreeDef
    blocks: tuple[Block, ...]
    pools: Sequence[Sequence[int]]
    units: tuple[Step | int, ...]
    trunk: tuple[str, ...]

    @property
    def experts(self) -> tuple[str, ...]:
        """The paths of the leaves that blocks read."""
        return tuple(dict.fromkeys(path for block in self.blocks for path in block.leaves))

    @property
    def inputs(self) -> tuple[int, ...]:
        """The numbers of the inputs of the network."""
        return self.flow.program.inputs[len(self.flow.names) :]

    def features(self, block: Block) -> int | None:
        """How many features a router of the block reads."""
        return None if block.gate is None else self.flow.program.shape(block.reads[block.gate])[block.axis]

    @functools.cached_property
    def parts(self) -> dict[tuple[int, int], Program]:
        """The program of the block `j` in the place of the block `i`, by (i, j)."""
        spots: list[tuple[Spot, ...]] = [block.makes for block in self.blocks]
        return {(i, j): part(self.flow, self.blocks[j], spots[i]) for i, pool in enumerate(self.pools) for j in pool}


@functools.lru_cache(maxsize=64)
def plan_of(apply: Apply, variables: Signature, inputs: Signature, pattern: str, layers: int) -> Plan:
    """The plan of a network.

    Raises:
        ValueError: what `blocks_of` raises; fewer blocks than layers, or blocks that cannot take each other's places; a block
            that makes something else than floating-point numbers; blocks that need each other.
    """
    flow, structure = flow_of(apply, variables, inputs, None)
    blocks = blocks_of(flow, pattern)
    every = pools(len(blocks), layers)
    for block, pool in zip(blocks, every, strict=True):
        for v in block.made(flow.program, block.makes):
            if not is_floating(flow.program.avals[v]):
                raise ValueError(f"the block {block.name!r} makes {flow.program.avals[v]}, which has no mean over the experts")
        for j in pool[1:]:
            check_alike(flow, blocks[j], block)
    outer = _without(flow.program, blocks)
    return Plan(flow, structure, blocks, every, _ordered(flow.program, outer, blocks), _trunk(flow, outer, blocks))


def _without(program: Program, blocks: Sequence[Block]) -> Program:
    """What is computed between the blocks, as a program of what these read and of the outputs."""
    inside = {i for block in blocks for i in block.steps}
    kept = tuple(step for i, step in enumerate(program.steps) if i not in inside)
    return replace(program, steps=kept).wanted([*program.outputs, *(v for block in blocks for v in block.reads)])


def _ordered(program: Program, outer: Program, blocks: Sequence[Block]) -> tuple[Step | int, ...]:
    """Steps and blocks, each behind what it reads."""
    units: list[tuple[Step | int, Sequence[int], Sequence[int]]] = [(step, step.ins, step.outs) for step in outer.steps]
    units += [(k, block.reads, block.made(program, block.makes)) for k, block in enumerate(blocks)]
    maker = {v: n for n, (_, _, made) in enumerate(units) for v in made}
    needs = {n: {maker[v] for v in read if v in maker} for n, (_, read, _) in enumerate(units)}
    try:
        return tuple(units[n][0] for n in graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError:
        names = ", ".join(repr(block.name) for block in blocks)
        raise ValueError(f"blocks need what others make that need them, among {names}: take a larger part as a block") from None


def _trunk(flow: Flow, outer: Program, blocks: Sequence[Block]) -> tuple[str, ...]:
    own = {path for block in blocks for path in block.leaves}
    read = {v for step in outer.steps for v in step.ins}.union(outer.outputs)
    numbers = zip(flow.names, flow.program.inputs, strict=False)
    return tuple(path for path, v in numbers if path not in own or v in read)
