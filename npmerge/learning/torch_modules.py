"""Modules of PyTorch as networks of recipes: of a user's function, or of transformers as a folder's `config.json` says."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from alignment.checks import first_line, kind_of
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.recognise import without_wrappers
from npmerge.checkpoint.torch_environment import imported as imported_package
from npmerge.checkpoint.torch_folder import transformers_module
from npmerge.checkpoint.torch_network import TorchFunctions, functions_of, path_of
from npmerge.checkpoint.trees import nested
from npmerge.learning.architectures import Apply, Architecture, TrainApply
from npmerge.learning.members import Tensors
from npmerge.learning.user_code import check_arguments, imported, source_of
from npmerge.recipe.named import Named

USER = "torch:"
FOLDER = "hf"
LISTED = 5


@dataclass(frozen=True)
class TorchModule(Architecture):
    """A module of PyTorch, whose tensors have the names of its state dictionary.

    Attributes:
        name: what messages call it.
        functions: of the module.
        runs: `apply` and, for modules with running statistics, `train_apply`.
        file: of a user's code.
        prefix: of names, which files may have or miss.
        ignored: patterns of names that the module has no use for.
        positions: that it has embeddings of; None where it has no table of them.
    """

    name: str
    functions: TorchFunctions
    runs: tuple[Apply, TrainApply | None]
    file: Path | None = None
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    positions: int | None = None

    @property
    def apply(self) -> Apply:
        """See `Architecture.apply`."""
        return self.runs[0]

    @property
    def train_apply(self) -> TrainApply | None:
        """See `Architecture.train_apply`."""
        return self.runs[1]

    @property
    def source(self) -> Path | None:
        """See `Architecture.source`."""
        return self.file

    def check(self, variables: PyTree, inputs: Any) -> None:
        """See `Architecture.check`; with values, also that outputs are those of PyTorch itself."""
        if self.positions is not None and np.ndim(inputs) == 2 and np.shape(inputs)[1] > self.positions:
            raise ValueError(f"the model has {self.positions} positions: give length: {self.positions} or less")
        self.functions.check(variables, inputs)

    def variables(self, tensors: Tensors) -> PyTree:
        """See `Architecture.variables`."""
        found: dict[str, Any] = {}
        for name, place in self._placed(tensors).items():
            x = jnp.asarray(np.asarray(tensors[name]).astype(np.float32))
            if place in found and not np.array_equal(found[place], x, equal_nan=True):
                raise ValueError(f"{name!r} differs from the tensor that {self.name} ties it to")
            found[place] = x
        return nested({place: found[place] for place in self.functions.parts.shapes}, ".")

    def shapes(self, tensors: Tensors) -> PyTree:
        """See `Architecture.shapes`."""
        self._placed(tensors)
        return self.functions.shapes

    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """See `Architecture.tensors`."""
        leaves = flatten(variables)
        return {name: np.asarray(leaves[path]) for name, paths in self.paths(list(like)).items() for path in paths}

    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Architecture.paths`."""
        places = {name: self._place(name) for name in names}
        return {name: (path_of(place),) if place else () for name, place in places.items()}

    def _place(self, name: str) -> str | None:
        """The tensor of the module that a name is of; "" for those that it has no use for, None for unknown ones."""
        parts, plain = self.functions.parts, without_wrappers(name)
        for spelled in (plain, plain.removeprefix(self.prefix), self.prefix + plain):
            if (place := parts.tied.get(spelled, spelled)) in parts.shapes:
                return place
            if spelled in parts.stored or spelled in parts.constants:
                return ""
        return "" if any(re.search(pattern, plain) for pattern in self.ignored) else None

    def _placed(self, tensors: Tensors) -> dict[str, str]:
        """Where tensors belong. Raises ValueError with all names that are missing or unexpected and all other shapes."""
        places, shapes = {name: self._place(name) for name in tensors}, self.functions.parts.shapes
        found = {name: place for name, place in places.items() if place}
        faults = {
            "missing": [place for place in shapes if place not in found.values()],
            "unexpected": [name for name, place in places.items() if place is None],
            "of another shape": [
                f"{name} (got {tuple(tensors[name].shape)}, expected {shapes[place].shape})"
                for name, place in found.items()
                if tuple(tensors[name].shape) != shapes[place].shape
            ],
        }
        if any(faults.values()):
            said = "; ".join(f"{what}: {_listed(names)}" for what, names in faults.items() if names)
            raise ValueError(f"these are not the tensors of {self.name}: {said}")
        return found


def is_torch(given: Named) -> bool:
    """Whether an architecture is `hf` or `torch:module:function`."""
    return given.name == FOLDER or (given.name.startswith(USER) and given.name.count(":") > 1)


def torch_network(given: Named, tensors: Tensors, config: Mapping[str, Any]) -> TorchModule:
    """The module of a recipe.

    Args:
        given: `torch:module:function`, which is called with its arguments and returns a module, or that and which of its
            outputs is meant; or `hf`, whose arguments are `class` and `output`.
        tensors: of one of the models.
        config: the content of `config.json`.

    Raises:
        ValueError: what cannot be imported, raises or returns something else; tensors that are not the module's (all of them).
    """
    network = _of_folder(given, config) if given.name == FOLDER else _of_user(given)
    network.shapes(tensors)
    return network


def _of_user(given: Named) -> TorchModule:
    torch: Any = imported_package("torch")
    name = given.name.removeprefix(USER)
    code, function = imported(name)
    check_arguments(name, given.arguments, list(inspect.signature(function).parameters))
    expected = "it is called with its arguments and must return a torch.nn.Module, or (module, output)"
    try:
        made = function(**given.arguments)
    except Exception as error:  # whatever it is that the user's function raises
        raise ValueError(f"{name} raises {first_line(error)}: {expected}") from None
    module, output = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(module, torch.nn.Module) or not isinstance(output, str | int | None):
        raise ValueError(f"{name} returns {kind_of(made)}: {expected}")
    functions = functions_of(module, output=output)
    return TorchModule(name, functions, _runs(functions), source_of(code))


def _of_folder(given: Named, config: Mapping[str, Any]) -> TorchModule:
    check_arguments(FOLDER, given.arguments, ["class", "output"])
    kind, output = given.arguments.get("class"), given.arguments.get("output")
    if not isinstance(kind, str | None) or not isinstance(output, str | None):
        raise ValueError(f"{FOLDER} takes names as class and output, got {kind!r} and {output!r}")
    module = transformers_module(config, kind)
    functions = functions_of(module, output=output or ("logits", "last_hidden_state"))
    prefix, ignored = module.base_model_prefix, module._keys_to_ignore_on_load_unexpected or ()
    named = f"{prefix}." if prefix else ""
    positions = _positions(module, config)
    return TorchModule(type(module).__name__, functions, _runs(functions), None, named, tuple(ignored), positions)


def _positions(module: Any, config: Mapping[str, Any]) -> int | None:
    """How many it takes, where they have a table: traced from shapes alone, PyTorch does not look whether a row is there."""
    tables = [name for name, part in module.named_modules() if hasattr(part, "num_embeddings")]
    if not any(re.search(r"wpe|position", name) for name in tables):
        return None
    sizes = [config.get(key) for key in ("max_position_embeddings", "n_positions")]
    return next((size for size in sizes if isinstance(size, int)), None)


def _runs(functions: TorchFunctions) -> tuple[Apply, TrainApply | None]:
    return functions.apply, functions.train_apply if functions.has_statistics else None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
