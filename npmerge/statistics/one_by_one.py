"""Sums over the samples of sites, example by example: what statistics of sites share."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from alignment.activations.masked import counting
from alignment.activations.products import gram
from alignment.graph import Graph, PyTree, Signature, as_shapes, signature
from alignment.lookups import Lookup
from alignment.maps import HIGHEST
from alignment.sites import Site, Use, over
from alignment.tracing.trace import walked
from npmerge.arithmetic import column


class Alone(NamedTuple):
    """A network that looks at one example at a time.

    Attributes:
        graph: of the function of a batch of one: some functions are written otherwise for those.
        sites: by name, those of the graph that was given, whose weights are read by sites only.
        lookups: by name, those whose weights are read by lookups only.
    """

    graph: Graph
    sites: dict[str, Site]
    lookups: dict[str, Lookup]


def one_by_one(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, inputs: PyTree) -> Alone:
    """What to capture example by example, so that it is known which example a sample belongs to. Traceable.

    Raises:
        ValueError: where a batch of one has other sites or lookups.
    """
    one = jax.eval_shape(lambda x: alone(jax.tree.map(lambda leaf: leaf[0], x))[0], inputs)
    small, readers = _walked(apply, signature(variables), signature(one))
    if odd := {use.name for use in (*graph.sites, *graph.lookups)} ^ {use.name for use in (*small.sites, *small.lookups)}:
        raise ValueError(f"site {min(odd)!r} is only there for some sizes of a batch: examples must be looked at one by one")
    sites, lookups = _sole(small.sites, readers), _sole(small.lookups, readers)
    return Alone(
        small,
        {site.name: site for site in graph.sites if site.name in sites},
        {lookup.name: lookup for lookup in graph.lookups if lookup.name in lookups},
    )


def _sole(uses: Sequence[Use], readers: Mapping[str, set]) -> set[str]:
    """The names of those whose weights nothing else reads."""
    at: dict[str, set] = {}
    for use in uses:
        at.setdefault(use.path, set()).add(use.location)
    return {use.name for use in uses if readers[use.path] <= at[use.path]}


@functools.lru_cache(maxsize=32)
def _walked(apply: Callable[..., PyTree], variables: Signature, inputs: Signature) -> tuple[Graph, dict[str, set]]:
    walk = walked(apply, as_shapes(variables), (as_shapes(inputs),))
    return walk.graph()[0], walk.readers


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


def frequencies(
    rows: Int[Array, "examples *copies samples"], weights: Bool[Array, "examples samples"], size: int
) -> Float[Array, "*copies size"]:
    """How many of the samples that count read each row of a table: `product` of one-hot inputs has these on its diagonal."""

    def counts(rows: Int[Array, " all"]) -> Float[Array, " size"]:
        return jax.ops.segment_sum(weights.ravel().astype(jnp.float32), rows, size)

    rows = jnp.moveaxis(rows, 0, -2)
    return over(rows.ndim - 2, counts)(rows.reshape(*rows.shape[:-2], -1))


def samples_of(site: Use, mask: Bool[Array, "examples ..."], samples: int) -> Bool[Array, "examples samples"]:
    """Which samples of a site or lookup count; one that stands for all positions does if any of them does."""
    return counting(f"site {site.name!r}", mask, samples, loops=len(site.stacked) > sum(site.stacked))


def per_sample(total: Float[Array, "models ..."], samples: Float[Array, " models"]) -> Float[Array, "models ..."]:
    """A sum divided by the number of samples of each model; zero without any."""
    return total / column(jnp.maximum(samples, 1), total)
