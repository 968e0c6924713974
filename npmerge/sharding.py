"""Where the arrays of a fit lie: as they are given, over a mesh under jit, or a copy on every device under pmap.

The only file that names meshes. Models are never divided: batches are, by examples, and features on request.
"""

import abc
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from alignment.checks import unknown
from alignment.graph import PyTree

AXIS = "examples"
Devices = int | Sequence[jax.Device] | None


class Layout(abc.ABC):
    """Puts arrays where they are computed with, and compiles functions for that.

    Layouts are hashable: a compiled function sees its own in its first argument, which is static.
    """

    features: bool = False
    """Whether theta, the optimiser's state and the models are divided among the devices, too."""

    @property
    @abc.abstractmethod
    def parts(self) -> int:
        """Into how many parts of equal size this process divides its batches."""

    @abc.abstractmethod
    def place(self, tree: PyTree) -> PyTree:
        """Theta, the optimiser's state or a stack, put where it stays."""

    @abc.abstractmethod
    def divide(self, batch: tuple) -> tuple:
        """A batch whose examples are a multiple of `parts`, put in parts where it is computed with."""

    @abc.abstractmethod
    def take(self, tree: PyTree) -> PyTree:
        """What was placed, or came out of a compiled function, as ordinary arrays."""

    def logical(self, tree: PyTree) -> PyTree:
        """What was placed, as it is to be saved: each array once, whoever holds its parts."""
        return tree

    def compiled(self, function: Callable[..., Any], *, donated: tuple[int, ...] = ()) -> Callable[..., Any]:
        """`function(run, state, constants, batch, random)`, by jit; `run` is static (`npmerge.fitting.updates`)."""
        return _jitted(function, donated)

    def keep(self, tree: PyTree) -> PyTree:
        """Traced: results lie as what was placed does, so that they can be passed in again without compiling anew."""
        return tree

    def whole(self, network: PyTree) -> PyTree:
        """Traced: the network as it runs, every array on every device that it runs on."""
        return network

    def mean(self, tree: PyTree, weight: Float[Array, ""]) -> PyTree:
        """Traced: the mean over the parts, weighted, where each part is computed on its own."""
        return tree

    def total(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """Traced: the sum over the parts, likewise."""
        return weight


@dataclass(frozen=True)
class AsGiven(Layout):
    """Everything stays where it is; JAX computes there."""

    parts: int = 1

    def place(self, tree: PyTree) -> PyTree:
        """The tree itself."""
        return tree

    def divide(self, batch: tuple) -> tuple:
        """The batch itself."""
        return batch

    def take(self, tree: PyTree) -> PyTree:
        """The tree itself."""
        return tree


@dataclass(frozen=True)
class Sharded(Layout):
    """jit over a mesh of devices: batches lie divided by examples, the rest is copied, or divided by features.

    Attributes:
        devices: of all processes.
        features: whether the largest axis after the first of every array of theta, optimiser and stack that the number of
            devices divides is divided: each device then holds its part, and networks are put together while they run.
    """

    devices: tuple[jax.Device, ...]
    features: bool = False

    @property
    def parts(self) -> int:
        """The devices of this process."""
        return len(_local(self.devices))

    def place(self, tree: PyTree) -> PyTree:
        """Copied to all devices, or divided by features."""
        return jax.tree.map(lambda x: jax.device_put(x, self.sharding(np.shape(x))), tree)

    def divide(self, batch: tuple) -> tuple:
        """Divided by examples; each process gives its own."""
        sharding, copied = (NamedSharding(_mesh(self.devices), spec) for spec in (PartitionSpec(AXIS), PartitionSpec()))

        def put(x: Any) -> Array:
            x = x if isinstance(x, jax.Array) and jax.process_count() == 1 else np.asarray(x)
            if not np.ndim(x):
                return jax.device_put(x, copied)
            if jax.process_count() == 1:
                return jax.device_put(x, sharding)
            return jax.make_array_from_process_local_data(sharding, np.asarray(x))

        return jax.tree.map(put, batch)

    def take(self, tree: PyTree) -> PyTree:
        """On the default device; what is divided by features stays so."""
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)) if x.is_fully_replicated else x, tree)

    def keep(self, tree: PyTree) -> PyTree:
        """See `Layout.keep`."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.sharding(x.shape)), tree)

    def whole(self, network: PyTree) -> PyTree:
        """See `Layout.whole`. Else XLA divides activations by features as well, which takes it far more sending."""
        if not self.features:
            return network
        return jax.lax.with_sharding_constraint(network, NamedSharding(_mesh(self.devices), PartitionSpec()))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """Where an array of this shape lies that is placed."""
        count = len(self.devices)
        whole = [k for k in range(1, len(shape)) if shape[k] % count == 0 and shape[k]] if self.features else []
        if not whole:
            return NamedSharding(_mesh(self.devices), PartitionSpec())
        axis = max(whole, key=lambda k: shape[k])
        return NamedSharding(_mesh(self.devices), PartitionSpec(*[None] * axis, AXIS))


@dataclass(frozen=True)
class Mapped(Layout):
    """pmap: every device has a copy of everything and its own part of the batch; gradients are averaged over the devices."""

    devices: tuple[jax.Device, ...]

    @property
    def parts(self) -> int:
        """The devices of this process."""
        return len(_local(self.devices))

    def place(self, tree: PyTree) -> PyTree:
        """A copy on every device of this process, (devices, ...)."""
        sharding = NamedSharding(_mesh(_local(self.devices)), PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.device_put(np.broadcast_to(x, (self.parts, *np.shape(x))), sharding), tree)

    def divide(self, batch: tuple) -> tuple:
        """(devices, examples of each, ...)."""
        return jax.tree.map(lambda x: _cut(x, self.parts), batch)

    def take(self, tree: PyTree) -> PyTree:
        """The copy of the first device."""
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x.addressable_data(0)).reshape(x.shape[1:])), tree)

    def compiled(self, function: Callable[..., Any], *, donated: tuple[int, ...] = ()) -> Callable[..., Any]:
        """By pmap."""
        return _mapped(function, donated, self.devices)

    def logical(self, tree: PyTree) -> PyTree:
        """See `Layout.logical`."""
        return Sharded(self.devices).place(self.take(tree))

    def mean(self, tree: PyTree, weight: Float[Array, ""]) -> PyTree:
        """See `Layout.mean`."""
        share = weight / self.total(weight)
        return jax.tree.map(lambda x: jax.lax.psum(share.astype(x.dtype) * x, AXIS), tree)

    def total(self, weight: Float[Array, ""]) -> Float[Array, ""]:
        """See `Layout.total`."""
        return jax.lax.psum(weight, AXIS)


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _local(devices: Sequence[jax.Device]) -> list[jax.Device]:
    """Those of this process."""
    return [x for x in devices if x.process_index == jax.process_index()]


_RUNNING: ContextVar[Layout | None] = ContextVar("layout of the step that is traced", default=None)


@contextlib.contextmanager
def running(layout: Layout) -> Iterator[None]:
    """Within it `gathered` goes by this layout."""
    token = _RUNNING.set(layout)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def gathered(network: PyTree) -> PyTree:
    """Traced: the network as it runs in the step that is traced, if it is one of a fit; see `Layout.whole`."""
    layout = _RUNNING.get()
    return network if layout is None else layout.whole(network)


def layout_of(devices: Devices, parallel: Literal["jit", "pmap"], shard: Literal["features"] | None) -> Layout:
    """How a fit lies on devices.

    Args:
        devices: the devices or how many of them; None where everything lies, or all where it is to be divided.
        parallel: "jit" or "pmap".
        shard: "features", or None for copies of theta and models on every device.

    Raises:
        ValueError: another name, no devices or more than there are, features divided under pmap.
    """
    if parallel not in ("jit", "pmap"):
        raise ValueError(unknown("parallel", parallel, ("jit", "pmap")))
    if shard not in (None, "features"):
        raise ValueError(unknown("shard", shard, ("features",)))
    if shard and parallel == "pmap":
        raise ValueError("pmap holds a copy of theta on every device: shard features under parallel='jit'")
    if devices is None and parallel == "jit" and not shard:
        return AsGiven()
    chosen = _devices(devices)
    return Mapped(chosen) if parallel == "pmap" else Sharded(chosen, shard is not None)


def _devices(devices: Devices) -> tuple[jax.Device, ...]:
    there = jax.devices()
    if devices is None:
        return tuple(there)
    if isinstance(devices, int) and not isinstance(devices, bool):
        if not 1 <= devices <= len(there):
            raise ValueError(f"devices must be from 1 to the {len(there)} that JAX finds here, got {devices}")
        return tuple(there[:devices])
    if (
        not isinstance(devices, Sequence)
        or not devices
        or not all(isinstance(x, jax.Device) for x in devices)
        or len(set(devices)) < len(devices)
    ):
        raise ValueError(f"devices must be a number, or several devices of JAX, each once: got {devices}")
    return tuple(devices)


@functools.cache
def _jitted(function: Callable[..., Any], donated: tuple[int, ...]) -> Callable[..., Any]:
    return jax.jit(function, static_argnums=0, donate_argnums=donated)


@functools.cache
def _mapped(function: Callable[..., Any], donated: tuple[int, ...], devices: tuple[jax.Device, ...]) -> Callable[..., Any]:
    return jax.pmap(
        function,
        AXIS,
        in_axes=(None, 0, 0, 0, None),
        static_broadcasted_argnums=0,
        donate_argnums=donated,
        devices=devices,
    )


def _cut(x: Any, parts: int) -> Any:
    """The first axis in two, (parts, examples of each); a number is repeated."""
    if not np.ndim(x):
        return np.broadcast_to(x, (parts,))
    return x.reshape(parts, len(x) // parts, *x.shape[1:])
