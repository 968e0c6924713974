"""How many coefficients a learned merge has: from one per model to one per parameter. A granularity is only a shape."""

import abc
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.graph import PyTree, flatten, path_name
from npmerge.base import is_statistic


class Granularity(abc.ABC):
    """Which parameters share a coefficient: a group for each leaf, and the shape of a coefficient inside the leaf."""

    @abc.abstractmethod
    def group(self, path: str) -> str:
        """The group of a leaf; leaves of one group share their coefficients."""

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one model's coefficient for a leaf: it broadcasts against the leaf, or is () for a scalar."""
        return ()

    def expand(self, coefficients: dict[str, Array], params: PyTree) -> PyTree:
        """Coefficients by group as one array per leaf that broadcasts against (models, ...)."""

        def leaf(path: tuple, x: Array) -> Array:
            name = path_name(path)
            if is_statistic(name):
                return jnp.full((x.shape[0],) + (1,) * (x.ndim - 1), 1 / x.shape[0], jnp.float32)
            c = coefficients[self.group(name)]
            return c.reshape(c.shape + (1,) * (x.ndim - c.ndim))

        return jax.tree_util.tree_map_with_path(leaf, params)

    def reduce(self, coefficients: PyTree, params: PyTree) -> dict[str, Array]:
        """The inverse of `expand`. Raises ValueError if coefficients that should be shared are not equal."""
        self.check(params)
        leaves = flatten(params)
        groups: dict[str, Array] = {}
        for path, c in flatten(coefficients).items():
            if is_statistic(path):
                continue
            shape = self.shape(leaves[path].shape[1:])
            wanted = shape or (1,) * (c.ndim - 1)
            mine = tuple(slice(None) if n > 1 else slice(0, 1) for n in wanted)
            kept = c[(slice(None), *mine)]
            group = self.group(path)
            shared = groups.setdefault(group, jnp.broadcast_to(kept, (c.shape[0], *wanted)).reshape(c.shape[0], *shape))
            if not np.allclose(c, shared.reshape(shared.shape + (1,) * (c.ndim - shared.ndim)), rtol=1e-6, atol=1e-7):
                raise ValueError(f"{self} cannot represent the start: its coefficients differ inside {path!r} or its group")
        return groups

    def check(self, params: PyTree) -> None:
        """Raise ValueError if the granularity does not fit these parameters."""


@dataclass(frozen=True)
class PerModel(Granularity):
    """One coefficient per model."""

    def group(self, path: str) -> str:
        """One group for all leaves."""
        return "all"


@dataclass(frozen=True)
class PerLayer(Granularity):
    """One coefficient per model and layer.

    Attributes:
        pattern: a regular expression searched in each path; leaves with the same first group (or whole match) share a
            coefficient, leaves that do not match have one each. The default takes the module that holds the leaf.
    """

    pattern: str = r"^(.*)/[^/]+$"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"PerLayer pattern {self.pattern!r} is not a regular expression: {error}") from None

    def group(self, path: str) -> str:
        """What the pattern finds in the path."""
        found = re.search(self.pattern, path)
        return path if found is None else found.group(found.re.groups and 1) or ""

    def check(self, params: PyTree) -> None:
        """The pattern must match at least one path."""
        paths = [p for p in flatten(params) if not is_statistic(p)]
        if not any(re.search(self.pattern, p) for p in paths):
            raise ValueError(f"PerLayer pattern {self.pattern!r} matches none of {len(paths)} paths, such as {paths[:3]}")


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One coefficient per model and tensor."""

    def group(self, path: str) -> str:
        """Each leaf its own."""
        return path


@dataclass(frozen=True)
class PerChannel(PerTensor):
    """One coefficient per model and output channel: the last axis, as JAX libraries store kernels."""

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """One along all axes but the last."""
        return (1,) * (len(leaf) - 1) + leaf[-1:]


@dataclass(frozen=True)
class PerParameter(PerTensor):
    """One coefficient per model and parameter (NP Merge)."""

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the leaf."""
        return leaf
