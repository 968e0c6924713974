"""Any module of PyTorch as pure functions of JAX, through torchax."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.checks import check_kinds, kind_of
from alignment.graph import PyTree, flatten
from alignment.names import is_statistic
from npmerge.checkpoint.torch_copies import Parts, array_of, keeps_statistics, taken_apart
from npmerge.checkpoint.torch_environment import imported, running, version
from npmerge.checkpoint.torch_faults import Places
from npmerge.checkpoint.torch_values import Wanted, arguments, as_inputs, in_words, of_outputs
from npmerge.checkpoint.trees import nested

TOLERANCE = 1e-3
"""How far outputs may be from PyTorch's, of the largest of them: more is another function, not rounding."""

TOLD = 5
"""Variables of another shape that a message names at most."""


class TorchNetwork(NamedTuple):
    """A module of PyTorch as pure functions of a tree of arrays.

    Attributes:
        apply: `(variables, inputs) -> outputs`, evaluation mode.
        variables: the floating-point tensors of the state dictionary, in nested dictionaries: `layer1.0.weight` is
            `["layer1"]["0"]["weight"]`. They are float32, whatever the module has; tied ones stand there once. Integers, such
            as the number of batches that BatchNorm has seen, stay the module's.
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`: layers that have running statistics are
            in training mode, all else as in evaluation.
        restore: `variables -> state_dict`, in the module's own dtypes, which it loads with `strict=True`.

    Example:
        >>> import torch
        >>> module = torch.nn.BatchNorm1d(2)
        >>> network = nm.checkpoint.torch_module(module, torch.ones(4, 2))
        >>> batches = [(jnp.array([[1.0, 2.0], [3.0, 6.0]]), None)]
        >>> module.load_state_dict(network.restore(nm.reset_statistics(network.train_apply, network.variables, batches)))
        <All keys matched successfully>
        >>> module.running_mean.numpy().round(3).tolist()  # of the batch
        [2.0, 4.0]
    """

    apply: Callable[[PyTree, PyTree], PyTree]
    variables: PyTree
    train_apply: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    restore: Callable[[PyTree], Mapping[str, Any]]


def torch_module(module: Any, example: PyTree, *, output: str | int | None = None) -> TorchNetwork:
    """A module of PyTorch as pure functions, which trace, align, tap and learn like any other.

    The module is left as it is, in evaluation or training mode, on any device and in any precision; what is done to it later
    does not change the functions. They compute in float32, on the device of JAX.

    Inputs are one array, a tuple of positional arguments or a dictionary of named ones. Outputs are arrays in the containers in
    which the module returns tensors; dictionaries, dataclasses and named tuples become dictionaries without what is None.

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

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> apply, variables, train_apply, restore = nm.checkpoint.torch_module(module, torch.ones(1, 4))
        >>> graph = nm.trace(apply, variables, jnp.ones((1, 4)))
        >>> graph.nodes["0"]  # three units, which may be permuted and scaled
        Node(name='0', size=3, group='scale', index=(), copies=())
        >>> turned = alignment.transport(graph, {"0": alignment.permutation(jnp.array([2, 0, 1]))}, variables)
        >>> module.load_state_dict(restore(turned), strict=True)  # the same function
        <All keys matched successfully>
        >>> bool((module[0].bias == torch.tensor(np.array(variables["0"]["bias"]))[[2, 0, 1]]).all())
        True
    """
    torch = imported("torch")
    check_kinds("torch_module takes (module, example)", (module, torch.nn.Module), (example, object))
    functions, inputs = functions_of(module, output=output), as_inputs(example)
    tensors = module.state_dict(keep_vars=True)
    variables = nested({name: array_of(tensors[name]) for name in functions.parts.shapes}, ".")
    functions.check(variables, inputs)
    return TorchNetwork(functions.apply, variables, functions.train_apply, functions.restore)


def functions_of(module: Any, *, output: Wanted = None) -> "TorchFunctions":
    """The functions of a module, for variables of its structure. Raises ValueError as `torch_module` does for modules."""
    places, parts = Places(), taken_apart(module)
    places.watch(parts.skeleton)
    return TorchFunctions(parts, places, output)


@dataclass(frozen=True, eq=False)
class TorchFunctions:
    """What `torch_module` returns, as methods, for any variables.

    Attributes:
        parts: of the module.
        places: which of its submodules is running.
        output: which of several outputs is returned.
    """

    parts: Parts
    places: Places = field(repr=False)
    output: Wanted = None

    def apply(self, variables: PyTree, inputs: PyTree) -> PyTree:
        """See `TorchNetwork`."""
        return self._run(variables, inputs, training=False)[0]

    def train_apply(self, variables: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        """See `TorchNetwork`."""
        return self._run(variables, inputs, training=True)

    def restore(self, variables: PyTree) -> Mapping[str, Any]:
        """See `TorchNetwork`."""
        return self.parts.state_dict(self._named(variables))

    @property
    def has_statistics(self) -> bool:
        """Whether some of the variables are running statistics."""
        return any(is_statistic(path_of(name)) for name in self.parts.shapes)

    @property
    def shapes(self) -> PyTree:
        """The variables as `jax.ShapeDtypeStruct`."""
        return nested(self.parts.shapes, ".")

    def check(self, variables: PyTree, inputs: PyTree) -> None:
        """Check that both functions take the inputs, and that outputs are PyTorch's where all are arrays.

        Raises:
            ValueError: as `torch_module`.
        """
        jax.eval_shape(self.train_apply, variables, inputs)
        jax.eval_shape(self.apply, variables, inputs)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves((variables, inputs))):
            return
        ours, theirs = flatten(jax.jit(self.apply)(variables, inputs)), flatten(self._of_torch(variables, inputs))
        for path, expected in theirs.items():
            _check_close(path, np.asarray(ours[path]), np.asarray(expected))

    def _of_torch(self, variables: PyTree, inputs: PyTree) -> PyTree:
        """The outputs as PyTorch computes them."""
        import torch

        def tensor(x: Any) -> Any:
            return torch.from_numpy(np.array(x))

        tensors = jax.tree.map(tensor, {**self._named(variables), **self.parts.constants})
        with torch.no_grad(), self.places.told(in_words(inputs)):
            outputs = self._called(tensors, jax.tree.map(tensor, arguments(inputs)), training=False)
        return of_outputs(outputs, self.output)

    def _run(self, variables: PyTree, inputs: PyTree, *, training: bool) -> tuple[PyTree, PyTree]:
        arrays = self._named(variables)
        with running() as environment:
            tensors = environment.j2t_iso({**arrays, **self.parts.constants})
            with self.places.told(in_words(inputs)):
                given = environment.j2t_iso(jax.tree.map(jnp.asarray, arguments(inputs)))
                outputs = environment.v2t_iso(self._called(tensors, given, training=training))
            return of_outputs(outputs, self.output), nested({name: tensors[name].jax() for name in arrays}, ".")

    def _called(self, tensors: dict[str, Any], given: tuple[tuple, dict], *, training: bool) -> Any:
        """What the module returns, in evaluation mode but for layers with running statistics."""
        import torch

        for part in self.parts.skeleton.modules():
            part.training = training and keeps_statistics(part)
        return torch.func.functional_call(self.parts.skeleton, tensors, *given)

    def _named(self, variables: PyTree) -> dict[str, Array]:
        """The leaves by the names of the state dictionary. Raises ValueError for others than the module's (all of them)."""
        if hasattr(variables, "_fields"):
            raise ValueError(
                f"not the variables of the module: got a {kind_of(variables)}; the models of a Stack are merged first"
            )
        got, expected = flatten(variables), {path_of(name): x.shape for name, x in self.parts.shapes.items()}
        shapes = {path: np.shape(x) for path, x in got.items()}
        odd = [path for path in {**expected, **shapes} if shapes.get(path) != expected.get(path)]
        if odd:
            none = "no such leaf"
            said = [f"{path!r}: got {shapes.get(path, none)}, expected {expected.get(path, none)}" for path in odd[:TOLD]]
            more = f" and {len(odd) - TOLD} more" if len(odd) > TOLD else ""
            raise ValueError(f"not the variables of the module: {'; '.join(said)}{more}")
        return {name: jnp.asarray(got[path_of(name)]) for name in self.parts.shapes}


def path_of(name: str) -> str:
    """Where a tensor of the state dictionary stands among the variables."""
    return name.replace(".", "/")


def _check_close(path: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    off, scale = np.inf, 0.0
    if ours.shape == theirs.shape:
        ours, theirs = (x.astype(np.result_type(x, np.float32)) for x in (ours, theirs))
        differing = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))  # minus infinity masks what nobody may choose
        off = np.abs(ours[differing] - theirs[differing]).max(initial=0)
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
    if not off <= TOLERANCE * max(scale, TOLERANCE):
        where = f"outputs at {path!r}" if path else "outputs"
        raise ValueError(
            f"{where} differ from PyTorch's by {off:.2g}, of {scale:.2g} at most: the module is random in evaluation mode, or "
            f"torchax {version('torchax')} computes one of its operators in another way"
        )
