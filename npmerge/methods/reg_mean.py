"""Regression mean."""

from dataclasses import dataclass

from jaxtyping import Array

from alignment.checks import check_fraction, check_number
from alignment.graph import PyTree
from npmerge.base import Stats
from npmerge.hyper import searched, spaced
from npmerge.quadratics.gram_shares import regression_shares
from npmerge.quadratics.operators import QuadraticMerge
from npmerge.stack import Stack
from npmerge.statistics.input_grams import InputGram, grams_of


@dataclass(frozen=True)
class RegMean(QuadraticMerge):
    """(sum_m G_m)^-1 sum_m G_m W_m at each linear site, W (rows, columns): argmin_W sum_m |X_m (W - W_m)|^2 / n_m.

    Jin et al. 2023, who write W transposed. G_m = X_m^T X_m / n_m is the Gram matrix of what the site reads in
    model m, its off-diagonal elements times `scale`; every position counts, so that models weigh alike whatever the lengths of
    their data (the published programs do not agree: some divide by examples). Fused and single projections, experts and
    convolutions, by their patches, are sites alike. An embedding is a layer of one-hot inputs: the row of a token weighs models
    by how often they read it, that of a token nobody read is the mean. Biases, norms and embeddings that are the head too are
    averaged. Each model should be measured on its own data: `collect_each`. Theta holds the shares (sum_k G_k)^-1 G_m. Needs
    `InputGram`.

    Where the sum is singular to the precision of float32, directions that the data did not show become the mean and a warning
    names the sites, though no embeddings (programs that invert what remains without empty rows make those zero); a `ridge`
    above that precision, about 1e-6 sqrt(rows), decides instead, with G_m + r I for each model, r = ridge tr(sum_k G_k) /
    (models rows).

    Attributes:
        scale: a in a G + (1 - a) diag(G). FusionBench has 0.95 for CLIP and 0.1 otherwise, git-theta 0.5. 0 is a mean of the
            rows, weighted by their mean squares.
        ridge: relative to the mean of the diagonal.

    Example:
        >>> apply = lambda v, x: x @ v["w"]
        >>> models = [{"w": jnp.array([[1.0], [0.0]])}, {"w": jnp.array([[0.0], [2.0]])}]
        >>> tasks = [[(jnp.array([[1.0, 0.0]]), None)], [(jnp.array([[0.0, 1.0]]), None)]]  # each model reads one input
        >>> graph = nm.trace(apply, models[0], tasks[0][0][0])
        >>> stats = nm.collect_each(apply, graph, models, tasks, [nm.InputGram()])
        >>> print(np.array(nm.RegMean()(nm.stack_models(models), stats=stats)["w"]).round(3))  # the average halves both
        [[1.]
         [2.]]
    """

    scale: float = searched(0.95, spaced(0.0, 1.0, 0.1))
    ridge: float = 1e-6
    needs = (InputGram,)

    def __post_init__(self) -> None:
        check_fraction("scale", self.scale)
        check_number("ridge", self.ridge)

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The shares. Raises ValueError without statistics, or with those of other models or another layer, by its name."""
        return regression_shares(self, stack, grams_of(self, stack, stats), self.scale, self.ridge)
