"""The leaves of a folded network, from those of the network that was folded."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.folding.edits import NewLeaf
from alignment.folding.norms import Affine
from alignment.folding.streams import Reader
from alignment.program import Program


def remade(program: Program, leaf: NewLeaf, aval: Any, values: Mapping[int, Array]) -> Array:
    """A new leaf from the values that `ingredients` names, worked out in float32 and rounded once."""
    x = jnp.zeros(aval.shape, jnp.float32) if leaf.old is None else values[leaf.old]
    exact = jnp.promote_types(x.dtype, jnp.float32)
    x = x.astype(exact)
    for change in leaf.changes:
        if change.order == 2:
            x = x - x.mean(change.axis, keepdims=True)
            continue
        assert change.reader is not None
        scale, shift = _affine(change.reader.affine, values)
        if change.order == 0:
            x = x * scale.astype(exact).reshape([-1 if d == change.axis else 1 for d in range(x.ndim)])
        else:
            x = x + _through(program, change.reader, shift, values).reshape(x.shape).astype(exact)
    return x.astype(aval.dtype)


def ingredients(program: Program, leaves: Iterable[NewLeaf]) -> list[int]:
    """The values of the old program that new leaves are made of."""
    found: dict[int, None] = {}
    for leaf in leaves:
        found |= {} if leaf.old is None else {leaf.old: None}
        for change in leaf.changes:
            if change.reader is not None:
                found |= dict.fromkeys(a.vector for a in change.reader.affine)
                found |= {program.steps[change.reader.step].ins[change.reader.weight]: None}
    return list(found)


def _affine(affine: Sequence[Affine], values: Mapping[int, Array]) -> tuple[Array, Array]:
    """Scale and shift of the features: x -> scale * x + shift."""
    scale, shift = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    for step in affine:
        vector = values[step.vector]
        v = vector[tuple(slice(None) if d == step.axis else 0 for d in range(vector.ndim))].astype(jnp.float32)
        if step.name in ("mul", "div"):
            v = v if step.name == "mul" else 1 / v
            scale, shift = jnp.multiply(scale, v) if scale.ndim else v, shift * v if shift.ndim else shift
        else:
            v = v if step.name == "add" else -v
            shift = shift + v if shift.ndim else v
    return scale, shift


def _through(program: Program, reader: Reader, shift: Array, values: Mapping[int, Array]) -> Array:
    """What a contraction makes of features that are `shift` everywhere."""
    step, k = program.steps[reader.step], 1 - reader.weight
    weight = values[step.ins[reader.weight]].astype(jnp.float32)
    contracted, batch = step.params["dimension_numbers"]
    axis = contracted[k][tuple(contracted[reader.weight]).index(reader.axis)]
    kept = {*contracted[k], *batch[k]}
    shape = [n if d in kept else 1 for d, n in enumerate(program.shape(step.ins[k]))]
    features = jnp.broadcast_to(shift.reshape([-1 if d == axis else 1 for d in range(len(shape))]), shape)
    pair = (weight, features) if reader.weight == 0 else (features, weight)
    return jax.lax.dot_general(*pair, step.params["dimension_numbers"], precision=jax.lax.Precision.HIGHEST)
