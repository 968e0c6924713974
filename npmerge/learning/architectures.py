"""A network as functions, and the way between its variables and the tensors of a recipe's models."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from alignment.graph import PyTree
from npmerge.learning.members import Tensors
from npmerge.models import Config

Apply = Callable[[PyTree, Any], PyTree]
TrainApply = Callable[[PyTree, Any], tuple[PyTree, PyTree]]


@dataclass(frozen=True)
class Architecture(ABC):
    """A network as functions, and the way between its variables and tensors by name."""

    @property
    @abstractmethod
    def apply(self) -> Apply:
        """`(variables, inputs) -> outputs` in evaluation mode: the same object each time, for what is compiled by it."""

    @property
    @abstractmethod
    def train_apply(self) -> TrainApply | None:
        """`(variables, inputs) -> (outputs, variables with new statistics)`; None for networks without."""

    @property
    def config(self) -> Config | None:
        """The configuration, where it is one of `npmerge.models`."""
        return None

    @property
    def source(self) -> Path | None:
        """The file of a user's code."""
        return None

    @abstractmethod
    def variables(self, tensors: Tensors) -> PyTree:
        """The variables, in float32. Raises ValueError for tensors that are not the network's (all are named)."""

    @abstractmethod
    def shapes(self, tensors: Tensors) -> PyTree:
        """The variables as `jax.ShapeDtypeStruct`, from headers alone."""

    @abstractmethod
    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """The tensors by name, for those names that are of the network."""

    @abstractmethod
    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Where tensors stand among the variables."""

    def check(self, variables: PyTree, inputs: Any) -> None:
        """Raise what the network raises where it does not take these inputs; nothing is computed."""
        jax.eval_shape(self.forward, variables, inputs)
        jax.eval_shape(self.apply, variables, inputs)

    @property
    def forward(self) -> Apply:
        """The outputs with the statistics of the batch, which a network being merged learns with."""
        return self.apply if self.train_apply is None else _forward(self.train_apply)


@functools.cache
def _forward(train_apply: TrainApply) -> Apply:
    return lambda variables, inputs: train_apply(variables, inputs)[0]
