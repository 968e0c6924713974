"""Processes of one job that follow a recipe together: each learns from its part of every batch, the first one writes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from alignment.graph import PyTree
from npmerge.masks import padded


def join_job() -> None:
    """Join the other processes of this job, as `jax.distributed` finds them; before anything else of JAX.

    Raises:
        ValueError: no job that it knows.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--distributed: this is no process of a job of SLURM, Open MPI, GKE or a TPU pod that JAX could join ({reason}): "
            "start it by srun or mpirun, or leave --distributed out"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """Return once all processes have come to the same place."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)


def devices_of_job(given: int | None) -> int | Sequence[jax.Device] | None:
    """The devices that a fit is divided among: those of all processes, where there are several.

    Raises:
        ValueError: some of them only.
    """
    if jax.process_count() == 1:
        return given
    if given not in (None, jax.device_count()):
        raise ValueError(f"devices: all {jax.device_count()} of the job learn together, got {given}: leave it out")
    return jax.devices()


def batches_of_process(batches: Iterable[tuple]) -> Iterable[tuple]:
    """Of every batch the examples of this process: those of all processes are the batch.

    Raises:
        ValueError: batches that do not divide among the processes.
    """
    return batches if jax.process_count() == 1 else _Parts(batches)


def held_out_of_process(batches: list[tuple], loss: Any) -> list[tuple]:
    """The same of batches to judge by, which are filled up where they do not divide. Raises ValueError as above."""
    if jax.process_count() == 1:
        return batches

    def even(pair: tuple) -> tuple:
        count = -(-len(pair[0]) // jax.process_count()) * jax.process_count()
        return _part(padded(pair, count) if count > len(pair[0]) and loss.masks else pair)

    return [loss.map_batches(even, batch) for batch in batches]


def on_every_process(tree: PyTree) -> PyTree:
    """Arrays that lie divided among the processes, whole on each of them."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable:
            return x
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


class _Parts(Iterator[tuple]):
    def __init__(self, batches: Iterable[tuple]):
        self._batches = iter(batches)

    def __next__(self) -> tuple:
        return _part(next(self._batches))


def _part(batch: tuple) -> tuple:
    """Every so-manieth example."""

    def part(x: np.ndarray) -> np.ndarray:
        if len(x) % jax.process_count():
            raise ValueError(f"batch_size: {len(x)} examples do not divide among {jax.process_count()} processes")
        return x[jax.process_index() :: jax.process_count()]

    return jax.tree.map(part, batch)
