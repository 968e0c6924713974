"""The one place that imports torchax, which runs PyTorch's operators on arrays of JAX."""

import contextlib
import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from alignment.checks import first_line
from alignment.tracing.provenance import hide
from npmerge.checkpoint.torch_copies import array_of
from npmerge.checkpoint.torch_operators import write_operators

INSTALL = 'pip install "npmerge[torch]"'


@functools.cache
def torchax_environment() -> Any:
    """The environment in which operators of PyTorch run on arrays of JAX, apart from the one that torchax shares.

    Raises:
        ValueError: torch or torchax are missing, or of versions that do not work together (which, and what to install).
    """
    torch: Any = imported("torch")
    torchax: Any = imported("torchax.tensor")

    class Environment(torchax.Environment):
        """All tensors are arrays, on whichever device a module asks for; those that it keeps to itself are constants."""

        def _should_use_torchax_tensor(self, device: Any) -> bool:
            return True

        def _is_same_device(self, tensor: Any, device: Any) -> bool:
            return True

        def t2j_iso(self, tensors: Any) -> Any:
            def known(x: Any) -> Any:
                return x if isinstance(x, torchax.Tensor | torchax.View) or x.numel() == 1 else self.j2t_iso(array_of(x))

            return super().t2j_iso(torch.utils._pytree.tree_map_only(torch.Tensor, known, tensors))

    for file in (torch.__file__, torchax.__file__, __file__):
        hide(Path(file).parent)
    environment = Environment()
    write_operators(environment)
    return environment


def imported(name: str, install: str = INSTALL) -> ModuleType:
    """A module of PyTorch's world. Raises ValueError where it is missing or fails, with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(f"modules of PyTorch need the package {error.name}, which is not installed: {install}") from None
    except Exception as error:  # torchax names operators that other versions of torch do not have
        versions = " with ".join(f"{x} {version(x)}" for x in dict.fromkeys((name.partition(".")[0], "torch")))
        raise ValueError(
            f"{versions} cannot be imported ({first_line(error)}): {install} installs versions that work"
        ) from None


def version(package: str) -> str:
    """That is installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"


@contextlib.contextmanager
def running() -> Iterator[Any]:
    """PyTorch's operators run on arrays of JAX: also on new tensors; random numbers are the same each time."""
    import torch

    environment = torchax_environment()
    with contextlib.ExitStack() as around:
        around.enter_context(jax.numpy_dtype_promotion("standard"))  # as torchax counts on
        around.enter_context(jax.numpy_rank_promotion("allow"))
        around.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Explicitly requested dtype")  # int64, which is int32 here
        with jax.ensure_compile_time_eval():
            key = jax.random.key(0)
        around.enter_context(environment.override_property(prng=key))
        around.enter_context(torch.no_grad())
        yield around.enter_context(environment)
