"""Networks that run, from the tensors of a recipe's models: ours, those of `npmerge.models` by name, or a user's function."""

import dataclasses
import functools
import importlib
import inspect
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import unknown
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.names import from_named, named_shapes, paths_of, to_named
from npmerge.checkpoint.network import network_config
from npmerge.checkpoint.recognise import config_of
from npmerge.checkpoint.sharded import ShardedModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.learning.members import Tensors
from npmerge.models import MODELS, Config, abstract
from npmerge.recipe.blocks import Named
from npmerge.recipe.layers import layers_of

Apply = Callable[[PyTree, Any], PyTree]
TrainApply = Callable[[PyTree, Any], tuple[PyTree, PyTree]]


@dataclass(frozen=True)
class Architecture(ABC):
    """A network as functions, and the way between its variables and tensors by name."""

    @property
    @abstractmethod
    def apply(self) -> Apply:
        """`(variables, inputs) -> outputs` in evaluation mode: the same object each time, for what is compiled by it."""

    @property
    @abstractmethod
    def train_apply(self) -> TrainApply | None:
        """`(variables, inputs) -> (outputs, variables with new statistics)`; None for networks without."""

    @property
    def config(self) -> Config | None:
        """The configuration, where it is one of `npmerge.models`."""
        return None

    @property
    def source(self) -> Path | None:
        """The file of a user's code."""
        return None

    @abstractmethod
    def variables(self, tensors: Tensors) -> PyTree:
        """The variables, in float32. Raises ValueError for tensors that are not the network's (all are named)."""

    @abstractmethod
    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """The tensors by name, for those names that are of the network."""

    @abstractmethod
    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Where tensors stand among the variables."""

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """Paths of variables from the inputs to the outputs, as far as names tell."""
        layers = layers_of(paths := list(paths))

        def place(path: str) -> tuple:
            return (1 if layers.place(path) else 2 * layers.is_after(path), _natural(path))

        return sorted(paths, key=place)

    @property
    def forward(self) -> Apply:
        """The outputs with the statistics of the batch, which a network being merged learns with."""
        return self.apply if self.train_apply is None else _forward(self.train_apply)


@dataclass(frozen=True)
class Known(Architecture):
    """One of `npmerge.models`; its tensors have the names of PyTorch, or the paths of our own files."""

    known: Config
    own: bool = False

    @property
    def apply(self) -> Apply:
        """See `Architecture.apply`."""
        return abstract(self.known).apply

    @property
    def train_apply(self) -> TrainApply | None:
        """See `Architecture.train_apply`."""
        network = abstract(self.known)
        return network.train_apply if jax.tree.leaves(network.variables["batch_stats"]) else None

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.known

    def variables(self, tensors: Tensors) -> PyTree:
        """See `Architecture.variables`."""
        if not self.own:
            return from_named(self.known, tensors)
        shapes = abstract(self.known).variables
        own = flatten(shapes)
        if wrong := [f"{x} (got {_shape(tensors, x)}, expected {_shape(own, x)})" for x in {**own, **tensors} if
                     _shape(tensors, x) != _shape(own, x)]:  # fmt: skip
            raise ValueError(f"the tensors are not those of {self.known}: {', '.join(wrong)}")
        leaves = [jnp.asarray(np.asarray(tensors[path]).astype(np.float32)) for path in own]
        return jax.tree.unflatten(jax.tree.structure(shapes), leaves)

    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """See `Architecture.tensors`."""
        if self.own:
            return {path: np.asarray(x) for path, x in flatten(variables).items()}
        return to_named(self.known, variables, like=like)

    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Architecture.paths`."""
        return {name: (name,) for name in names} if self.own else paths_of(self.known, names)

    def in_order(self, paths: Iterable[str]) -> list[str]:
        """In the order of PyTorch's `state_dict`, where there is one."""
        try:
            theirs = paths_of(self.known, named_shapes(self.known))
        except CheckpointError:
            return super().in_order(paths)
        order = {path: k for k, path in enumerate(path for own in theirs.values() for path in own)}
        return sorted(paths, key=order.__getitem__)


@dataclass(frozen=True)
class UserFunction(Architecture):
    """`module:function` of a user: called with its arguments it returns `apply`, or `(apply, train_apply)`.

    Variables are a dictionary of the model's floating-point tensors by their names.
    """

    path: str
    functions: tuple[Apply, TrainApply | None]
    file: Path | None

    @property
    def apply(self) -> Apply:
        """See `Architecture.apply`."""
        return self.functions[0]

    @property
    def train_apply(self) -> TrainApply | None:
        """See `Architecture.train_apply`."""
        return self.functions[1]

    @property
    def source(self) -> Path | None:
        """See `Architecture.source`."""
        return self.file

    def variables(self, tensors: Tensors) -> PyTree:
        """See `Architecture.variables`."""
        real = {name: x for name, x in tensors.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        return {name: jnp.asarray(np.asarray(x).astype(np.float32)) for name, x in real.items()}

    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """See `Architecture.tensors`."""
        return {name: np.asarray(x) for name, x in variables.items()}

    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Architecture.paths`."""
        return {name: (name,) for name in names}


def architecture_of(given: Named | None, reference: StoredModel, tensors: Tensors) -> Architecture:
    """The network of a recipe's models.

    Args:
        given: by the recipe; None to tell it by the reference.
        reference: whose header and `config.json` may describe it.
        tensors: of one of the models.

    Raises:
        ValueError: unknown names, arguments that the architecture does not take, and tensors that no known one has.
    """
    if given is not None and ":" in given.name:
        return _user_function(given)
    if given is None or not given.arguments:
        described = _described(reference)
        if described is not None and (given is None or type(described).__name__ == given.name):
            return Known(described, own=True)
    own = "params" in {name.split("/")[0] for name in tensors}
    arguments = {} if given is None else {key: _hashable(x) for key, x in given.arguments.items()}
    if given is None:
        return Known(config_of(tensors, reference.config, source=reference.name))
    kind = {x.__name__: x for x in MODELS}.get(given.name)
    if kind is None:
        raise ValueError(unknown("architecture", given.name, [x.__name__ for x in MODELS]) + ", or module:function")
    check_arguments(given.name, arguments, [f.name for f in dataclasses.fields(kind)])  # type: ignore[arg-type]
    if own:
        return Known(kind(**arguments), own=True)
    found = config_of(tensors, reference.config, source=reference.name, **arguments)
    if type(found) is not kind:
        raise ValueError(f"the tensors of {reference.name} are those of {type(found).__name__}, not of {given.name}")
    return Known(found)


def check_arguments(owner: str, given: Mapping[str, Any], valid: list[str]) -> None:
    """Raise ValueError for an argument that there is not; the nearest is named."""
    for key in given:
        if key not in valid:
            raise ValueError(unknown(f"argument of {owner}", key, valid))


def _user_function(given: Named) -> UserFunction:
    module_name, _, name = given.name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"{given.name!r} cannot be imported: {error}; PYTHONPATH says where Python looks") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(unknown(f"function of {module_name}", name, [k for k, x in vars(module).items() if callable(x)]))
    check_arguments(given.name, given.arguments, list(inspect.signature(function).parameters))
    made = function(**given.arguments)
    apply, train_apply = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not callable(apply) or not (train_apply is None or callable(train_apply)):
        raise ValueError(f"{given.name} must return apply, or (apply, train_apply), got {type(made).__name__}")
    file = inspect.getsourcefile(module)
    return UserFunction(given.name, (apply, train_apply), Path(file) if file else None)


def _described(reference: StoredModel) -> Config | None:
    """What the header of a file of ours says."""
    if not isinstance(reference, ShardedModel) or len(reference.files) != 1:
        return None
    ((path, header),) = reference.files.items()
    try:
        record = json.loads(header.metadata["npmerge"])["record"]
        described = record["architecture"]
    except (ValueError, KeyError, TypeError):
        return None
    return network_config(path, described)


@functools.cache
def _forward(train_apply: TrainApply) -> Apply:
    return lambda variables, inputs: train_apply(variables, inputs)[0]


def _shape(tensors: Mapping[str, Any], path: str) -> str:
    return str(tuple(tensors[path].shape)) if path in tensors else "none"


def _natural(name: str) -> list:
    """Numbers in names are numbers."""
    return [(0, int(x), "") if x.isdigit() else (1, 0, x) for x in re.split(r"(\d+)", name) if x]


def _hashable(x: Any) -> Any:
    return tuple(x) if isinstance(x, list) else x
