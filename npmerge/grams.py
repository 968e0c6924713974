"""Gram matrices of what linear sites read: the statistic of RegMean."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.checks import check_count
from alignment.graph import Graph, PyTree, Signature, as_shapes, flatten, signature
from alignment.maps import HIGHEST
from alignment.moments import Statistic
from alignment.products import gram
from alignment.sites import Site
from alignment.taps import capture
from alignment.trace import walked
from npmerge.base import Merge, Stats
from npmerge.batches import counted
from npmerge.stack import Stack


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class SiteGram:
    """What a site reads, in each model: G = mean x^T x over `samples` samples, without centring."""

    samples: Float[Array, " models"]
    gram: Float[Array, "models *copies rows rows"]
    site: Site = field(metadata={"static": True})


@dataclass(frozen=True)
class InputGram(Statistic):
    """The Gram matrix G = mean x x^T of the inputs x of every linear site, in each model.

    Dense layers, projections of attention and experts alike; of a convolution x are its patches, of which those of `microbatch`
    examples exist at once. Every position of an image or a sequence is a sample; padding (`npmerge.batches.counted`) is none,
    and the mean is over samples, so that models weigh alike whatever the lengths of their data. Sums are float32 products of
    the highest precision. Examples are looked at one by one, so a network must not look at others in evaluation mode.

    Weights that are read other than by sites (an embedding tied to the head) are left out, and embeddings are no sites.
    Finalised to a mapping site -> `SiteGram`.

    Attributes:
        microbatch: examples whose features exist at once.
    """

    microbatch: int = 8

    def __post_init__(self) -> None:
        check_count("microbatch", self.microbatch)

    def measure(
        self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple
    ) -> dict[str, SiteGram]:
        """Sums of products over one batch. Raises ValueError for a mask whose positions are not those of a site."""
        sites = {site.name: site for site in solvable(apply, graph, models[0], batch[0])}

        def sums(model: PyTree, x: PyTree, mask: Bool[Array, "examples ..."]) -> dict[str, tuple[Array, Array]]:
            found = jax.vmap(lambda one: capture(apply, graph, model, *alone(one), nodes=(), sites=sites).sites)(x)
            weights = {name: samples_of(site, mask, found[name].inputs.shape[-2]) for name, site in sites.items()}
            return {name: (w.sum(dtype=jnp.float32), product(found[name].inputs, w)) for name, w in weights.items()}

        totals = of_models(sums, self.microbatch, models, batch[0], counted(batch))
        return {name: SiteGram(count, total, sites[name]) for name, (count, total) in totals.items()}

    def combine(self, a: dict[str, SiteGram], b: dict[str, SiteGram]) -> dict[str, SiteGram]:
        """Add."""
        return jax.tree.map(jnp.add, a, b)

    def finalise(self, state: dict[str, SiteGram]) -> dict[str, SiteGram]:
        """Divide by the number of samples; zero without any."""
        return {name: SiteGram(s.samples, per_sample(s.gram, s.samples), s.site) for name, s in state.items()}


def solvable(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, inputs: PyTree) -> list[Site]:
    """The sites whose weights are read by sites only, in the order of the network. Traceable."""
    readers = _readers(apply, signature(variables), signature(inputs))
    at: dict[str, set] = {}
    for site in graph.sites:
        at.setdefault(site.path, set()).add(site.location)
    return [site for site in graph.sites if readers[site.path] <= at[site.path]]


@functools.lru_cache(maxsize=32)
def _readers(apply: Callable[..., PyTree], variables: Signature, inputs: Signature) -> dict[str, set]:
    return walked(apply, as_shapes(variables), (as_shapes(inputs),)).readers


def alone(example: PyTree) -> tuple[PyTree]:
    """A batch of one example, as the arguments of a network."""
    return (jax.tree.map(lambda x: x[None], example),)


def of_models(sums: Callable[..., Any], size: int, models: Sequence[PyTree], *data: PyTree) -> Any:
    """`sums(model, *data)` for each model, over `size` examples at a time and added up; the last of data is the mask.

    The last few are filled up with copies of the first example, which do not count.
    """
    examples = len(data[-1])
    size = min(size, examples)
    fill = -examples % size

    def chunks(x: Array) -> Array:
        more = jnp.broadcast_to(x[:1], (fill, *x.shape[1:]))
        return jnp.concatenate([x, more]).reshape(-1, size, *x.shape[1:])

    *values, mask = (jax.tree.map(lambda x: chunks(jnp.asarray(x)), d) for d in data)
    real = (jnp.arange(examples + fill) < examples).reshape(-1, size)
    mask = mask & real.reshape(*real.shape, *(1,) * (mask.ndim - 2))

    def of_model(model: PyTree) -> Any:
        shapes = jax.eval_shape(sums, model, *(jax.tree.map(lambda x: x[0], v) for v in (*values, mask)))
        start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(lambda t, c: (jax.tree.map(jnp.add, t, sums(model, *c)), None), start, (*values, mask))[0]

    return jax.lax.map(of_model, jax.tree.map(lambda *leaves: jnp.stack(leaves), *models))


def product(
    x: Float[Array, "examples *copies samples units"],
    weights: Bool[Array, "examples samples"],
    y: Float[Array, "examples *copies samples units"] | None = None,
) -> Float[Array, "*copies units units"]:
    """The sum of x^T x, or of x^T y, over the samples that count, of all examples."""

    def flat(x: Array) -> Array:
        x = jnp.where(weights.reshape(len(x), *(1,) * (x.ndim - 3), -1, 1), x.astype(jnp.float32), 0)
        x = jnp.moveaxis(x, 0, -3)
        return x.reshape(*x.shape[:-3], -1, x.shape[-1])

    return gram(flat(x)) if y is None else jnp.matmul(flat(x).mT, flat(y), precision=HIGHEST)


def samples_of(site: Site, mask: Bool[Array, "examples ..."], samples: int) -> Bool[Array, "examples samples"]:
    """Which samples of a site count; one that stands for all positions does if any of them does."""
    positions = math.prod(mask.shape[1:])
    if samples == 1 or mask.ndim == 1:
        return jnp.broadcast_to(mask.reshape(len(mask), -1).any(1, keepdims=True), (len(mask), samples))
    if samples % positions:
        raise ValueError(
            f"the mask has {positions} positions, but site {site.name!r} reads {samples} samples of an example: they are not "
            "those positions, so it cannot be told which are padding"
        )
    times = samples // positions
    return jnp.tile(mask, (1, times)) if len(site.stacked) > sum(site.stacked) else jnp.repeat(mask, times, axis=1)


def per_sample(total: Float[Array, "models ..."], samples: Float[Array, " models"]) -> Float[Array, "models ..."]:
    """A sum divided by the number of samples of each model; zero without any."""
    return total / jnp.maximum(samples, 1).reshape(-1, *(1,) * (total.ndim - 1))


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
            expected = (len(leaf), *copies, rows, rows)
        except (TypeError, ValueError):
            expected = f"a weight of shape {leaf.shape[1:]}"
    if np.shape(g.gram) != expected:
        raise ValueError(
            f"the Gram matrix of {name!r} is of other models or another layer: got {np.shape(g.gram)}, expected {expected}"
        )
    if not np.isfinite(np.asarray(g.gram)).all():
        raise ValueError(f"the Gram matrix of {name!r} is not finite: is there a NaN in the data?")


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
        places = np.asarray(g.site.places(leaf))
        before = parts.get(places.tobytes())
        if before is None and seen[places.ravel()].any():
            raise ValueError(f"site {g.site.name!r} reads a part of its weight that another site reads otherwise")
        seen[places.ravel()] = True
        parts[places.tobytes()] = g if before is None else replace(before, gram=before.gram + g.gram)
    return list(parts.values())
