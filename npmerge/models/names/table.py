"""What tables of names are made of: a row for each tensor that users have, in PyTorch's order, and its layout here."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from npmerge.models.build import Config

Shapes = Mapping[str, tuple[int, ...]]


class Layout(Protocol):
    """How one of their tensors becomes some of ours, and back. Takes and gives views where it can."""

    def ours(self, theirs: np.ndarray, /) -> list[np.ndarray]:
        """The leaves that the tensor holds."""
        ...

    def theirs(self, ours: Sequence[np.ndarray], /) -> np.ndarray:
        """The tensor that holds the leaves."""
        ...


@dataclass(frozen=True)
class Axes:
    """The same entries in another order of axes; None keeps them.

    Attributes:
        order: for each axis here, which one it is in PyTorch.
    """

    order: tuple[int, ...] | None = None

    def ours(self, theirs: np.ndarray, /) -> list[np.ndarray]:
        """See `Layout.ours`."""
        return [theirs if self.order is None else theirs.transpose(self.order)]

    def theirs(self, ours: Sequence[np.ndarray], /) -> np.ndarray:
        """See `Layout.theirs`."""
        return ours[0] if self.order is None else ours[0].transpose(np.argsort(self.order))


@dataclass(frozen=True)
class Fused:
    """Several tensors one after the other along their first axis in PyTorch.

    Attributes:
        each: layout of one of them.
        count: how many; equally long.
    """

    each: Axes
    count: int = 3

    def ours(self, theirs: np.ndarray, /) -> list[np.ndarray]:
        """See `Layout.ours`."""
        return [self.each.ours(x)[0] for x in np.split(theirs, self.count)]

    def theirs(self, ours: Sequence[np.ndarray], /) -> np.ndarray:
        """See `Layout.theirs`."""
        return np.concatenate([self.each.theirs([x]) for x in ours])


@dataclass(frozen=True)
class Flattened:
    """A dense layer behind a flattened image: channels come first in PyTorch, last here.

    Attributes:
        side: height and width of the image.
    """

    side: int

    def ours(self, theirs: np.ndarray, /) -> list[np.ndarray]:
        """See `Layout.ours`."""
        new = theirs.shape[0]
        return [theirs.reshape(new, -1, self.side, self.side).transpose(2, 3, 1, 0).reshape(-1, new)]

    def theirs(self, ours: Sequence[np.ndarray], /) -> np.ndarray:
        """See `Layout.theirs`."""
        new = ours[0].shape[1]
        return ours[0].reshape(self.side, self.side, -1, new).transpose(3, 2, 0, 1).reshape(new, -1)


AS_IS, LINEAR, CONVOLUTION = Axes(), Axes((1, 0)), Axes((2, 3, 1, 0))


@dataclass(frozen=True)
class Name:
    """A tensor that users have.

    Attributes:
        theirs: its name.
        ours: paths in a collection of the variables; none for a counter, an int64 that nothing here needs.
        layout: how its entries lie.
        collection: "params" or "batch_stats".
        optional: whether a file may lack it; it is written all the same.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: Layout = AS_IS
    collection: str = "params"
    optional: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths in the variables."""
        return tuple(f"{self.collection}/{path}" for path in self.ours)


Rows = tuple[Name, ...]


@dataclass(frozen=True)
class Names:
    """The names of one configuration.

    Attributes:
        rows: in the order of PyTorch's `state_dict`.
        spellings: (regular expression, replacement) that turn other names in use into those of the rows.
        ignored: regular expressions of names that hold nothing of the network.
    """

    rows: Rows
    spellings: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """One architecture as users have it.

    Attributes:
        config: its class.
        names: the table of a configuration.
        fields: `(shapes, described, given) -> fields`: what the shapes of the tensors and `config.json` (empty where there is
            none) tell of the configuration, beside the fields given. Raises ValueError for what it cannot represent.
        marks: regular expressions of names that together tell the architecture.
        types: what `config.json` calls it as "model_type".
        asks: fields that the tensors do not tell, without `config.json`.
    """

    config: type[Config]
    names: Callable[[Any], Names]
    fields: Callable[[Shapes, Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]
    marks: tuple[str, ...]
    types: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()


def inside(rows: Iterable[Name], theirs: str, ours: str = "") -> Rows:
    """The rows with names and paths that begin so."""
    return tuple(replace(x, theirs=theirs + x.theirs, ours=tuple(ours + path for path in x.ours)) for x in rows)


def linear(theirs: str, ours: str, *, bias: bool = True, layout: Layout = LINEAR) -> Rows:
    """A dense layer."""
    kernel = Name(f"{theirs}.weight", (f"{ours}/kernel",), layout)
    return (kernel, Name(f"{theirs}.bias", (f"{ours}/bias",))) if bias else (kernel,)


def convolution(theirs: str, ours: str, *, bias: bool = False) -> Rows:
    """A convolution in two dimensions."""
    return linear(theirs, ours, bias=bias, layout=CONVOLUTION)


def norm(theirs: str, ours: str, *, bias: bool = True) -> Rows:
    """LayerNorm, or RMSNorm without a bias."""
    scale = Name(f"{theirs}.weight", (f"{ours}/scale",))
    return (scale, Name(f"{theirs}.bias", (f"{ours}/bias",))) if bias else (scale,)


def batch_norm(theirs: str, ours: str) -> Rows:
    """BatchNorm: its scale and bias, its running statistics, and how many batches they have seen."""
    return (
        *norm(theirs, ours),
        Name(f"{theirs}.running_mean", (f"{ours}/mean",), collection="batch_stats"),
        Name(f"{theirs}.running_var", (f"{ours}/var",), collection="batch_stats"),
        Name(f"{theirs}.num_batches_tracked", (), optional=True),
    )


def embedding(theirs: str, ours: str, *, optional: bool = False) -> Rows:
    """A table of vectors."""
    return (Name(f"{theirs}.weight", (f"{ours}/embedding",), optional=optional),)


def count(shapes: Shapes, pattern: str) -> int:
    """How many numbers the group of a pattern matches among the names: never more than there are names."""
    return len(numbers(shapes, pattern))


def numbers(shapes: Shapes, pattern: str) -> list[int]:
    """What the group of a pattern matches among the names, in order."""
    return sorted({int(found[1]) for name in shapes if (found := re.search(pattern, name))})


def shape(shapes: Shapes, ending: str) -> tuple[int, ...]:
    """The shape of the tensor whose name ends so. Raises ValueError without one."""
    for name, found in shapes.items():
        if name == ending or name.endswith(f".{ending}"):
            return found
    raise ValueError(f"{ending!r} is missing")


def expect(described: Mapping[str, Any], **values: Any) -> None:
    """Unless `config.json` says so, or nothing about it. Raises ValueError with the key, what was got and what was expected."""
    for key, value in values.items():
        if described.get(key, value) not in (value, None):
            raise ValueError(f"config.json has {key} = {described[key]!r}, which is not supported: expected {value!r}")
