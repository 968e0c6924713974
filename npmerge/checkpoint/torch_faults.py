"""What goes wrong inside a module of PyTorch, told with the submodule in which it does."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from alignment.checks import first_line
from npmerge.checkpoint.torch_environment import version

BRANCHES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What JAX raises where Python asks for the value of an array."""

BRANCHING = (
    "asks for the values of tensors (if, while, .item(), int(), a mask as an index), of which a function of JAX has none"
)
LOOSE = "uses a tensor that is no parameter, buffer or attribute of a module: call register_buffer with it"


class Places:
    """Which submodule is running: its path, and those around it."""

    def __init__(self) -> None:
        self._running: list[tuple[str, Any]] = []

    def watch(self, module: Any) -> None:
        """Follow the calls of a module and all its parts."""

        def begins(text: str, part: Any) -> Any:
            def hook(*_: Any) -> None:
                self._running.append((text, part))

            return hook

        def ends(*_: Any) -> None:
            if self._running:
                self._running.pop()

        for name, part in module.named_modules():
            kind = type(part).__name__
            part.register_forward_pre_hook(begins(f"{name} ({kind})" if name else kind, part))
            part.register_forward_hook(ends)

    @contextmanager
    def told(self, inputs: str) -> Iterator[None]:
        """Errors inside become a ValueError of one line that names the submodule; `inputs` in words."""
        self._running.clear()
        try:
            yield
        except Exception as error:  # whatever it is that a user's module raises
            where, part = self._running[-1] if self._running else ("the module", None)
            raise ValueError(f"{where} {_explained(error, inputs)}{_remedy(error, part)}") from error


def _explained(error: Exception, inputs: str) -> str:
    missing = re.search(r"Operator with name (\S+) has no lowering", str(error))
    if missing is not None:
        return f"uses the operator {missing[1]}, which torchax {version('torchax')} does not have"
    if isinstance(error, BRANCHES):
        return f"{BRANCHING}: {first_line(error)}"
    if "Expect a Tensor or a View" in str(error):
        return LOOSE
    return f"fails on {inputs} as inputs of the module: {first_line(error)}"


def _remedy(error: Exception, part: Any) -> str:
    """The end of a message: what a layer expects, where the error says that it got something else."""
    said, channels = str(error), getattr(part, "in_channels", None)
    if "Input type" in said and "bias type" in said:
        return "; give inputs in float32"
    if "feature dimension" in said and channels is not None:
        return f"; it expects (examples, {channels}, ...), channels first"
    return ""
