"""What was collected, by kind: a mapping that is a tree to JAX."""

from collections.abc import Iterable
from typing import Any

import jax

from npmerge.base import Merge, Stats


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


def collected_for(merge: Merge, stats: Stats | None, kind: type) -> Any:
    """What was collected of one kind; `merge`, which needs it, is named in the message.

    Raises:
        ValueError: nothing of that kind.
    """
    if stats is None or kind not in stats:
        call = f"npmerge.collect(apply, graph, models, batches, [{kind.__name__}()])"
        raise ValueError(f"{type(merge).__name__} needs stats: pass {call}")
    return stats[kind]
