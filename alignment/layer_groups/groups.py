"""A network cut into consecutive groups of layers: each runs a part of the equations of its jaxpr.

What depends on the data is made once, in the order of the equations, and carried over every cut behind which it is still read:
a residual stream, a mask, what a skip connection brings. What depends on the variables alone (weights cast to another dtype, a
transposed embedding) or on nothing (a causal mask, numbers drawn from a fixed key) has no place in that order: every group
that reads it makes it anew. So a group needs no leaves but those that it reads, and groups one after another are the network.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jaxtyping import Array

from alignment.graph import PyTree, Signature, as_shapes, flatten, signature
from alignment.program import CUSTOM, Program, closed_program, flattened, is_floating

Apply = Callable[..., PyTree]
Location = tuple[int, ...]
Values = Mapping[int, Array]


@dataclass(frozen=True, eq=False)
class Flow:
    """What depends on what in a program whose first inputs are the leaves of variables and whose others are data.

    Attributes:
        program: the program, nothing in it unused.
        names: the paths of the leaves.
    """

    program: Program
    names: tuple[str, ...]

    @functools.cached_property
    def data(self) -> frozenset[int]:
        """The values that depend on the inputs."""
        return self.program.reached(self.program.inputs[len(self.names) :])

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The steps that depend on the inputs."""
        return tuple(i for i, step in enumerate(self.program.steps) if self.data.intersection(step.outs))

    @functools.cached_property
    def leaves(self) -> Mapping[int, tuple[str, ...]]:
        """The leaves that each value is made of which depends on variables alone."""
        found: dict[int, tuple[str, ...]] = {n: (path,) for path, n in zip(self.names, self.program.inputs, strict=False)}
        for step in self.program.steps:
            if not self.data.intersection(step.outs):
                of = tuple(dict.fromkeys(path for v in step.ins for path in found.get(v, ())))
                found.update((out, of) for out in step.outs if of)
        return found

    @functools.cached_property
    def last(self) -> Mapping[int, int]:
        """For each value made of data the place in `order` at which it is last read; that behind all of them for outputs."""
        found = {v: k for k, i in enumerate(self.order) for v in self.program.steps[i].ins if v in self.data}
        return {**found, **{v: len(self.order) for v in self.program.outputs if v in self.data}}


@dataclass(frozen=True, eq=False)
class LayerGroup:
    """A part of a network, for inputs of one shape.

    Attributes:
        program: its steps, and what they need that depends on no data.
        leaves: the numbers of the leaves of the variables that it reads, by path, in the order in which it does.
        inputs: the numbers of the inputs of the network.
        needs: the values that it reads of those that earlier groups make.
        makes: the values that later groups read; the outputs of the network, for the last group.
        learned: those of `makes` that are floating-point and depend on its leaves and on data.
        outputs: for the last group the numbers of what the network returns, empty for others.
        structure: the tree that this is.
    """

    program: Program
    leaves: Mapping[str, int]
    inputs: tuple[int, ...]
    needs: tuple[int, ...]
    makes: tuple[int, ...]
    learned: tuple[int, ...]
    outputs: tuple[int, ...]
    structure: jax.tree_util.PyTreeDef

    def __call__(self, params: Mapping[str, Array], inputs: PyTree, values: Values) -> dict[int, Array]:
        """The values that it makes, by number. Traceable.

        Args:
            params: the leaves that it reads by path; others may be there.
            inputs: those of the network.
            values: what earlier groups have made.
        """
        env = {number: params[path] for path, number in self.leaves.items()}
        env |= dict(zip(self.inputs, jax.tree.leaves(inputs), strict=True))
        env |= {number: values[number] for number in self.needs}
        return dict(zip(self.makes, self.program.run(env), strict=True))

    def returned(self, made: Values) -> PyTree:
        """What the network returns, of the values that the last group makes."""
        return jax.tree.unflatten(self.structure, [made[number] for number in self.outputs])


@dataclass(frozen=True)
class Cuts:
    """Where a network is cut; hashable, so that it can be a static argument. `alignment.layer_groups.cut_places` makes them.

    Attributes:
        apply: the network, `apply(variables, inputs) -> outputs`.
        variables: the signature of its variables.
        behind: the equations behind which all groups but the last end, in the order of evaluation.
        values: that the program has, by which it is known again for batches of other sizes.
    """

    apply: Apply
    variables: Signature
    behind: tuple[Location, ...]
    values: int

    def groups(self, inputs: PyTree) -> tuple[LayerGroup, ...]:
        """The groups for inputs of these shapes.

        Raises:
            ValueError: inputs for which the function has other equations.
        """
        return _groups(self, signature(inputs))


def opened(behind: tuple[Location, ...] | None) -> Callable[[JaxprEqn, Location], bool]:
    """Which calls are inlined: those that hold a cut, all for None; never a function with a derivative of its own."""

    def opens(eqn: JaxprEqn, location: Location) -> bool:
        inside = behind is None or any(len(cut) > len(location) and cut[: len(location)] == location for cut in behind)
        return inside and eqn.primitive.name not in CUSTOM

    return opens


def flow_of(
    apply: Apply, variables: Signature, inputs: Signature, behind: tuple[Location, ...] | None
) -> tuple[Flow, jax.tree_util.PyTreeDef]:
    """The program of a network with the calls `opened`, and the tree that its outputs form."""
    closed, structure = _closed(apply, variables, inputs)
    program = flattened(closed, opened(behind))
    names = tuple(flatten(as_shapes(variables)))
    return Flow(program.wanted(program.outputs), names), structure


@functools.lru_cache(maxsize=16)
def _closed(apply: Apply, variables: Signature, inputs: Signature) -> tuple[ClosedJaxpr, jax.tree_util.PyTreeDef]:
    closed, returned = closed_program(apply, as_shapes(variables), (as_shapes(inputs),))
    return closed, jax.tree.structure(returned)


@functools.lru_cache(maxsize=64)
def _groups(cuts: Cuts, inputs: Signature) -> tuple[LayerGroup, ...]:
    flow, structure = flow_of(cuts.apply, cuts.variables, inputs, cuts.behind)
    if len(flow.program.avals) != cuts.values:
        shapes = ", ".join(str(shape) for shape, _ in inputs[1])
        raise ValueError(
            f"the network has other equations for inputs of shape {shapes} than for those that it was cut with: give batches "
            "of the same kind, of two examples or more"
        )
    places = [flow.program.steps[i].location for i in flow.order]
    bounds = [0, *(sum(place[: len(cut)] <= cut for place in places) for cut in cuts.behind), len(places)]
    last = len(cuts.behind)
    return tuple(_group(flow, structure, a, b, last=k == last) for k, (a, b) in enumerate(itertools.pairwise(bounds)))


def _group(flow: Flow, structure: jax.tree_util.PyTreeDef, start: int, end: int, *, last: bool) -> LayerGroup:
    """The group of the steps from place `start` to place `end` of the order."""
    program, others = flow.program, set(flow.order) - set(flow.order[start:end])
    here = [v for i in flow.order[start:end] for v in program.steps[i].outs]
    makes = tuple(dict.fromkeys(program.outputs)) if last else tuple(v for v in here if flow.last.get(v, 0) >= end)
    kept = tuple(step for i, step in enumerate(program.steps) if i not in others)
    part = replace(program, steps=kept).wanted(makes)
    made = {v for step in part.steps for v in step.outs}
    read = dict.fromkeys([*(v for step in part.steps for v in step.ins), *makes])
    paths = dict(zip(program.inputs, flow.names, strict=False))
    leaves = {paths[v]: v for v in read if v in paths}
    moved = part.reached(leaves.values()) & flow.data & made
    return LayerGroup(
        program=part,
        leaves=leaves,
        inputs=program.inputs[len(flow.names) :],
        needs=tuple(sorted((read.keys() & flow.data).difference(made, program.inputs))),
        makes=makes,
        learned=tuple(v for v in makes if v in moved and is_floating(program.avals[v])),
        outputs=program.outputs if last else (),
        structure=structure,
    )
