"""Statistics that accumulate over batches, and the moments of node activations."""

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from alignment.activations.masked import masked_features
from alignment.activations.products import gram, product
from alignment.activations.taps import capture
from alignment.graph import Graph, Node, PyTree


class Statistic(abc.ABC):
    """Something measured on batches: measure each, combine in any order, finalise once.

    Subclasses are frozen dataclasses. States are trees of arrays, so they can be summed across batches, devices and files.

    Example:
        >>> class MeanOutput(alignment.Statistic):
        ...     def measure(self, apply, graph, models, batch):
        ...         return jnp.stack([apply(model, batch[0]).sum() for model in models]), jnp.float32(len(batch[0]))
        ...     def combine(self, a, b):
        ...         return jax.tree.map(jnp.add, a, b)
        ...     def finalise(self, state):
        ...         return state[0] / state[1]
        >>> apply, models = lambda v, x: x @ v["w"], [{"w": jnp.ones((1, 1))}, {"w": 2 * jnp.ones((1, 1))}]
        >>> graph = alignment.trace(apply, models[0], jnp.ones((1, 1)))
        >>> batches = [(jnp.array([[1.0], [2.0]]), None), (jnp.array([[6.0]]), None)]
        >>> nm.collect(apply, graph, models, batches, [MeanOutput()])[MeanOutput].tolist()
        [3.0, 6.0]
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    """What it reads beside inputs and outputs: "activations" of nodes or layers, "gradients", "labels" (the targets)."""

    @abc.abstractmethod
    def measure(self, apply: Callable[..., PyTree], graph: Graph, models: Sequence[PyTree], batch: tuple) -> Any:
        """The state of one batch `(inputs, targets)`, for all models at once. Traceable.

        With a third part, a mask (examples,) or (examples, positions), what it is false for is padding and does not count.
        """

    @abc.abstractmethod
    def combine(self, a: Any, b: Any) -> Any:
        """The state of two batches taken together. Associative and commutative up to rounding. Traceable."""

    def finalise(self, state: Any) -> Any:
        """The statistic itself."""
        return state


class Moments(NamedTuple):
    """Moments of one node's features in each model, over `samples` samples.

    `cross[k]` is the covariance between the features of model 0 (rows) and of model k (columns). Only what alignment to a
    reference needs is kept: never the full covariance of all models' units.

    For an indexed node the copies along fixed axes (steps of a loop) stand in front, one covariance each; those along other
    nodes (heads) are laid end to end among the units, since any of them may correspond to any other.

    Attributes:
        samples: how many there are.
        mean: of each unit in each model.
        covariance: of the units of each model, with each other.
        cross: of the units of model 0 with those of each model.

    Example:
        >>> m = alignment.Moments(
        ...     samples=jnp.float32(100),
        ...     mean=jnp.zeros((2, 2)),
        ...     covariance=jnp.stack([jnp.eye(2), jnp.eye(2)]),
        ...     cross=jnp.stack([jnp.eye(2), 0.9 * jnp.eye(2)[::-1]]),  # what two models with exchanged units have
        ... )
        >>> alignment.ActivationMatching().solve(m).tolist()
        [1, 0]
    """

    samples: Float[Array | np.ndarray, ""]
    mean: Float[Array | np.ndarray, "models *copies units"]
    covariance: Float[Array | np.ndarray, "models *copies units units"]
    cross: Float[Array | np.ndarray, "models *copies units units"]


@dataclass(frozen=True)
class NodeMoments(Statistic):
    """Mean and covariance of every node's features within each model and against model 0.

    float32 with the highest matmul precision; centred, and combined pairwise (Chan, Golub and LeVeque 1979), so that large
    means do not cancel. Every position of an image or a sequence is a sample, padding (a mask, see `Statistic.measure`) none.
    Finalised to a mapping node -> `Moments` with population covariances (no Bessel correction).

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, -1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[-2.0, 2.0]]), "down": jnp.ones((2, 1))}
        >>> x = jnp.array([[1.0], [-1.0]])
        >>> graph = alignment.trace(apply, a, x)
        >>> moments = nm.collect(apply, graph, [a, b], [(x, None)], [alignment.NodeMoments()])[alignment.NodeMoments]
        >>> print(moments["up"].mean)  # (models, units)
        [[0.5 0.5]
         [1.  1. ]]
        >>> print(moments["up"].cross[1])  # units of a with units of b: the first here is like the second there
        [[-0.5  0.5]
         [ 0.5 -0.5]]
    """

    reads = frozenset({"activations"})

    def measure(self, apply: Any, graph: Any, models: Sequence[PyTree], batch: tuple) -> dict[str, Moments]:
        """Moments of one batch; the covariances are still sums of products. A function and a graph, or one for each model."""
        found, counts = _features(apply, graph, models, batch)
        return {node: _sums(features, counts.get(node)) for node, features in found.items()}

    def combine(self, a: dict[str, Moments], b: dict[str, Moments]) -> dict[str, Moments]:
        """Chan's pairwise update."""
        return {node: _chan_moments(a[node], b[node]) for node in a}

    def finalise(self, state: dict[str, Moments]) -> dict[str, Moments]:
        """Divide the sums of products by the number of samples."""
        n = {node: jnp.maximum(m.samples, 1) for node, m in state.items()}
        return {x: m._replace(covariance=m.covariance / n[x], cross=m.cross / n[x]) for x, m in state.items()}


class Joint(NamedTuple):
    """Moments of one node's features in all models together: the units of model 0, then those of model 1, and so on.

    The models may have different widths. Copies along fixed axes and along other nodes as in `Moments`.

    Attributes:
        samples: how many there are.
        mean: of each unit of each model.
        covariance: of all of them with each other.

    Example:
        >>> covariance = np.eye(4) + 0.9 * np.eye(4)[[3, 2, 1, 0]]
        >>> joint = alignment.Joint(samples=np.float32(100), mean=np.zeros(4), covariance=covariance)
        >>> joint.covariance[:2, 2:].tolist()  # units of model 0 with units of model 1: exchanged
        [[0.0, 0.9], [0.9, 0.0]]
    """

    samples: Float[Array | np.ndarray, ""]
    mean: Float[Array | np.ndarray, "*copies units"]
    covariance: Float[Array | np.ndarray, "*copies units units"]


@dataclass(frozen=True)
class JointMoments(Statistic):
    """Mean and covariance of every node's features over all models: what finds units that correspond, within models too.

    Samples are those of `NodeMoments`. Finalised to a mapping node -> `Joint`. (models x units)^2 numbers a node, where
    `NodeMoments` keeps models x units^2.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[-2.0, 2.0]]), "down": jnp.ones((2, 1))}
        >>> x = jnp.array([[1.0], [-1.0]])
        >>> graph = alignment.trace(apply, a, x)
        >>> joint = nm.collect(apply, graph, [a, b], [(x, None)], [alignment.JointMoments()])[alignment.JointMoments]
        >>> print(joint["up"].covariance)  # both units of a are alike, and like the second of b
        [[ 0.25  0.25 -0.5   0.5 ]
         [ 0.25  0.25 -0.5   0.5 ]
         [-0.5  -0.5   1.   -1.  ]
         [ 0.5   0.5  -1.    1.  ]]
    """

    reads = frozenset({"activations"})

    def measure(self, apply: Any, graph: Any, models: Sequence[PyTree], batch: tuple) -> dict[str, Joint]:
        """Moments of one batch; the covariances are still sums of products. A function and a graph, or one for each model."""
        found, counts = _features(apply, graph, models, batch)
        return {node: _joint(features, counts.get(node)) for node, features in found.items()}

    def combine(self, a: dict[str, Joint], b: dict[str, Joint]) -> dict[str, Joint]:
        """Chan's pairwise update."""
        return {node: _chan(a[node], b[node]) for node in a}

    def finalise(self, state: dict[str, Joint]) -> dict[str, Joint]:
        """Divide the sums of products by the number of samples."""
        return {node: m._replace(covariance=m.covariance / jnp.maximum(m.samples, 1)) for node, m in state.items()}


def against_reference(joint: Joint, models: int) -> Moments:
    """What `NodeMoments` keeps of the moments of all models together, where the models have one width."""
    *copies, units = joint.mean.shape
    mean = np.asarray(joint.mean).reshape(*copies, models, units // models)
    blocks = np.asarray(joint.covariance).reshape(*copies, *(models, units // models) * 2)
    blocks = np.moveaxis(blocks, (-4, -2), (0, 1))  # (models, models, *copies, units, units)
    return Moments(joint.samples, np.moveaxis(mean, -2, 0), np.stack([blocks[k, k] for k in range(models)]), blocks[0])


def _features(
    apply: Any, graph: Any, models: Sequence[PyTree], batch: tuple
) -> tuple[dict[str, list[Array]], dict[str, Bool[Array, " samples"]]]:
    """Of every node those of each model; and which samples of it count, if the batch has a mask."""
    graphs = (graph,) * len(models) if isinstance(graph, Graph) else graph
    functions = (apply,) * len(models) if callable(apply) else apply
    networks, counts = list(zip(functions, graphs, models, strict=True)), {}
    if len(batch) == 3:
        masked = [masked_features(*network, batch[0], jnp.asarray(batch[2])) for network in networks]
        found, counts = [{node: x for node, (x, _) in m.items()} for m in masked], {n: c for n, (_, c) in masked[0].items()}
    else:
        found = [capture(f, g, m, batch[0]).nodes for f, g, m in networks]
    by_node = {n: [by_fixed_copy(g, n, f[n]) for g, f in zip(graphs, found, strict=True)] for n in graphs[0].taps}
    return by_node, counts


def _joint(features: Sequence[Array], counts: Array | None) -> Joint:
    x = jnp.concatenate([f.astype(jnp.float32) for f in features], axis=-1)
    samples, mean, centred = _centred(x, counts)
    return Joint(samples, mean, gram(centred))


def _centred(x: Float[Array, "*copies samples units"], counts: Bool[Array, " samples"] | None) -> tuple[Array, Array, Array]:
    """The number of samples that count, their mean, and what they differ from it by; zeros for the others."""
    if counts is None:
        mean = x.mean(-2)
        return jnp.float32(x.shape[-2]), mean, x - mean[..., None, :]
    kept = jnp.broadcast_to(counts[:, None], x.shape)
    samples = counts.sum(dtype=jnp.float32)
    mean = jnp.where(kept, x, 0).sum(-2) / jnp.maximum(samples, 1)
    return samples, mean, jnp.where(kept, x - mean[..., None, :], 0)


def laid_out(graph: Graph, node: Node) -> tuple[int, ...]:
    """The shape of a node's mean in one model: copies along fixed axes, then units, copies along other nodes among them."""
    fixed = _fixed(graph, node)
    return (*node.copies[:fixed], math.prod(node.copies[fixed:]) * node.size)


def _fixed(graph: Graph, node: Node) -> int:
    return sum(name not in graph.nodes for name in node.index)


def by_fixed_copy(graph: Graph, node: str, features: Array) -> Float[Array, "*copies samples units"]:
    """Copies along other nodes laid end to end among the units."""
    fixed = _fixed(graph, graph.nodes[node])
    x = jnp.moveaxis(features, -2, fixed)
    return x.reshape(*x.shape[: fixed + 1], -1)


def _sums(features: Sequence[Array], counts: Array | None) -> Moments:
    samples, means, centred = zip(*(_centred(f.astype(jnp.float32), counts) for f in features), strict=True)
    auto = [gram(x) for x in centred]
    cross = [auto[0], *(product(centred[0], x) for x in centred[1:])]
    return Moments(samples[0], jnp.stack(means), jnp.stack(auto), jnp.stack(cross))


def _chan(a: Joint | Moments, b: Joint | Moments) -> Joint:
    """Samples, mean and sums of products of two sets of samples together."""
    shift, count = b.mean - a.mean, jnp.maximum(a.samples + b.samples, 1)
    return Joint(a.samples + b.samples, a.mean + shift * (b.samples / count), a.covariance + b.covariance + _between(a, b))


def _chan_moments(a: Moments, b: Moments) -> Moments:
    return Moments(*_chan(a, b), a.cross + b.cross + _between(a, b, slice(1)))


def _between(a: Joint | Moments, b: Joint | Moments, rows: slice = slice(None)) -> Any:
    """What the distance of two means adds to the sums of products; of the rows of some models only."""
    shift, weight = b.mean - a.mean, a.samples * b.samples / jnp.maximum(a.samples + b.samples, 1)
    return weight * shift[rows][..., :, None] * shift[..., None, :]
