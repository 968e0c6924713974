"""Chain of merges."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_number
from alignment.graph import PyTree
from npmerge.base import Merge, Stats
from npmerge.granularity import PerLayer
from npmerge.quadratics.chained import Chain, chained
from npmerge.quadratics.operators import weigh
from npmerge.stack import Stack
from npmerge.statistics.examples import Examples


@dataclass(frozen=True)
class ChainOfMerges(Merge):
    """argmin_W sum_m |Z_m W - X_m W_m|^2 / n_m at each linear site: from merged inputs to what the models make of their own.

    Z_m is what the site reads in the network whose earlier layers are merged, X_m what it reads in model m, both on that
    model's data (Buzzega et al. 2025; they publish the layerwise recursion, the targets X_m W_m are our reading). The
    solution is

        W = mean + sum_m S_m (W_m - mean) + sum_m R_m W_m,   S_m = G^-1 Z_m^T Z_m / n_m,   R_m = G^-1 Z_m^T (X_m - Z_m) / n_m,

    G = sum_k Z_k^T Z_k / n_k, with a ridge towards the mean. It is linear in the models, so theta holds S and R, and `apply`
    reads no data. With one layer it is `RegMean(scale=1)`. Biases, norms and embeddings are averaged. One pass over the data
    for each layer, all in `init`. Needs `Examples`, each model its own: `collect_each`. The network is run in float32.

    Attributes:
        ridge: as of `RegMean`.

    Example:
        >>> apply, x = lambda v, x: x @ v["a"] @ v["b"], jnp.ones((1, 1))
        >>> models = [{"a": jnp.full((1, 1), a), "b": jnp.full((1, 1), 1 / a)} for a in (1.0, 2.0)]  # both the identity
        >>> graph = nm.trace(apply, models[0], x)
        >>> stats = nm.collect_each(apply, graph, models, [[(x, None)]] * 2, [nm.Examples()])
        >>> for merge in (nm.Average(), nm.ChainOfMerges()):
        ...     print(np.array(apply(merge(nm.stack_models(models), stats=stats), x)).round(3))
        [[1.125]]
        [[1.]]
    """

    ridge: float = 1e-6
    needs = (Examples,)

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> dict[str, PyTree]:
        """Shares and corrections. Raises ValueError without data, or with those of another network or number of models."""
        return chained(self, Chain(PerLayer.pattern, 1.0, self.ridge, own=True), stack, stats)

    def apply(self, theta: dict[str, PyTree], stack: Stack) -> PyTree:
        """The merged model, in float32 or wider and rounded once."""
        return weigh(theta["shares"], stack, theta["corrections"])
