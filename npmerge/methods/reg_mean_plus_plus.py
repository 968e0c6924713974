"""Regression mean along the merged network."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_fraction, check_number, check_pattern
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.granularity import PerLayer
from npmerge.quadratics.chained import Chain, chained
from npmerge.quadratics.operators import QuadraticMerge
from npmerge.stack import Stack
from npmerge.statistics.examples import Examples


@dataclass(frozen=True)
class RegMeanPlusPlus(QuadraticMerge):
    """RegMean with Gram matrices of what layers read behind the layers merged before them (Nguyen et al. 2025, RegMean++).

    Block by block in the order of the network: each model's data go through the merged blocks and through the model's own
    block, where the Gram matrices are taken; then that is merged as `RegMean` does it. What no linear site reads is averaged.
    One pass over the data for each block, all in `init`; theta holds the shares, as of `RegMean`, so `apply` reads no data.
    Needs `Examples`, each model its own: `collect_each`. The network is run in float32.

    Attributes:
        scale: of off-diagonal elements, 0.95 as published.
        ridge: as of `RegMean`.
        pattern: leaves with the same first group are a block. The default takes the module that holds the leaf, so that
            every layer sees all layers before it merged; for blocks as published write r"(blocks/[0-9]+)/".

    Example:
        >>> apply, x = lambda v, x: x @ v["a"] @ v["b"], jnp.ones((1, 1))
        >>> models = [{"a": jnp.full((1, 1), a), "b": jnp.full((1, 1), b)} for a, b in ((1.0, 1.0), (3.0, 2.0))]
        >>> graph = nm.trace(apply, models[0], x)
        >>> stats = nm.collect_each(apply, graph, models, [[(x, None)]] * 2, [nm.InputGram(), nm.Examples()])
        >>> for merge in (nm.RegMean(), nm.RegMeanPlusPlus()):  # b reads 1 and 3 in the models, 2 behind the merged a
        ...     print(np.array(merge(nm.stack_models(models), stats=stats)["b"]).round(3))
        [[1.9]]
        [[1.5]]
    """

    scale: float = 0.95
    ridge: float = 1e-6
    pattern: str = PerLayer.pattern
    needs = (Examples,)

    def __post_init__(self) -> None:
        check_fraction("scale", self.scale)
        check_number("ridge", self.ridge)
        check_pattern("pattern", self.pattern)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The shares. Raises ValueError without data, or with those of another network or number of models."""
        return chained(self, Chain(self.pattern, self.scale, self.ridge, own=False), stack, stats)["shares"]
