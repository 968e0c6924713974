"""Any module of PyTorch as pure functions of JAX, through torchax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from alignment.checks import check_kinds
from alignment.graph import PyTree, flatten
from npmerge.checkpoint.torch_copies import Parts, keeps_statistics, taken_apart
from npmerge.checkpoint.torch_environment import imported, running, version
from npmerge.checkpoint.torch_faults import Places
from npmerge.checkpoint.torch_values import arguments, as_inputs, in_words, of_outputs

TOLERANCE = 1e-3
"""How far outputs may be from PyTorch's, of the largest of them: more is another function, not rounding."""


class TorchNetwork(NamedTuple):
    """A module of PyTorch as pure functions of a tree of arrays.

    Attributes:
        apply: `(variables, inputs) -> outputs`, evaluation mode.
        variables: what the state dictionary holds, in nested dictionaries: `layer1.0.weight` is `["layer1"]["0"]["weight"]`.
            Floating-point numbers are float32, whatever the module has; tied tensors stand there once.
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`: layers that have running statistics are
            in training mode, all else as in evaluation.
        restore: `variables -> state_dict`, in the module's own dtypes, which it loads with `strict=True`.
    """

    apply: Callable[[PyTree, PyTree], PyTree]
    variables: PyTree
    train_apply: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    restore: Callable[[PyTree], Mapping[str, Any]]


def torch_module(module: Any, example: PyTree, *, output: str | int | None = None) -> TorchNetwork:
    """A module of PyTorch as pure functions, which trace, align, tap and learn like any other.

    The module is left as it is, in evaluation or training mode, on any device and in any precision; what is done to it later
    does not change the functions. They compute in float32, where JAX does.

    Inputs are one array, a tuple of positional arguments or a dictionary of named ones. Outputs are arrays in the containers in
    which the module returns tensors: dictionaries and dataclasses become dictionaries without what is None.

    Args:
        module: a `torch.nn.Module`.
        example: inputs, of which shapes and dtypes matter: tensors, arrays or `jax.ShapeDtypeStruct`.
        output: which of several outputs is returned: the name of an entry or field (`"logits"`), or a place in a tuple.

    Returns:
        `apply`, `variables`, `train_apply` and `restore`.

    Raises:
        ValueError: torch or torchax that are missing or of a version that does not work (what to install); an example that the
            module cannot take; an operator that torchax does not have; a forward pass that branches on values; outputs that are
            no tensors, or differ from PyTorch's on an example with values. Errors inside the module name the submodule.
    """
    torch = imported("torch")
    check_kinds("torch_module takes (module, example)", (module, torch.nn.Module), (example, object))
    functions = _Functions(taken_apart(module), output, Places())
    functions.places.watch(functions.parts.skeleton)
    variables, inputs = nested(functions.parts.variables), as_inputs(example)
    jax.eval_shape(functions.train_apply, variables, inputs)
    jax.eval_shape(functions.apply, variables, inputs)
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((variables, inputs))):
        _check_same(functions, variables, inputs)
    return TorchNetwork(functions.apply, variables, functions.train_apply, functions.restore)


@dataclass(frozen=True, eq=False)
class _Functions:
    """What `torch_module` returns, as methods."""

    parts: Parts
    output: str | int | None
    places: Places

    def apply(self, variables: PyTree, inputs: PyTree) -> PyTree:
        return self._run(variables, inputs, training=False)[0]

    def train_apply(self, variables: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        return self._run(variables, inputs, training=True)

    def restore(self, variables: PyTree) -> Mapping[str, Any]:
        return self.parts.state_dict(self._named(variables))

    def _run(self, variables: PyTree, inputs: PyTree, *, training: bool) -> tuple[PyTree, PyTree]:
        arrays = self._named(variables)
        with running() as environment, self.places.told(in_words(inputs)):
            tensors = environment.j2t_iso({**arrays, **self.parts.constants})
            outputs = self._called(tensors, environment.j2t_iso(arguments(inputs)), training=training)
            outputs = environment.v2t_iso(outputs)
            return of_outputs(outputs, self.output), nested({name: tensors[name].jax() for name in arrays})

    def _called(self, tensors: dict[str, Any], given: tuple[tuple, dict], *, training: bool) -> Any:
        """What the module returns, in evaluation mode but for layers with running statistics."""
        import torch

        for part in self.parts.skeleton.modules():
            part.training = training and keeps_statistics(part)
        return torch.func.functional_call(self.parts.skeleton, tensors, *given)

    def _named(self, variables: PyTree) -> dict[str, Array]:
        """The leaves by the names of the state dictionary. Raises ValueError for others than the module's."""
        got = {path.replace("/", "."): x for path, x in flatten(variables).items()}
        expected = {name: tuple(x.shape) for name, x in self.parts.variables.items()}
        shapes = {name: np.shape(x) for name, x in got.items()}
        if shapes != expected:
            odd = [
                f"{name}: got {shapes.get(name)}, expected {expected.get(name)}"
                for name in {**expected, **shapes}
                if shapes.get(name) != expected.get(name)
            ]
            raise ValueError(f"these are not the variables of the module: {'; '.join(odd)}")
        return {name: got[name] for name in expected}


def nested(flat: Mapping[str, Any]) -> PyTree:
    """Dictionaries in dictionaries, by the dots of the names."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *above, last = name.split(".")
        inner = tree
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = leaf
    return tree


def _check_same(functions: _Functions, variables: PyTree, inputs: PyTree) -> None:
    """Raise ValueError if PyTorch itself computes something else on the example."""
    import torch

    def tensor(x: Any) -> Any:
        return torch.from_numpy(np.array(x))

    tensors = {name: tensor(x) for name, x in {**functions.parts.variables, **functions.parts.constants}.items()}
    with torch.no_grad(), functions.places.told(in_words(inputs)):
        theirs = of_outputs(
            functions._called(tensors, jax.tree.map(tensor, arguments(inputs)), training=False), functions.output
        )
    ours = functions.apply(variables, inputs)
    for path, expected in flatten(theirs).items():
        scale, found = np.abs(np.asarray(expected)).max(initial=0), np.asarray(flatten(ours)[path])
        off = np.abs(found - np.asarray(expected)).max(initial=0)
        if not off <= TOLERANCE * max(scale, TOLERANCE):
            where = f" at {path!r}" if path else ""
            raise ValueError(
                f"outputs{where} differ from PyTorch's by {off:.2g}, of at most {scale:.2g}: the module is random in evaluation "
                f"mode, or torchax {version('torchax')} computes one of its operators in another way"
            )
