"""Gram matrices of what linear sites and lookups read: the statistic of RegMean."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.activations.moments import Statistic
from alignment.activations.taps import capture
from alignment.checks import check_count
from alignment.graph import Graph, PyTree, flatten
from alignment.lookups import Lookup
from alignment.sites import Use
from npmerge.arithmetic import summed
from npmerge.base import Merge, Stats
from npmerge.masks import counted
from npmerge.stack import Stack
from npmerge.statistics.collected import collected_for
from npmerge.statistics.one_by_one import alone, frequencies, of_models, one_by_one, per_sample, product, samples_of
from npmerge.statistics.parts import all_finite, by_leaf, by_part, matrices_of


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SiteGram:
    """What a site reads, in each model: G = mean x^T x over `samples` samples, without centring.

    Of a lookup, whose inputs are one-hot, it is the diagonal of that: how often each row is read.
    """

    samples: Float[Array, " models"]
    gram: Float[Array, "models *copies rows rows"] | Float[Array, "models *copies rows"]
    site: Use = field(metadata={"static": True})


@dataclass(frozen=True)
class InputGram(Statistic):
    """The Gram matrix G = mean x x^T of the inputs x of every linear site, in each model.

    Dense layers, projections of attention and experts alike; of a convolution x are its patches, of which those of `microbatch`
    examples exist at once. Every position of an image or a sequence is a sample; padding (`npmerge.masks.counted`) is none,
    and the mean is over samples, so that models weigh alike whatever the lengths of their data. Sums are float32 products of
    the highest precision. Examples are looked at one by one, so a network must not look at others in evaluation mode.

    An embedding is a layer of one-hot inputs: G is diagonal, the frequency of each token, and only the diagonal is kept.
    Weights that are read otherwise too (an embedding tied to the head) are left out. Finalised to a mapping from the names of
    sites and lookups to `SiteGram`.

    Attributes:
        microbatch: examples whose features exist at once.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 3))}, jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> stats = nm.collect(apply, nm.trace(apply, v, x), [v], [(x, None)], [nm.InputGram()])
        >>> print(stats[nm.InputGram]["w"].gram)  # x^T x / 2, for each model
        [[[1. 1.]
          [1. 2.]]]
    """

    microbatch: int = 8
    reads = frozenset({"activations"})

    def __post_init__(self) -> None:
        check_count("microbatch", self.microbatch)

    def measure(
        self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple
    ) -> dict[str, SiteGram]:
        """Sums of products over one batch. Raises ValueError for a mask whose positions are not those of a site."""
        small, sites, lookups = one_by_one(apply, graph, models[0], batch[0])

        def sums(model: PyTree, x: PyTree, mask: Bool[Array, "examples ..."]) -> dict[str, tuple[Array, Array]]:
            seen = jax.vmap(lambda one: capture(apply, small, model, *alone(one), nodes=(), sites=sites, lookups=lookups))(x)
            totals = {}
            for name, site in sites.items():
                w = samples_of(site, mask, seen.sites[name].inputs.shape[-2])
                totals[name] = w.sum(dtype=jnp.float32), product(seen.sites[name].inputs, w)
            for name, lookup in lookups.items():
                w = samples_of(lookup, mask, seen.lookups[name].shape[-1])
                totals[name] = w.sum(dtype=jnp.float32), frequencies(seen.lookups[name], w, lookup.shape[lookup.axis])
            return totals

        totals = of_models(sums, self.microbatch, models, batch[0], counted(batch))
        return {name: SiteGram(count, total, (sites | lookups)[name]) for name, (count, total) in totals.items()}

    def combine(self, a: dict[str, SiteGram], b: dict[str, SiteGram]) -> dict[str, SiteGram]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: dict[str, SiteGram]) -> dict[str, SiteGram]:
        """Divide by the number of samples; zero without any."""
        return {name: SiteGram(s.samples, per_sample(s.gram, s.samples), s.site) for name, s in state.items()}


def grams_of(merge: Merge, stack: Stack, stats: Stats | None) -> list[SiteGram]:
    """The Gram matrices among all that was collected; `merge` is named in messages.

    Where a weight is used at several sites, its matrix is the sum of theirs.

    Raises:
        ValueError: none, those of other models or another layer, values that are not finite, or sites that share a part of a
            weight.
    """
    leaves, found = flatten(stack.params), collected_for(merge, stats, InputGram)
    for name, g in found.items():
        _check(name, g, leaves.get(g.site.path))
    return added_by_part(found.values(), {path: np.shape(x)[1:] for path, x in leaves.items()})


def _check(name: str, g: SiteGram, leaf: Array | None) -> None:
    expected = matrices_of(g.site, leaf)
    if not isinstance(expected, str):
        *copies, rows, _ = expected
        expected = (*copies, rows) if isinstance(g.site, Lookup) else (*copies, rows, rows)
    if np.shape(g.gram) != expected:
        raise ValueError(
            f"the Gram matrix of {name!r} is of other models or another layer: got {np.shape(g.gram)}, expected {expected}"
        )
    if not all_finite(g.gram):
        raise ValueError(f"the Gram matrix of {name!r} is not finite: is there a NaN in the data, or a token too large?")


def added_by_part(grams: Iterable[SiteGram], shapes: Mapping[str, tuple[int, ...]]) -> list[SiteGram]:
    """One for each part of a leaf that sites read, the sum of theirs; `shapes` of the leaves.

    Raises:
        ValueError: for sites that share some elements of a weight, but not all.
    """
    parts = (part for path, several in by_leaf(grams).items() for part in by_part(several, shapes[path]))
    return [replace(part[0], gram=summed([g.gram for g in part])) for part in parts]
