"""What was measured, by kind: a mapping that is a tree to JAX."""

from collections.abc import Iterable
from typing import Any

import jax


@jax.tree_util.register_pytree_with_keys_class
class Collected(dict[type, Any]):
    """A dict whose keys are types, which have no order: JAX takes other dicts apart in the order of their keys."""

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[type, ...]]:
        """The values in the order of the names of their types."""
        kinds = tuple(sorted(self, key=lambda kind: (kind.__qualname__, kind.__module__)))
        return [(jax.tree_util.DictKey(kind), self[kind]) for kind in kinds], kinds

    @classmethod
    def tree_unflatten(cls, kinds: tuple[type, ...], values: Iterable[Any]) -> "Collected":
        """The mapping again."""
        return cls(zip(kinds, values, strict=True))
