"""The registry of rules and what rules are made of. See `alignment.primitives` for what a rule is."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from alignment.unification.algebra import Terms
from alignment.unification.terms import Group, Term

Axes = tuple[Term | None, ...]


CHANGES_VALUE = {"convert_element_type", "stop_gradient", "reduce_precision"}
STEP = "one step of the loop at this depth"


@dataclass(frozen=True, eq=False)
class Source:
    """A leaf of the variables behind an array that shows its elements in another shape.

    `steps` are the operations in between, (primitive, parameters, output), or (STEP, depth) where a loop takes one step of it.

    Example:
        >>> apply = lambda v, x: x @ v["up"].T
        >>> v = {"up": jnp.arange(6.0).reshape(3, 2)}
        >>> source = alignment.trace(apply, v, jnp.ones((1, 2))).sites[0].source
        >>> source.path, [primitive.name for primitive, *_ in source.steps]
        ('up', ['transpose'])
        >>> source.view(v["up"]).tolist()  # what the contraction reads
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """

    path: str
    steps: tuple[tuple, ...] = ()

    def then(self, step: tuple) -> "Source":
        """The source after one more step."""
        return Source(self.path, (*self.steps, step))

    def view(self, leaf: Array) -> Array:
        """The array that this leaf becomes; the steps of loops stay as leading axes."""
        return _replayed(self.steps, leaf)

    def places(self, numbers: Array | np.ndarray) -> Any:
        """The same for numbers that say which element of the leaf is where: changes of value are passed over."""
        return _replayed([step for step in self.steps if step[0] == STEP or step[0].name not in CHANGES_VALUE], numbers)


def _replayed(steps: Sequence[tuple], x: Any) -> Any:
    for k, step in enumerate(steps):
        if step[0] == STEP:
            return jax.vmap(functools.partial(_replayed, steps[k + 1 :]))(x)
        primitive, params, output = step
        made = primitive.bind(x, **params)
        x = made[output] if primitive.multiple_results else made
    return x


@dataclass(frozen=True)
class Value:
    """What the tracer knows of an array: what its axes are made of, and where its numbers come from.

    Attributes:
        shape: of the array.
        axes: a term for each axis; None for one along which all numbers are equal (a broadcast), or of length one.
        data: whether it depends on the inputs, not only on the variables.
        constant: the number that every element is; None for any other array.
        square: whether it is the square of what has these axes: a sum over one leaves its rotations, anything else only its
            permutations.
        source: the leaf of the variables that it is, seen through changes of shape.

    Example:
        >>> from jax.extend.core import Primitive
        >>> seen = []
        >>> looked = Primitive("looked_in_example")
        >>> _ = looked.def_abstract_eval(lambda x, y: x)
        >>> @alignment.primitives.rule("looked_in_example")
        ... def _(terms, eqn):
        ...     seen.extend((value.shape, value.data, value.constant) for value in eqn.ins)
        ...     return [eqn.ins[0].axes]
        >>> apply = lambda v, x: looked.bind(x @ v["up"], jnp.zeros((1, 3)))
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3))}, jnp.ones((1, 2)))
        >>> seen  # features, and an array of zeros
        [((1, 3), True, None), ((1, 3), False, 0.0)]
    """

    shape: tuple[int, ...]
    axes: Axes
    data: bool = False
    constant: float | None = None
    square: bool = False
    source: Source | None = None

    @property
    def zero(self) -> bool:
        """Is identically zero."""
        return self.constant == 0


@dataclass(frozen=True)
class Equation:
    """One equation of a jaxpr, seen through the tracer's values: what a rule is given.

    Attributes:
        name: of the primitive.
        params: its parameters.
        ins: what is known of its operands.
        outs: the shapes of its results.

    Example:
        >>> from jax.extend.core import Primitive
        >>> seen = []
        >>> marked = Primitive("marked_in_example")
        >>> _ = marked.def_abstract_eval(lambda x, *, level: x)
        >>> @alignment.primitives.rule("marked_in_example")
        ... def _(terms, eqn):
        ...     seen.append((eqn.name, eqn.params["level"], eqn.ins[0].shape, eqn.outs))
        ...     return [eqn.ins[0].axes]
        >>> apply = lambda v, x: marked.bind(x @ v["up"], level=2)
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3))}, jnp.ones((1, 2)))
        >>> seen
        [('marked_in_example', 2, (1, 3), [(1, 3)])]
    """

    name: str
    params: Mapping[str, Any]
    ins: Sequence[Value]
    outs: Sequence[tuple[int, ...]]


Rule = Callable[[Terms, Equation], list[Axes]]
RULES: dict[str, Rule] = {}
UNSUPPORTED = "unsupported primitive"


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the primitives of these names, replacing an older one.

    Example:
        >>> from jax.extend.core import Primitive
        >>> double = Primitive("double_in_example")  # of a library of your own
        >>> _ = double.def_abstract_eval(lambda x: x)
        >>> apply = lambda v, x: double.bind(x @ v["up"]) @ v["down"]
        >>> v = {"up": jnp.ones((2, 3)), "down": jnp.ones((3, 1))}
        >>> @alignment.primitives.rule("double_in_example")
        ... def _(terms, eqn):
        ...     return [eqn.ins[0].axes]  # the result transforms as its operand does
        >>> alignment.trace(apply, v, jnp.ones((1, 2))).nodes["up"].group
        'linear'
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def unsupported(terms: Terms, eqn: Equation) -> list[Axes]:
    """Pin every axis of every operand and result: nothing is guessed.

    Example:
        >>> from jax.extend.core import Primitive
        >>> swirl = Primitive("swirl_in_example")
        >>> _ = swirl.def_abstract_eval(lambda x: x)
        >>> _ = alignment.primitives.rule("swirl_in_example")(alignment.primitives.unsupported)  # nobody is warned any more
        >>> graph = alignment.trace(lambda v, x: swirl.bind(x @ v["up"]), {"up": jnp.ones((2, 3))}, jnp.ones((1, 2)))
        >>> list(graph.nodes), graph.pinned[1].reason
        ([], "unsupported primitive 'swirl_in_example'")
    """
    reason = f"{UNSUPPORTED} {eqn.name!r}"
    for value in eqn.ins:
        for term in value.axes:
            if term is not None:
                terms.pin(term, reason)
    return [fixed(terms, shape, reason) for shape in eqn.outs]


def fixed(terms: Terms, shape: Sequence[int], reason: str, *, moved: bool = True) -> Axes:
    """Fresh pinned terms for an array of this shape, whose places may be any unless told that they are not `moved`.

    Example:
        >>> from jax.extend.core import Primitive
        >>> noisy = Primitive("noisy_in_example")
        >>> _ = noisy.def_abstract_eval(lambda x: x)
        >>> @alignment.primitives.rule("noisy_in_example")
        ... def _(terms, eqn):
        ...     return [alignment.primitives.fixed(terms, eqn.outs[0], "noise")]  # whatever goes in, nothing of it comes out
        >>> apply = lambda v, x: x @ v["up"] + noisy.bind(x @ v["other"])
        >>> graph = alignment.trace(apply, {"up": jnp.ones((2, 3)), "other": jnp.ones((2, 3))}, jnp.ones((1, 2)))
        >>> [p.reason for p in graph.pinned if p.path == "up" and p.axis == 1]
        ['noise', 'output']
    """
    return tuple(terms.fresh(n, pin=reason, moved=moved) for n in shape)


def hold(terms: Terms, term: Term | None, size: int, reason: str) -> Term:
    """Pin an axis on its way in and return a pinned one of `size` for the way out, whose places are not the same."""
    if term is not None:
        terms.pin(term, reason)
    return terms.fresh(size, pin=reason, moved=True)


def concrete(terms: Terms, value: Value, axis: int) -> Term:
    """The term of an axis; a uniform axis becomes an atom that may be permuted (or anything, where it is all zero)."""
    term = value.axes[axis]
    if term is not None:
        return term
    return filler(terms, value.shape[axis], zero=value.zero)


def filler(terms: Terms, size: int, *, zero: bool) -> Term:
    """Features that are all equal: anything may act on zeros, permutations of their own on any other constant."""
    return terms.fresh(size) if zero else terms.fresh(size, group=Group.PERMUTATION, alone=True)


def restrict(terms: Terms, term: Term | None, group: Group) -> None:
    """Shrink the group of an axis; a uniform one has none."""
    if term is not None:
        terms.restrict(term, group)
