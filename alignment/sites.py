"""Linear sites: for every weight the contraction it takes part in, as a matrix between features that can be tapped.

Whatever solves for weights (least squares, RegMean, Gram and Kronecker statistics) sees a dense layer, a convolution, an
attention projection or an expert alike: `output = input @ matrix`, with inputs (..., samples, rows), the weight seen as a
matrix (..., rows, columns) and outputs (..., samples, columns). The leading axes are copies: the steps of a loop over stacked
layers, experts, groups of a convolution.
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn
from jaxtyping import Array, Float, Int

from alignment.primitives import Source, Value
from alignment.primitives.registry import STEP
from alignment.unification.terms import Term

VIEWS = {"transpose", "reshape", "squeeze", "convert_element_type", "copy", "stop_gradient", "slice", "rev", "split", "unstack"}


@dataclass(frozen=True, eq=False)
class Use(abc.ABC):
    """An equation that reads a weight as a matrix.

    Attributes:
        name: the path of the weight, with "#2" and so on where it is used again.
        source: the leaf of the variables and how it became the operand.
        location: the equation, one number for each level of nested calls.
        weight: which operand of the equation the weight is.
        stacked: for each loop around the equation, whether the weight is another one in each of its steps.
        primitive: the name of the equation.
        params: the parameters of the equation.
        shape: the shape of the weight as the equation sees it.
    """

    name: str
    source: Source
    location: tuple[int, ...]
    weight: int
    stacked: tuple[bool, ...]
    primitive: str
    params: Mapping[str, Any]
    shape: tuple[int, ...]

    @property
    def path(self) -> str:
        """The path of the leaf."""
        return self.source.path

    def matrix(self, leaf: Array) -> Float[Array, "*copies rows columns"]:
        """The weight as a matrix that the inputs are multiplied with from the left."""
        return over(sum(self.stacked), self._as_matrix)(self.source.view(leaf))

    def replaced(self, leaf: Array, matrix: Float[Array, "*copies rows columns"]) -> Array:
        """The leaf with this matrix in place of its own; what the site does not read of it stays."""
        places, new = self.places(np.shape(leaf)), jnp.asarray(matrix).astype(leaf.dtype)
        return jnp.ravel(leaf).at[jnp.ravel(places)].set(jnp.ravel(new)).reshape(jnp.shape(leaf))

    def places(self, shape: tuple[int, ...]) -> Int[Array | np.ndarray, "*copies rows columns"]:
        """For each element of the matrix the number of the element that it is of a leaf of this shape, raveled."""
        numbers = np.arange(math.prod(shape)).reshape(shape)
        return over(sum(self.stacked), self._as_matrix)(self.source.places(numbers))

    @abc.abstractmethod
    def inputs(self, x: Array) -> Array:
        """What meets the matrix, from the other operand: samples and what each of them reads are the last axes."""

    @abc.abstractmethod
    def _as_matrix(self, weight: Array) -> Array:
        """The operand as a matrix."""


@dataclass(frozen=True, eq=False)
class Site(Use):
    """One contraction of a weight with features: a "dot_general" or "conv_general_dilated".

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"].T, 0) @ v["down"]
        >>> v = {"up": jnp.arange(6.0).reshape(3, 2), "down": jnp.ones((3, 1))}
        >>> site = alignment.trace(apply, v, jnp.ones((1, 2))).sites[0]
        >>> site.matrix(v["up"]).tolist()  # what x is multiplied with
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
        >>> site.replaced(v["up"], 10 * site.matrix(v["up"])).tolist()  # in the shape that it is stored in
        [[0.0, 10.0], [20.0, 30.0], [40.0, 50.0]]
    """

    def inputs(self, x: Array) -> Float[Array, "*groups samples rows"]:
        """The features that the matrix meets, from the other operand; patches, in a convolution."""
        if self.primitive == "dot_general":
            (contracted, batch), _ = self._dims(1 - self.weight)
            return _arranged(x, batch, _free(x.ndim, contracted, batch), contracted)
        patches, groups = self._patches(x), self.params["feature_group_count"]
        grouped = patches.reshape(-1, patches.shape[-2], groups, patches.shape[-1] // groups)
        rows = jnp.moveaxis(grouped, 2, 0).reshape(groups, len(grouped), -1)
        return rows if groups > 1 else rows[0]

    def _patches(self, x: Array) -> Array:
        """What the window of a convolution sees at each place of its result: (*places, window, channels)."""
        p, numbers = self.params, self.params["dimension_numbers"]
        x = x.transpose(*(numbers.lhs_spec[numbers.out_spec.index(d)] for d in self.samples(x.ndim)), numbers.lhs_spec[1])
        axes = [self.samples(x.ndim).index(d) for d in numbers.out_spec[2:]]
        config = [(0, 0, 0)] * x.ndim
        for d, (low, high), dilation in zip(axes, p["padding"], p["lhs_dilation"], strict=True):
            config[d] = (low, high, dilation - 1)
        x = jax.lax.pad(x, jnp.zeros((), x.dtype), config)
        window = [self.shape[d] for d in numbers.rhs_spec[2:]]
        seen = []
        for place in np.ndindex(*window):
            cut = [slice(None)] * x.ndim
            for d, k, size, stride, step in zip(axes, place, window, p["window_strides"], p["rhs_dilation"], strict=True):
                cut[d] = slice(k * step, x.shape[d] - (size - 1 - k) * step, stride)
            seen.append(x[tuple(cut)])
        return jnp.stack(seen, -2)

    def outputs(self, y: Array) -> Float[Array, "*groups samples columns"]:
        """The result of the equation in the same arrangement."""
        if self.primitive == "conv_general_dilated":
            return _grouped(y, self.params["dimension_numbers"].out_spec[1], self.params["feature_group_count"])
        copies, columns = self._made(y.ndim)
        return _arranged(y, copies, self.samples(y.ndim), columns)

    def samples(self, ndim: int) -> tuple[int, ...]:
        """Which axes of the result of the equation, of so many, are samples."""
        if self.primitive == "conv_general_dilated":
            return _free(ndim, [self.params["dimension_numbers"].out_spec[1]])
        return _free(ndim, *self._made(ndim))

    def _made(self, ndim: int) -> tuple[Sequence[int], Sequence[int]]:
        """Which axes of the result of a dot product are copies and columns."""
        (_, batch), free = self._dims(self.weight)
        first = len(batch) if self.weight == 0 else ndim - free
        return range(len(batch)), range(first, first + free)

    def _dims(self, operand: int) -> tuple[tuple[Sequence[int], Sequence[int]], int]:
        """Contracted and batch axes of an operand of a dot product, and how many free ones the weight has."""
        contracted, batch = self.params["dimension_numbers"]
        free = len(self.shape) - len(contracted[self.weight]) - len(batch[self.weight])
        return (contracted[operand], batch[operand]), free

    def _as_matrix(self, weight: Array) -> Array:
        if self.primitive == "dot_general":
            (contracted, batch), _ = self._dims(self.weight)
            return _arranged(weight, batch, contracted, _free(weight.ndim, contracted, batch))
        numbers, groups = self.params["dimension_numbers"], self.params["feature_group_count"]
        made, inner, *window = numbers.rhs_spec
        by_group = weight.transpose(made, *_free(weight.ndim, [made]))
        by_group = by_group.reshape(groups, -1, *by_group.shape[1:])
        places = [2 + d - (d > made) for d in (*window, inner)]
        matrix = _arranged(by_group, [0], places, [1])
        return matrix if groups > 1 else matrix[0]


def followed(eqn: JaxprEqn, ins: Sequence[Value], output: int) -> Source | None:
    """The leaf behind a result that only shows the elements of one leaf in another shape."""
    name, source = eqn.primitive.name, ins[0].source if ins else None
    only_units = name == "broadcast_in_dim" and math.prod(eqn.params["shape"]) == math.prod(ins[0].shape)
    if source is None or (name not in VIEWS and not only_units):
        return None
    return source.then((eqn.primitive, dict(eqn.params), output))


def site_of(eqn: JaxprEqn, ins: Sequence[Value], location: tuple[int, ...], loops: tuple[Term, ...]) -> Site | None:
    """The site that an equation is, if it contracts a leaf with something that depends on the inputs."""
    name = eqn.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return None
    for k, value in enumerate(ins):
        weighs = name == "dot_general" or (k == 1 and eqn.params["batch_group_count"] == 1)
        if weighs and value.source is not None and ins[1 - k].data:
            stacked = stacked_in(value.source, loops)
            return Site(value.source.path, value.source, location, k, stacked, name, eqn.params, value.shape)
    return None


def stacked_in(source: Source, loops: tuple[Term, ...]) -> tuple[bool, ...]:
    """For each loop around an equation, whether it takes one step of the leaf at a time."""
    return tuple(any(s == (STEP, depth) for s in source.steps) for depth in range(len(loops)))


def over(axes: int, function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The function for each place along so many leading axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function


def _free(ndim: int, *taken: Sequence[int]) -> tuple[int, ...]:
    return tuple(d for d in range(ndim) if not any(d in t for t in taken))


def _arranged(x: Array, kept: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> Array:
    """An array with the axes `kept` in front, then one axis of all rows and one of all columns."""
    sizes = [x.shape[d] for d in kept]
    return x.transpose(*kept, *rows, *columns).reshape(*sizes, math.prod(x.shape[d] for d in rows), -1)


def _grouped(x: Array, channel: int, groups: int) -> Array:
    x = jnp.moveaxis(x, channel, -1)
    if groups == 1:
        return x.reshape(-1, x.shape[-1])
    return jnp.moveaxis(x.reshape(-1, groups, x.shape[-1] // groups), 1, 0)
