"""Any pre-norm transformer rewritten so that its residual stream may be rotated: `fold`.

LayerNorm(x) = gamma * (x - mean) / sqrt(var + eps) + beta keeps only permutations of a stream. Two rewritings, both exact,
leave RMSNorm without a scale, x / sqrt(mean(x^2) + eps), which commutes with every orthogonal map:
    gamma and beta go into the linear layers that read the norm,    W' = diag(gamma) W,   b' = b + beta W;
    the centring C x = x - mean(x) goes into everything that writes to the stream, W' = W C, b' = b C, tables too.
See Ashkboos et al. 2024 (SliceGPT), section 3, and Theus et al. 2025 (generalised linear mode connectivity for transformers).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jaxtyping import Array

from alignment.folding.carriers import facts
from alignment.folding.edits import Edits, NewLeaf, edits
from alignment.folding.new_leaves import ingredients, remade
from alignment.folding.rewriting import Rewriting
from alignment.folding.streams import Kept
from alignment.graph import PyTree, Signature, as_shapes, flatten, signature
from alignment.program import Program, closed_program, flattened


@dataclass(frozen=True, eq=False)
class _Plan:
    """A function and its folded form, for inputs of one shape."""

    old: Program
    new: Program
    leaves: Mapping[str, tuple[int, NewLeaf]]  # name -> number in the new program
    data: tuple[int, ...]
    outputs: Any  # the tree of the results
    kept: Sequence[Kept]

    def signature(self) -> dict[str, Any]:
        """What the folded variables are made of, whatever the shape of the inputs."""
        return {n: (leaf.old, [(c.order, c.axis) for c in leaf.changes]) for n, (_, leaf) in self.leaves.items()}


@dataclass(frozen=True, eq=False)
class Folded:
    """A network whose norms are folded into its weights.

    Attributes:
        variables: the folded network's, by path: arrays, or shapes where shapes were folded. Scales and biases of folded norms
            are gone. A leaf that must now differ by use (a head tied to an embedding) is there twice, as `path` and
            `path/untied`; a reader without a bias has one, `path/bias`, if its norm had.
        kept: what could not be folded, with the line of the user's source and the reason.
        gone: paths of the leaves that the folded network has no more.

    Example:
        >>> norm = lambda x, v: x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True)) * v["scale"]
        >>> apply = lambda v, x: norm(x @ v["up"], v) @ v["down"]
        >>> v = {"up": jnp.array([[1.0, 2.0]]), "scale": jnp.array([[3.0, 4.0]]), "down": jnp.array([[1.0], [10.0]])}
        >>> folded = alignment.fold(apply, v, jnp.ones((1, 1)))
        >>> folded.gone, folded.kept
        (('scale',), ())
        >>> folded.convert({**v, "scale": jnp.array([[5.0, 5.0]])})["down"].tolist()  # another network of this architecture
        [[5.0], [50.0]]
    """

    variables: dict[str, Any]
    kept: tuple[Kept, ...]
    gone: tuple[str, ...]
    _function: Callable[..., PyTree] = field(repr=False)
    _shapes: PyTree = field(repr=False)
    _plan: _Plan = field(repr=False)
    _plans: dict[Signature, _Plan] = field(repr=False, default_factory=dict)

    def apply(self, variables: Mapping[str, Array], *inputs: PyTree) -> PyTree:
        """The same function of the folded variables; inputs may have another batch size.

        Raises:
            ValueError: for variables with other paths, or if the function folds differently for inputs of this shape.
        """
        if odd := sorted(set(self.variables) ^ set(variables)):
            what = "missing" if odd[0] in self.variables else "none of its leaves"
            raise ValueError(f"variables do not fit the folded network: {odd[0]!r} is {what} (convert makes them)")
        plan = self._planned(inputs)
        values = {number: variables[name] for name, (number, _) in plan.leaves.items()}
        results = plan.new.run(values | dict(zip(plan.data, jax.tree.leaves(inputs), strict=True)))
        return jax.tree.unflatten(plan.outputs, results)

    def convert(self, variables: PyTree) -> dict[str, Array]:
        """The folded variables of another network of the same architecture. Pure, differentiable, works under jit.

        Raises:
            ValueError: for variables of another structure.
        """
        given, known = flatten(variables), flatten(self._shapes)
        for path in [*known, *given]:
            ours, theirs = (getattr(tree.get(path), "shape", None) for tree in (known, given))
            if ours != theirs:
                raise ValueError(
                    f"variables do not fit the function that was folded at {path!r}: got {theirs}, expected {ours}"
                )
        leaves = dict(zip(self._plan.old.inputs, given.values(), strict=False))
        made = [leaf for _, leaf in self._plan.leaves.values()]
        wanted = ingredients(self._plan.old, made)
        values = dict(zip(wanted, self._plan.old.wanted(wanted).run(leaves), strict=True))
        avals = self._plan.new.avals
        return {
            name: remade(self._plan.old, leaf, avals[number], values) if leaf.changes else values[number]
            for name, (number, leaf) in self._plan.leaves.items()
        }

    def _planned(self, inputs: tuple) -> _Plan:
        key = signature(inputs)
        if key not in self._plans:
            plan = _read(self._function, self._shapes, as_shapes(key))
            if plan.signature() != self._plan.signature():
                raise ValueError(f"the function folds differently for inputs of shapes {[shape for shape, _ in key[1]]}")
            self._plans[key] = plan
        return self._plans[key]


def fold(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> Folded:
    """Fold the norms of any pure function into its weights, so that its residual stream may be rotated.

    Nothing about the architecture has to be said: norms, their readers and the writers of the stream are found in the jaxpr.
    What cannot be folded (post-norm: the output of the norm is the stream) stays as it is and is named in `kept`. Nothing is
    computed but the new variables.

    Args:
        apply: the network in evaluation mode, a pure function of variables and inputs.
        variables: its parameters, arrays or `jax.ShapeDtypeStruct`.
        inputs: example inputs, arrays or `jax.ShapeDtypeStruct`.

    Raises:
        ValueError: for a function that returns something other than arrays or has side effects.

    Example:
        >>> norm = lambda x, v: x / jnp.sqrt(jnp.mean(x**2, 1, keepdims=True)) * v["scale"]
        >>> apply = lambda v, x: norm(x @ v["up"], v) @ v["down"]
        >>> v = {"up": jnp.array([[1.0, 2.0]]), "scale": jnp.array([[3.0, 4.0]]), "down": jnp.array([[1.0], [10.0]])}
        >>> x = jnp.ones((1, 1))
        >>> folded = alignment.fold(apply, v, x)
        >>> {path: leaf.tolist() for path, leaf in folded.variables.items()}  # the scale has gone into what reads it
        {'down': [[3.0], [40.0]], 'up': [[1.0, 2.0]]}
        >>> np.allclose(folded.apply(folded.variables, x), apply(v, x))
        True
        >>> graphs = alignment.trace(apply, v, x), alignment.trace(folded.apply, folded.variables, x)
        >>> [graph.nodes["up"].group for graph in graphs]
        ['permutation', 'orthogonal']
    """
    shapes = as_shapes(signature(variables))
    plan = _read(apply, shapes, as_shapes(signature(inputs)))
    folded = Folded({}, tuple(dict.fromkeys(plan.kept)), _gone(plan, shapes), apply, shapes, plan)
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))
    folded.variables.update(jax.eval_shape(folded.convert, shapes) if abstract else jax.jit(folded.convert)(variables))
    return folded


def _read(apply: Callable[..., PyTree], shapes: PyTree, inputs: tuple) -> _Plan:
    closed, outputs = closed_program(apply, shapes, inputs)
    names = list(flatten(shapes))
    old = flattened(closed)
    found: Edits = edits(facts(old, len(names)))
    rewriting = Rewriting(found)
    new = rewriting.program()
    leaves = _named(dict(zip(names, old.inputs, strict=False)), rewriting, new)
    return _Plan(old, new, leaves, old.inputs[len(names) :], jax.tree.structure(outputs), found.kept)


def _named(paths: Mapping[str, int], rewriting: Rewriting, new: Program) -> dict[str, tuple[int, NewLeaf]]:
    """Names for the leaves that the new program reads, in the order of the old ones, biases that are new at the end."""
    read, before = _read_by(new), _read_by(rewriting.edits.facts.program)
    found: dict[str, tuple[int, NewLeaf]] = {}
    made = {leaf: n for leaf, n in rewriting.made.items() if n in read}
    for path, number in paths.items():
        here = [(number, NewLeaf(number, ()))] if number in read or number not in before else []
        here += [(n, leaf) for leaf, n in made.items() if leaf.old == number]
        for k, entry in enumerate(here):
            found[_free(found, f"{path}/untied") if k else path] = entry
    names = {leaf: name for name, (_, leaf) in found.items()}
    for leaf, n in made.items():
        if leaf.old is None:
            found[_free(found, names[rewriting.edits.weight(leaf)] + "/bias")] = (n, leaf)
    return found


def _read_by(program: Program) -> set[int]:
    return {v for step in program.steps for v in step.ins} | set(program.outputs)


def _free(taken: Mapping[str, Any], name: str) -> str:
    return name if name not in taken else next(f"{name}{k}" for k in range(2, len(taken) + 3) if f"{name}{k}" not in taken)


def _gone(plan: _Plan, shapes: PyTree) -> tuple[str, ...]:
    return tuple(path for path in flatten(shapes) if path not in plan.leaves)
