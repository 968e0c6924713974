"""Networks of `npmerge.models`, whose tensors have the names of PyTorch, or the paths of our own files."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alignment.graph import PyTree, flatten
from npmerge.checkpoint.names import from_named, paths_of, to_named
from npmerge.checkpoint.network import fitted
from npmerge.learning.architectures import Apply, Architecture, TrainApply
from npmerge.learning.members import Tensors
from npmerge.models import Config, abstract


@dataclass(frozen=True)
class Known(Architecture):
    """One of `npmerge.models`; its tensors have the names of PyTorch, or the paths of our own files."""

    known: Config
    own: bool = False

    @property
    def apply(self) -> Apply:
        """See `Architecture.apply`."""
        return abstract(self.known).apply

    @property
    def train_apply(self) -> TrainApply | None:
        """See `Architecture.train_apply`."""
        network = abstract(self.known)
        return network.train_apply if jax.tree.leaves(network.variables["batch_stats"]) else None

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.known

    def variables(self, tensors: Tensors) -> PyTree:
        """See `Architecture.variables`."""
        if not self.own:
            return from_named(self.known, tensors)
        found = fitted(self.known, dict(tensors), "the model")
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(np.float32)), found)

    def shapes(self, tensors: Tensors) -> PyTree:
        """See `Architecture.shapes`."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), abstract(self.known).variables)

    def tensors(self, variables: PyTree, like: Tensors) -> dict[str, np.ndarray]:
        """See `Architecture.tensors`."""
        if self.own:
            return {path: np.asarray(x) for path, x in flatten(variables).items()}
        return to_named(self.known, variables, like=like)

    def paths(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """See `Architecture.paths`."""
        return {name: (name,) for name in names} if self.own else paths_of(self.known, names)
