"""How many coefficients a learned merge has: from one per model to one per parameter. A granularity is only a shape."""

import abc
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.graph import PyTree, flatten, path_name
from alignment.names import is_statistic


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

    def reduce(self, coefficients: PyTree, params: PyTree) -> dict[str, Float[np.ndarray, "models ..."]]:
        """Coefficients by group, the inverse of `expand`; axes along which they are equal may have length one. Host code.

        Raises:
            ValueError: if coefficients that would be shared are not equal, or the granularity does not fit the parameters.
        """
        self.check(params)
        leaves = flatten(params)
        groups: dict[str, np.ndarray] = {}
        for path, leaf in flatten(coefficients).items():
            if is_statistic(path):
                continue
            c, shape = np.asarray(leaf, np.float32), self.shape(leaves[path].shape[1:])
            kept = c[(slice(None), *(slice(None if n > 1 else 1) for n in shape or (1,) * (c.ndim - 1)))]
            compact = kept if shape else kept.reshape(len(c))
            shared = groups.setdefault(self.group(path), compact)
            if not np.allclose(c, shared.reshape(shared.shape + (1,) * (c.ndim - shared.ndim)), rtol=1e-6, atol=1e-7):
                raise ValueError(
                    f"{self} cannot represent the start: its coefficients differ inside {path!r}; PerParameter can, and "
                    "where they differ between layers PerTensor, or PerLayer with a pattern of its own (in a recipe "
                    "per_parameter, per_tensor, per_layer)"
                )
        return groups

    def shapes(self, params: PyTree) -> dict[str, tuple[int, ...]]:
        """Shape of one model's coefficient for each group."""
        leaves = {path: x.shape[1:] for path, x in flatten(params).items() if not is_statistic(path)}
        return {self.group(path): self.shape(leaf) for path, leaf in leaves.items()}

    def check(self, params: PyTree) -> None:  # noqa: B027 (nothing to check is the default)
        """Raise ValueError if the granularity does not fit these parameters."""


@dataclass(frozen=True)
class PerModel(Granularity):
    """One coefficient per model.

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerModel().shapes(nm.stack_models([model, model]).params)
        {'all': ()}
    """

    def group(self, path: str) -> str:
        """One group for all leaves."""
        return "all"


@dataclass(frozen=True)
class PerLayer(Granularity):
    r"""One coefficient per model and layer.

    Attributes:
        pattern: a regular expression searched in each path; leaves with the same first group (or whole match) share a
            coefficient, leaves that do not match have one each. The default takes the module that holds the leaf.

    Raises:
        ValueError: a pattern that is no regular expression.

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerLayer().shapes(nm.stack_models([model, model]).params)
        {'first': (), 'out': ()}
        >>> nm.PerLayer(r"blocks/(\d+)/").group("blocks/7/attention/query/kernel")
        '7'
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
    """One coefficient per model and tensor.

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerTensor().shapes(nm.stack_models([model, model]).params)
        {'first/b': (), 'first/w': (), 'out/w': ()}
    """

    def group(self, path: str) -> str:
        """Each leaf its own."""
        return path


@dataclass(frozen=True)
class PerChannel(PerTensor):
    """One coefficient per model and output channel: the last axis, as JAX libraries store kernels.

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerChannel().shapes(nm.stack_models([model, model]).params)
        {'first/b': (3,), 'first/w': (1, 3), 'out/w': (1, 1)}
    """

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """One along all axes but the last."""
        return (1,) * (len(leaf) - 1) + leaf[-1:]


@dataclass(frozen=True)
class PerInput(PerTensor):
    """One coefficient per model and input channel: the last axis but one; of vectors one per entry.

    Columns of the weights as papers write them, (out, in). An embedding's inputs are its rows.

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerInput().shapes(nm.stack_models([model, model]).params)
        {'first/b': (3,), 'first/w': (2, 1), 'out/w': (3, 1)}
    """

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """One along all axes but the last but one."""
        return leaf if len(leaf) < 2 else (1,) * (len(leaf) - 2) + (leaf[-2], 1)


@dataclass(frozen=True)
class PerParameter(PerTensor):
    """One coefficient per model and parameter (NP Merge).

    Example:
        >>> model = {"first": {"b": jnp.ones(3), "w": jnp.ones((2, 3))}, "out": {"w": jnp.ones((3, 1))}}
        >>> nm.PerParameter().shapes(nm.stack_models([model, model]).params)
        {'first/b': (3,), 'first/w': (2, 3), 'out/w': (3, 1)}
    """

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the leaf."""
        return leaf
