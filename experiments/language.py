"""Small language models that experiments train themselves: how, and where they are kept."""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import optax

import npmerge as nm
from alignment.graph import Graph, PyTree
from experiments.run import check_settings
from npmerge import checkpoint


def kept(path: Path, made_with: Mapping[str, Any], make: Callable[[], PyTree]) -> PyTree:
    """Make the variables of a network, or read those that were made before.

    Raises:
        ValueError: a file that was made with other settings (which).
    """
    if path.exists():
        check_settings(checkpoint.load_record(path).get("settings", {}), made_with, path)
        return checkpoint.load(path)
    began = time.perf_counter()
    network = jax.block_until_ready(make())
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, network, {"seconds": round(time.perf_counter() - began, 1), "settings": dict(made_with)})
    return network


@functools.lru_cache(maxsize=32)
def constant_adamw(rate: float, decay: float = 0.01, rising: int = 20) -> optax.GradientTransformation:
    """AdamW whose rate rises and stays, so that shorter trainings are the beginning of longer ones."""
    return optax.adamw(optax.linear_schedule(0, rate, rising), weight_decay=decay)


_GRAPHS: dict[Any, Graph] = {}


def graph_of(apply: Callable[..., PyTree], variables: PyTree, inputs: Any) -> Graph:
    """The graph of a network, found once: all networks here that are the same function have the same shapes."""
    if apply not in _GRAPHS:
        _GRAPHS[apply] = nm.trace(apply, variables, inputs)
    return _GRAPHS[apply]


@dataclass(frozen=True)
class MlpOnly:
    """A network of whose weights the feed-forward ones alone are learned.

    Attributes:
        apply: the network.
    """

    apply: Callable[[PyTree, Any], Any]

    def __call__(self, variables: PyTree, inputs: Any) -> Any:
        """What the network returns."""
        return self.apply(variables, inputs)

    def frozen(self, path: str) -> bool:
        """Whether `fit` leaves a leaf as it is."""
        return "/feed_forward/" not in path
