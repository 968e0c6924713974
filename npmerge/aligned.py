"""An alignment and a merge as one merge: the bridge between the two packages."""

from dataclasses import dataclass

import jax
from jaxtyping import Array

from alignment.base import Alignment, maps_of
from alignment.checks import check_key, check_kinds
from alignment.graph import Graph, PyTree
from alignment.maps import transport
from npmerge.base import Merge, Stats
from npmerge.stack import Stack, check_stack, side_by_side


@dataclass(frozen=True)
class Aligned(Merge):
    """Bring the models into the units of model 0, then merge.

    Theta is `{"alignment": ..., "merge": ...}`, so alignment and coefficients can be learned together. Where the alignment
    is to stay as it is, call `alignment.align` once and merge the result: that does not transport in every step.

    Attributes:
        alignment: one of ALIGNMENTS.
        merge: what to do with the aligned models; one that needs no statistics, for they would be of the models unaligned.
        graph: the traced graph of the architecture.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.ones((1, 2))
        >>> a = {"w": jnp.array([[1.0, 0.0], [0.0, 2.0]]), "u": jnp.array([[1.0, 3.0], [2.0, 4.0]])}
        >>> b = {"w": a["w"][:, ::-1], "u": a["u"][::-1]}  # the same function, its units in another order
        >>> graph, stack = nm.trace(apply, a, x), nm.stack_models([a, b])
        >>> merge = nm.Aligned(alignment.WeightMatching(), nm.Average(), graph)
        >>> print(apply(a, x), apply(merge(stack), x), apply(nm.Average()(stack), x))
        [[ 5. 11.]] [[ 5. 11.]] [[ 4.5 10.5]]
    """

    alignment: Alignment
    merge: Merge
    graph: Graph

    def __post_init__(self) -> None:
        call = "Aligned takes (alignment, merge, graph)"
        check_kinds(call, (self.alignment, Alignment), (self.merge, Merge), (self.graph, Graph))
        if self.merge.needs:
            names = ", ".join(s.__name__ for s in self.merge.needs)
            raise ValueError(
                f"{type(self.merge).__name__} needs {names} of the aligned models: align first, then collect, then merge"
            )

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        """What the alignment needs."""
        return self.alignment.needs

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> dict[str, PyTree]:
        """Theta of the alignment, and of the merge on the aligned models."""
        keys = _split(key)
        found = self.alignment.init(self.graph, check_stack(stack).models(), stats=stats, key=keys[0])
        aligned = self._transported(found, stack)
        return {"alignment": found, "merge": self.merge.init(aligned, stats=stats, key=keys[1])}

    def __call__(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Align as `align` does, what the alignment relaxes made exact, then merge in closed form."""
        keys = _split(key)
        found = self.alignment.init(self.graph, check_stack(stack).models(), stats=stats, key=keys[0])
        return self.merge(self._transported(self.alignment.rounded(found), stack), stats=stats, key=keys[1])

    def apply(self, theta: dict[str, PyTree], stack: Stack) -> PyTree:
        """The merge of the transported models."""
        return self.merge.apply(theta["merge"], self._transported(theta["alignment"], stack))

    def rounded(self, theta: dict[str, PyTree]) -> dict[str, PyTree]:
        """Theta with what the alignment relaxes made exact: call it when learning is over."""
        return {"alignment": self.alignment.rounded(theta["alignment"]), "merge": theta["merge"]}

    def _transported(self, theta: PyTree, stack: Stack) -> Stack:
        maps = maps_of(self.alignment, self.graph, theta, check_stack(stack).size)
        models = (transport(self.graph, m, model) for m, model in zip(maps, stack.models(), strict=True))
        return Stack(side_by_side(tuple(models)), stack.base)


def _split(key: Array | None) -> tuple[Array | None, Array | None]:
    """One for the alignment, one for the merge."""
    check_key(key)
    return (None, None) if key is None else tuple(jax.random.split(key))
