"""Kronecker factors of the Fisher information of linear sites: the statistic of MaTS."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from alignment.activations.taps import gradients
from alignment.graph import Graph, PyTree, flatten
from alignment.sites import Site
from npmerge.base import Merge, Stats
from npmerge.masks import counted
from npmerge.stack import Stack
from npmerge.statistics.collected import collected_for
from npmerge.statistics.likelihood import OfLikelihood, drawn, labels_of, log_likelihood
from npmerge.statistics.one_by_one import alone, of_models, one_by_one, per_sample, product, samples_of
from npmerge.statistics.parts import all_finite, by_leaf, by_part, matrices_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SiteFactors:
    """What a site reads and what comes back to what it makes, in each model: A = mean x^T x, B = mean g^T g over `samples`."""

    samples: Float[Array, " models"]
    inputs: Float[Array, "models *copies rows rows"]
    gradients: Float[Array, "models *copies columns columns"]
    site: Site = field(metadata={"static": True})


@dataclass(frozen=True)
class KroneckerFactors(OfLikelihood):
    """A = mean x x^T and B = mean E_y g g^T of every linear site in each model: its Fisher information is about A x B (K-FAC).

    x is what the site reads, as for `InputGram`, and g the gradient of log p(y|x) at what it makes (Martens and Grosse 2015;
    the factors of MaTS, Tam et al. 2023). Samples, padding and the sites, without embeddings, are those of `InputGram`,
    `kind` and `seed` those of `DiagonalFisher`; an example of several predictions has the sum of their log-likelihoods.
    Finalised to a mapping site -> `SiteFactors`.

    Attributes:
        kind: "exact" takes the expectation over y ~ p(y|x), "sampled" draws one y for each prediction, "empirical" takes the
            labels of the data, as the program of Tam et al. does.
        microbatch: examples whose features and gradients exist at once, "exact" as many times as there are outcomes.
        seed: of the draws.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 2))}, jnp.array([[1.0, 3.0]])
        >>> stats = nm.collect(apply, nm.trace(apply, v, x), [v], [(x, None)], [nm.KroneckerFactors()])
        >>> found = stats[nm.KroneckerFactors]["w"]
        >>> print(found.inputs[0])  # A of the first model
        [[1. 3.]
         [3. 9.]]
        >>> print(np.array(found.gradients[0]).round(3))  # and its B, here of two equally likely classes
        [[ 0.25 -0.25]
         [-0.25  0.25]]
    """

    always = frozenset({"activations", "gradients"})

    def measure(
        self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple
    ) -> dict[str, SiteFactors]:
        """Sums of products over one batch. Raises ValueError for labels, or positions of a mask, that do not fit."""
        small, sites, _ = one_by_one(apply, graph, models[0], batch[0])
        labels = labels_of("KroneckerFactors", self.kind, jax.eval_shape(apply, models[0], batch[0]), batch)

        def of_one(model: PyTree, x: PyTree, label: Int[Array, "..."]) -> tuple[Any, Any]:
            found = gradients(apply, small, model, *alone(x), sites=tuple(sites))
            return found.inputs, self._back(found, x, label)

        def sums(model: PyTree, x: PyTree, label: Int[Array, "examples ..."], mask: Bool[Array, "examples ..."]) -> Any:
            read, back = jax.vmap(lambda one, y: of_one(model, one, y))(x, label)
            return {name: _summed(site, read[name], back[name], mask) for name, site in sites.items()}

        totals = of_models(sums, self.microbatch, models, batch[0], labels, counted(batch))
        return {name: SiteFactors(count, a, b, sites[name]) for name, (count, a, b) in totals.items()}

    def combine(self, a: dict[str, SiteFactors], b: dict[str, SiteFactors]) -> dict[str, SiteFactors]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: dict[str, SiteFactors]) -> dict[str, SiteFactors]:
        """Divide by the number of samples; zero without any."""
        return {
            name: SiteFactors(s.samples, per_sample(s.inputs, s.samples), per_sample(s.gradients, s.samples), s.site)
            for name, s in state.items()
        }

    def _back(self, found: Any, x: Any, label: Int[Array, "..."]) -> Any:
        """Gradients at what the sites make in one example, (outcomes, *copies, samples, columns) each."""
        log_p, back = jax.vjp(lambda y: jax.nn.log_softmax(y[0].astype(jnp.float32)), found.outputs)
        return jax.vmap(lambda c: found.pull(*back(c)))(self._outcomes(x, log_p, label))

    def _outcomes(self, x: Any, log_p: Float[Array, "... classes"], label: Int[Array, "..."]) -> Float[Array, "n ... classes"]:
        """The gradients of the log-likelihood at log_p, of every outcome times the root of its probability, or of one."""
        if self.kind == "exact":  # scores of different predictions are uncorrelated: each stands alone
            root = jnp.where(label[..., None] >= 0, jnp.exp(log_p / 2), 0)
            return jnp.diag(root.ravel()).reshape(-1, *log_p.shape)
        if self.kind == "sampled":
            label = drawn(self.seed, x, log_p, label)
        return jax.grad(log_likelihood)(log_p, label)[None]


def _summed(
    site: Site,
    x: Float[Array, "examples *copies samples rows"],
    g: Float[Array, "examples outcomes *copies samples columns"],
    mask: Bool[Array, "examples ..."],
) -> tuple[Array, Array, Array]:
    weights = samples_of(site, mask, x.shape[-2])
    g = jnp.moveaxis(g, 1, -3)
    g = g.reshape(*g.shape[:-3], -1, g.shape[-1])  # outcomes are samples, too, but do not count as such
    many = jnp.tile(weights, (1, g.shape[-2] // weights.shape[1]))
    return weights.sum(dtype=jnp.float32), product(x, weights), product(g, many)


def factors_of(merge: Merge, stack: Stack, stats: Stats | None) -> list[SiteFactors]:
    """The Kronecker factors among all that was collected; `merge` is named in messages.

    Sites that read the same part of a weight are one, whose factors follow each other along the axis of the models.

    Raises:
        ValueError: none, those of other models or another layer, values that are not finite, or sites that share a part of a
            weight.
    """
    leaves, found = flatten(stack.params), collected_for(merge, stats, KroneckerFactors)
    for name, f in found.items():
        _check(name, f, leaves.get(f.site.path))
    parts = (part for path, several in by_leaf(found.values()).items() for part in by_part(several, leaves[path].shape[1:]))
    return [jax.tree.map(lambda *x: jnp.concatenate(x), *(replace(f, site=part[0].site) for f in part)) for part in parts]


def _check(name: str, f: SiteFactors, leaf: Array | None) -> None:
    expected: Any = matrices_of(f.site, leaf)
    if not isinstance(expected, str):
        *copies, rows, columns = expected
        expected = tuple((*copies, n, n) for n in (rows, columns))
    got = np.shape(f.inputs), np.shape(f.gradients)
    if got != expected:
        raise ValueError(f"the factors of {name!r} are of other models or another layer: got {got}, expected {expected}")
    if not all_finite(f.inputs, f.gradients):
        raise ValueError(f"the factors of {name!r} are not finite: is there a NaN in the data, or a label or token too large?")
