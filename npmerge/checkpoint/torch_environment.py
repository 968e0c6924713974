"""The one place that imports torchax, PyTorch's operators on arrays of JAX, and those operators that are written anew here."""

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
import jax.numpy as jnp

from alignment.checks import first_line
from alignment.tracing.provenance import hide
from npmerge.checkpoint.torch_copies import array_of

INSTALL = 'pip install "npmerge[torch]"'


@functools.cache
def torchax_environment() -> Any:
    """The environment in which operators of PyTorch run on arrays of JAX, apart from the one that torchax shares.

    Raises:
        ValueError: torch or torchax are missing, or of versions that do not work together (which, and what to install).
    """
    torch, torchax = imported("torch"), imported("torchax.tensor")

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
    _write_operators(environment)
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


def _write_operators(environment: Any) -> None:
    """Put our own operators in the place of torchax's.

    Its BatchNorm does not move running statistics, and its GroupNorm is a loop over groups, whose steps are in order.
    """
    import torch

    aten = torch.ops.aten

    def batch_norm(x, weight, bias, mean, var, training, momentum, eps):  # type: ignore[no-untyped-def]
        given = [None if t is None else t.jax() for t in (x, weight, bias, mean, var)]
        y, *used = _batch_norm(*given, training or mean is None, eps)
        for old, new in zip((mean, var), _moved(given[3:], used, x, momentum) if training and mean is not None else (), strict=False):
            old._elem = new
        return tuple(map(environment.j2t_iso, (y, *used)))

    def group_norm(x, weight, bias, examples, channels, places, groups, eps):  # type: ignore[no-untyped-def]
        given = [None if t is None else t.jax() for t in (x, weight, bias)]
        return tuple(map(environment.j2t_iso, _group_norm(*given, groups, eps)))

    for name in ("native_batch_norm", "_native_batch_norm_legit"):
        environment.override_op_definition(getattr(aten, name).default, batch_norm)
    environment.override_op_definition(aten.native_group_norm.default, group_norm)


def _batch_norm(x, weight, bias, mean, var, training, eps):  # type: ignore[no-untyped-def]
    """Channels stand on axis 1; in training mode by the mean and the biased variance of the batch."""
    axes = tuple(d for d in range(x.ndim) if d != 1)
    if training:
        mean, var = jnp.mean(x, axes), jnp.var(x, axes)
    y = (x - _of_channels(mean, x)) * jax.lax.rsqrt(_of_channels(var, x) + eps)
    return _scaled(y, weight, bias), mean, var


def _moved(old, used, x, momentum):  # type: ignore[no-untyped-def]
    """Running statistics after a batch; that of the variance is unbiased."""
    count = x.numel() // x.shape[1]
    new = used[0], used[1] * (count / max(count - 1, 1))
    return [((1 - momentum) * a + momentum * b).astype(a.dtype) for a, b in zip(old, new, strict=True)]


def _group_norm(x, weight, bias, groups, eps):  # type: ignore[no-untyped-def]
    """Channels stand on axis 1; each group of neighbouring ones is normalised with all its places."""
    parts = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    axes = tuple(range(2, parts.ndim))
    mean, var = jnp.mean(parts, axes, keepdims=True), jnp.var(parts, axes, keepdims=True)
    root = jax.lax.rsqrt(var + eps)
    y = ((parts - mean) * root).reshape(x.shape)
    return _scaled(y, weight, bias), jnp.squeeze(mean, axes), jnp.squeeze(root, axes)


def _scaled(y, weight, bias):  # type: ignore[no-untyped-def]
    y = y if weight is None else y * _of_channels(weight, y)
    return y if bias is None else y + _of_channels(bias, y)


def _of_channels(v, x):  # type: ignore[no-untyped-def]
    return v.reshape(1, -1, *[1] * (x.ndim - 2))
