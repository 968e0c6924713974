"""What a feed-forward network has between its layers, and what the network makes of it once that is replaced."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import npmerge as nm
from alignment.activations.probes import Probe, run_with
from alignment.graph import Graph, PyTree, flatten
from alignment.sites import Site
from experiments.universal_features.dictionary import Dictionary


def last_layer(graph: Graph) -> Site:
    """The layer that reads the units."""
    return next(site for site in graph.sites if "/feed_forward/down/" in site.name)


def units(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, batches: Sequence[tuple]
) -> Float[np.ndarray, "tokens units"]:
    """Behind the nonlinearity and the gate, at every token of some batches."""
    name = last_layer(graph).name
    found = [nm.capture(apply, graph, variables, inputs, nodes=(), sites=[name]).sites[name] for inputs, _ in batches]
    return np.concatenate([np.asarray(f.inputs) for f in found])


def patched(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, batches: Sequence[tuple], dictionary: Dictionary
) -> float:
    """The loss of the network whose units are replaced by what a dictionary reconstructs of them."""
    losses = [_patched(apply, graph, variables, batch, dictionary) for batch in batches]
    return float(np.mean(losses))


def nothing(dictionary: Dictionary) -> Dictionary:
    """One that reconstructs zeros: units that are ablated."""
    return jax.tree.map(jnp.zeros_like, dictionary)._replace(scale=jnp.ones(()))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _patched(
    apply: Callable[..., PyTree], graph: Graph, variables: PyTree, batch: tuple, dictionary: Dictionary
) -> Float[Array, ""]:
    inputs, targets = batch
    site = last_layer(graph)
    closed, leaves = jax.make_jaxpr(apply)(variables, inputs), jax.tree.leaves((variables, inputs))
    read = Probe(("units",), site.location, False, 1 - site.weight, lambda x: x, site)
    x = run_with([read], closed, leaves)[1]["units",]
    change = jnp.matmul(dictionary(x) - x, flatten(variables)[site.name])
    made = Probe(("made",), site.location, True, 0, lambda y: y, site, change)
    (logits,), _ = run_with([made], closed, leaves)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
