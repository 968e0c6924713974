"""Functions of the user, by `module:function`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignment.checks import first_line, unknown
from alignment.graph import PyTree
from npmerge.learning.architectures import Apply, Architecture, TrainApply
from npmerge.learning.data import Examples
from npmerge.learning.members import Tensors
from npmerge.recipe.named import Named


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

    def shapes(self, tensors: Tensors) -> PyTree:
        """See `Architecture.shapes`."""
        real = {name: x for name, x in tensors.items() if jnp.issubdtype(x.dtype, jnp.floating)}
        return {name: jax.ShapeDtypeStruct(x.shape, jnp.float32) for name, x in real.items()}

    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """See `Architecture.tensors`."""
        return {name: np.asarray(x) for name, x in variables.items()}

    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Architecture.paths`."""
        return {name: (name,) for name in names}


def user_network(given: Named) -> UserFunction:
    """The network of a recipe. Raises ValueError for what cannot be imported, raises, or returns something else."""
    module, function = imported(given.name)
    check_arguments(given.name, given.arguments, list(inspect.signature(function).parameters))
    expected = "it is called with its arguments and must return apply(tensors, inputs), or (apply, train_apply)"
    try:
        made = function(**given.arguments)
    except Exception as error:  # whatever it is that the user's function raises
        raise ValueError(f"{given.name} raises {first_line(error)}: {expected}") from None
    apply, train_apply = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(apply, torch.nn.Module):
        raise ValueError(f"{given.name} returns a torch.nn.Module: write torch:{given.name}")
    if not callable(apply) or not (train_apply is None or callable(train_apply)):
        raise ValueError(f"{given.name} returns {type(made).__name__}: {expected}")
    return UserFunction(given.name, (apply, train_apply), source_of(module))


def check_takes(network: Architecture, variables: PyTree, examples: Examples) -> None:
    """Raise ValueError if a network of the user fails on the examples (their name, shape and dtype, what the network says).

    Those of `npmerge.models` say what they take, which is checked when examples are read.
    """
    if network.config is not None:
        return
    inputs = examples.inputs[:2]
    try:
        network.check(variables, inputs)
    except Exception as error:  # whatever it is that the network raises
        shape = ", ".join(map(str, ("examples", *inputs.shape[1:])))
        got = f"inputs of the shape ({shape}) and dtype {inputs.dtype}"
        raise ValueError(f"{examples.name}: the network cannot take {got}: {first_line(error)}") from None


def check_arguments(owner: str, given: Mapping[str, Any], valid: list[str]) -> None:
    """Raise ValueError for an argument that there is not; the nearest is named."""
    for key in given:
        if key not in valid:
            raise ValueError(unknown(f"argument of {owner}", key, valid))


def imported(text: str) -> tuple[ModuleType, Callable]:
    """The module and the function of `module:function`. Raises ValueError for what cannot be imported; the nearest is named."""
    module_name, _, name = text.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)  # where users have modules of their own
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        where = "modules are looked for in the folder in which the command runs, and where Python looks"
        raise ValueError(f"{text!r} cannot be imported: {error}; {where}") from None
    except Exception as error:  # whatever it is that the user's module raises
        raise ValueError(f"{text!r} cannot be imported: {first_line(error)}") from None
    finally:
        sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(unknown(f"function of {module_name}", name, [k for k, x in vars(module).items() if callable(x)]))
    return module, function


def source_of(module: ModuleType) -> Path | None:
    """The file of a module as records have paths: relative to where the command runs, if it lies there."""
    found = inspect.getsourcefile(module)
    if found is None:
        return None
    here, file = Path.cwd(), Path(found)
    return file.relative_to(here) if file.is_relative_to(here) else file
