"""Gram matrices of what linear sites and lookups read: the statistic of RegMean."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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
from npmerge.base import Merge, Stats
from npmerge.masks import counted
from npmerge.stack import Stack
from npmerge.statistics.one_by_one import alone, frequencies, of_models, one_by_one, per_sample, product, samples_of


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
    if stats is None or InputGram not in stats:
        name = type(merge).__name__
        raise ValueError(f"{name} needs stats: pass npmerge.collect(apply, graph, models, batches, [InputGram()])")
    leaves = flatten(stack.params)
    for name, g in stats[InputGram].items():
        _check_gram(name, g, leaves.get(g.site.path))
    return by_part(stats[InputGram].values(), {path: np.shape(x)[1:] for path, x in leaves.items()})


def _check_gram(name: str, g: SiteGram, leaf: Array | None) -> None:
    expected: Any = "no such weight"
    if leaf is not None:
        try:
            *copies, rows, _ = jax.eval_shape(g.site.matrix, jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)).shape
            expected = (len(leaf), *copies, rows) if isinstance(g.site, Lookup) else (len(leaf), *copies, rows, rows)
        except (TypeError, ValueError):
            expected = f"a weight of shape {leaf.shape[1:]}"
    if np.shape(g.gram) != expected:
        raise ValueError(
            f"the Gram matrix of {name!r} is of other models or another layer: got {np.shape(g.gram)}, expected {expected}"
        )
    if not isinstance(g.gram, jax.core.Tracer) and not np.isfinite(np.asarray(g.gram)).all():
        raise ValueError(f"the Gram matrix of {name!r} is not finite: is there a NaN in the data, or a token too large?")


def by_part(grams: Iterable[SiteGram], shapes: Mapping[str, tuple[int, ...]]) -> list[SiteGram]:
    """One for each part of a leaf that sites read, the sum of theirs; `shapes` of the leaves.

    Raises:
        ValueError: for sites that share some elements of a weight, but not all.
    """
    at: dict[str, list[SiteGram]] = {}
    for g in grams:
        at.setdefault(g.site.path, []).append(g)
    return [g for path, several in at.items() for g in _parts(several, shapes[path])]


def _parts(several: list[SiteGram], leaf: tuple[int, ...]) -> list[SiteGram]:
    if len(several) == 1:
        return several
    parts: dict[bytes, SiteGram] = {}
    seen = np.zeros(math.prod(leaf), bool)
    for g in several:
        with jax.ensure_compile_time_eval():  # which elements they are is known when models are traced
            places = np.asarray(g.site.places(leaf))
        before = parts.get(places.tobytes())
        if before is None and seen[places.ravel()].any():
            raise ValueError(f"site {g.site.name!r} reads a part of its weight that another site reads otherwise")
        seen[places.ravel()] = True
        parts[places.tobytes()] = g if before is None else replace(before, gram=before.gram + g.gram)
    return list(parts.values())
