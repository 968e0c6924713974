"""The multilayer perceptron."""

import itertools
from dataclasses import dataclass

from flax import nnx
from jaxtyping import Array, Float

from npmerge.models.build import Config


@dataclass(frozen=True)
class Mlp(Config):
    """Dense layers with ReLU between them.

    Attributes:
        inputs: features of an example.
        hidden: width of each hidden layer.
        classes: number of outputs.

    Example:
        >>> from npmerge.models import Mlp, abstract
        >>> variables = abstract(Mlp(inputs=4, hidden=(8, 6), classes=3)).variables
        >>> [layer["kernel"].shape for layer in variables["params"]["layers"].values()]
        [(4, 8), (8, 6), (6, 3)]
    """

    inputs: int = 64
    hidden: tuple[int, ...] = (128, 128)
    classes: int = 10

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(inputs,)."""
        return (self.inputs,)

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The network."""
        return _Mlp(self, rngs)


class _Mlp(nnx.Module):
    def __init__(self, config: Mlp, rngs: nnx.Rngs):
        widths = (config.inputs, *config.hidden, config.classes)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(widths)])

    def __call__(self, x: Float[Array, "n inputs"]) -> Float[Array, "n classes"]:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)
