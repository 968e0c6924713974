"""Tiny networks of every shape the tracer must understand, with the nodes that theory says they have.

Widths differ wherever they may, so that two nodes are never confused by size; variables are random but not degenerate.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import alignment
import npmerge
from alignment import Graph
from alignment.graph import flatten, path_name

Shape = jax.ShapeDtypeStruct
Row = tuple[int, str] | tuple[int, str, dict[str, int]]
"""Size and group of a node and, if it is indexed, the copies along each index, the outer first."""


@dataclass(frozen=True, eq=False)
class Network:
    """A pure function with its variables, an example input and the hand-written table of its nodes."""

    name: str
    apply: Callable[..., Any]
    variables: Any
    inputs: jax.Array
    nodes: Any  # name -> Row here; the zoos have tables of their own

    @functools.cached_property
    def graph(self) -> Graph:
        """The traced graph, once."""
        return alignment.trace(self.apply, self.variables, self.inputs)

    def another(self, seed: int) -> Any:
        """Other variables of the same structure."""
        return fill(self.variables, seed)

    def __repr__(self) -> str:
        return self.name


def fill(tree: Any, seed: int) -> Any:
    """Random values for a tree of shapes: kernels by fan-in, scales and variances in [0.5, 1.5], the rest around zero."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, shape: Any) -> jax.Array:
        name, size = path_name(path), shape.shape
        if any(word in name for word in ("scale", "var")):
            return float32(rng.uniform(0.5, 1.5, size))
        if "bias" in name:  # above zero, so that no unit is dead
            return float32(rng.uniform(0.2, 1.0, size))
        if len(size) <= 1:
            return float32(0.2 * rng.standard_normal(size))
        kernel = rng.standard_normal(size) * np.sqrt(2 / np.prod(size[:-1]))
        inputs = tuple(range(len(size) - 1))  # centred: behind a ReLU all inputs are positive, and a unit would live or die
        return float32(kernel - kernel.mean(inputs, keepdims=True))

    return jax.tree_util.tree_map_with_path(leaf, tree)


def data(*shape: int, seed: int = 7) -> jax.Array:
    """Standard normal inputs."""
    return float32(np.random.default_rng(seed).standard_normal(shape))


def float32(x: np.ndarray) -> jax.Array:
    """Rounded on the host, and its dtype said: otherwise JAX compiles a program for every shape."""
    return jnp.asarray(np.asarray(x, np.float32), np.float32)


def dense(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """x @ kernel + bias; the bias is broadcast by hand because rank promotion is an error here."""
    y = jnp.tensordot(x, layer["kernel"], 1)
    return y + jnp.broadcast_to(layer["bias"], y.shape)


def layer(n: int, m: int) -> dict[str, Shape]:
    """The shapes of a dense layer."""
    return {"kernel": Shape((n, m), jnp.float32), "bias": Shape((m,), jnp.float32)}


def mlp_apply(activation: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """A plain-JAX multilayer perceptron of two hidden layers."""

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        h = activation(dense(variables["first"], x))
        h = activation(dense(variables["second"], h))
        return dense(variables["out"], h)

    return apply


def mlp(activation: Callable[[jax.Array], jax.Array] = jax.nn.relu, group: str = "scale") -> Network:
    """5 -> 8 -> 7 -> 3; the group depends on the activation."""
    variables = fill({"first": layer(5, 8), "second": layer(8, 7), "out": layer(7, 3)}, 0)
    nodes = {"first": (8, group), "second": (7, group)}
    return Network(f"mlp_{group}", jax.jit(mlp_apply(activation)), variables, data(16, 5), nodes)


class Block(nn.Module):
    """Two convolutions with BatchNorm and a shortcut: a 1x1 convolution, or zero padding (option A) of the channels."""

    width: int
    stride: int
    pad: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        strides = (self.stride, self.stride)
        y = nn.Conv(self.width, (3, 3), strides, use_bias=False, name="conv1")(x)
        y = nn.relu(nn.BatchNorm(use_running_average=True, name="norm1")(y))
        y = nn.Conv(self.width, (3, 3), use_bias=False, name="conv2")(y)
        y = nn.BatchNorm(use_running_average=True, name="norm2")(y)
        missing = self.width - x.shape[-1]
        if missing and self.pad:
            x = jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
        elif missing:
            x = nn.Conv(self.width, (1, 1), strides, use_bias=False, name="shortcut")(x)
            x = nn.BatchNorm(use_running_average=True, name="norm_shortcut")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Three stages of one block each."""

    widths: tuple[int, int, int]
    pad: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(self.widths[0], (3, 3), use_bias=False, name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        for k, width in enumerate(self.widths):
            x = Block(width, 1 if k == 0 else 2, self.pad, name=f"block{k + 1}")(x)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class VGG(nn.Module):
    """Convolutions with max-pooling, flattened (not averaged) into dense layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for k, width in enumerate((5, 6)):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"conv{k + 1}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(7, name="hidden")(x))
        return nn.Dense(3, name="head")(x)


IMAGES = data(3, 8, 8, 3)


def linen(name: str, model: nn.Module, nodes: Mapping[str, Row], seed: int = 0) -> Network:
    """A Linen module on images; initialised abstractly, filled by `fill`."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x)

    return Network(name, apply, fill(shapes, seed), IMAGES, nodes)


def resnet() -> Network:
    """Widths 4, 6, 8: one residual stream per stage and one hidden node per block."""
    streams = {
        "params/stem": (4, "permutation"),
        "params/block2/conv2": (6, "permutation"),
        "params/block3/conv2": (8, "permutation"),
    }
    hidden = {f"params/block{k + 1}/conv1": (width, "permutation") for k, width in enumerate((4, 6, 8))}
    return linen("resnet", ResNet((4, 6, 8)), streams | hidden)


def option_a() -> Network:
    """Widths 4, 8, 14: every stage adds one joint node for the channels padded on both sides (2 + 2, then 3 + 3)."""
    streams = {
        "params/stem": (4, "permutation"),
        "params/block2/conv2": (4, "permutation"),
        "params/block3/conv2": (6, "permutation"),
    }
    hidden = {f"params/block{k + 1}/conv1": (width, "permutation") for k, width in enumerate((4, 8, 14))}
    return linen("option_a", ResNet((4, 8, 14), pad=True), streams | hidden)


def vgg() -> Network:
    """No normalisation: ReLU and max-pooling keep positive scales as well."""
    nodes = {"params/conv1": (5, "scale"), "params/conv2": (6, "scale"), "params/hidden": (7, "scale")}
    return linen("vgg", VGG(), nodes)


def concatenation() -> Network:
    """Two branches, laid end to end, into one dense layer."""

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        left, right = jax.nn.relu(dense(variables["left"], x)), jnp.tanh(dense(variables["right"], x))
        return dense(variables["out"], jnp.concatenate([left, right], axis=1))

    variables = fill({"left": layer(5, 6), "right": layer(5, 4), "out": layer(10, 3)}, 0)
    return Network("concatenation", apply, variables, data(16, 5), {"left": (6, "scale"), "right": (4, "permutation")})


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention on (batch, time, heads, head_dim)."""
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 2.0, axis=-1)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def attention() -> Network:
    """One attention block on a linear residual stream: two heads of three, queries and keys share a linear node."""

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        x = jnp.tensordot(x, variables["embed"], 1)
        q, k, v = (jnp.tensordot(x, variables[name], 1) for name in ("query", "key", "value"))
        x = x + jnp.tensordot(attend(q, k, v), variables["mix"], 2)
        return jnp.tensordot(x, variables["head"], 1)

    shapes = {"embed": (5, 7), "query": (7, 2, 3), "key": (7, 2, 3), "value": (7, 2, 4), "mix": (2, 4, 7), "head": (7, 3)}
    variables = fill({name: Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)
    insides: dict[str, Row] = {"query#2": (3, "linear", {"query#1": 2}), "value": (4, "linear", {"query#1": 2})}
    nodes = {"embed": (7, "linear"), "query#1": (2, "permutation"), **insides}
    return Network("attention", apply, variables, data(3, 6, 5), nodes)


def fused_attention() -> Network:
    """The same with one fused kernel for queries, keys and values, split and reshaped into heads; LayerNorm before it."""

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        x = jnp.tensordot(x, variables["embed"], 1)
        centred = x - x.mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
        y = y * jnp.broadcast_to(variables["scale"], y.shape)
        q, k, v = (z.reshape(*z.shape[:-1], 2, -1) for z in jnp.split(jnp.tensordot(y, variables["qkv"], 1), (6, 12), axis=-1))
        mixed = attend(q, k, v)
        x = x + jnp.tensordot(mixed.reshape(*mixed.shape[:2], -1), variables["mix"], 1)
        return jnp.tensordot(x, variables["head"], 1)

    shapes = {"embed": (5, 7), "scale": (7,), "qkv": (7, 20), "mix": (8, 7), "head": (7, 3)}
    variables = fill({name: Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)
    insides: dict[str, Row] = {"qkv#2": (3, "linear", {"qkv#1": 2}), "qkv#3": (4, "linear", {"qkv#1": 2})}
    nodes = {"embed": (7, "permutation"), "qkv#1": (2, "permutation"), **insides}
    return Network("fused_attention", apply, variables, data(3, 6, 5), nodes)


def grouped_queries() -> Network:
    """Two key/value heads for three queries each: queries are permuted inside their group, insides are one map per group."""

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        q, k, v = (jnp.tensordot(x, variables[name], 1) for name in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.einsum("btkgd,bskd->bkgts", q, k) / 2.0, axis=-1)
        return jnp.tensordot(jnp.einsum("bkgts,bskd->btkgd", weights, v), variables["mix"], 3)

    shapes = {"query": (5, 2, 3, 4), "key": (5, 2, 4), "value": (5, 2, 6), "mix": (2, 3, 6, 3)}
    variables = fill({name: Shape(shape, jnp.float32) for name, shape in shapes.items()}, 0)
    nodes: dict[str, Row] = {"query#1": (2, "permutation"), "query#2": (3, "permutation", {"query#1": 2})}
    nodes |= {"query#3": (4, "linear", {"query#1": 2}), "value": (6, "linear", {"query#1": 2})}
    return Network("grouped_queries", apply, variables, data(3, 6, 5), nodes)


def towers() -> Network:
    """Three scanned residual layers of two towers of four units: towers in each layer, units in each tower of each layer."""

    def block(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        h = jnp.einsum("bi,ihd->bhd", x, w["into"])
        h = jax.nn.relu(h + jnp.broadcast_to(w["with_bias"], h.shape))
        return x + jnp.einsum("bhd,hdi->bi", h, w["out"]), None

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        x = jax.lax.scan(block, jnp.tensordot(x, variables["embed"], 1), variables["layers"])[0]
        return jnp.tensordot(x, variables["head"], 1)

    layers = {"into": (3, 7, 2, 4), "with_bias": (3, 2, 4), "out": (3, 2, 4, 7)}
    shapes = {"embed": (5, 7), "layers": layers, "head": (7, 3)}
    shapes = jax.tree.map(lambda s: Shape(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    nodes: dict[str, Row] = {"embed": (7, "linear"), "layers/into#1": (2, "scale", {"layers/into[0]": 3})}
    nodes["layers/into#2"] = (4, "scale", {"layers/into[0]": 3, "layers/into#1": 2})
    return Network("towers", apply, fill(shapes, 0), data(16, 5), nodes)


class Perceptron(nnx.Module):
    """A multilayer perceptron as an NNX module."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(5, 6, rngs=rngs)
        self.out = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(jnp.tanh(self.hidden(x)))


def nnx_state() -> Network:
    """An NNX module split into its definition and its state."""
    definition, state = nnx.split(nnx.eval_shape(lambda: Perceptron(nnx.Rngs(0))))

    @jax.jit
    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(definition, variables)(x)

    return Network("nnx_state", apply, fill(state, 0), data(16, 5), {"hidden/kernel": (6, "permutation")})


@functools.cache
def network(name: str) -> Network:
    """One network by name, built and traced at most once in a test session."""
    return BUILDERS[name]()


BUILDERS: dict[str, Callable[[], Network]] = {
    "mlp": mlp,
    "tanh_mlp": lambda: mlp(jnp.tanh, "permutation"),
    "linear_mlp": lambda: mlp(lambda x: x, "linear"),
    "resnet": resnet,
    "option_a": option_a,
    "vgg": vgg,
    "concatenation": concatenation,
    "attention": attention,
    "fused_attention": fused_attention,
    "grouped_queries": grouped_queries,
    "towers": towers,
    "nnx_state": nnx_state,
}
ALL = tuple(BUILDERS)


def row(node: alignment.Node) -> Row:
    """A node as the tables above spell it."""
    index = dict(zip(node.index, node.copies, strict=True))
    return (node.size, node.group, index) if index else (node.size, node.group)


def table(graph: Graph) -> dict[str, Row]:
    """The nodes of a graph as the tables above spell them."""
    return {name: row(node) for name, node in graph.nodes.items()}


def elements(graph: Graph, seed: int = 0) -> dict[str, alignment.NodeMap]:
    """A random group element for every node."""
    keys = [jax.random.key(100 * seed + k) for k in range(len(graph.nodes))]
    return {n: alignment.verification.random_element(node, k) for (n, node), k in zip(graph.nodes.items(), keys, strict=True)}


def shuffle(graph: Graph, variables: Any, seed: int) -> tuple[Any, dict[str, np.ndarray]]:
    """Variables with every copy of every node permuted (none stays as it is), and the permutations (*copies, units)."""
    rng = np.random.default_rng(seed)
    every = {n.name: np.broadcast_to(np.arange(n.size), (*n.copies, n.size)) for n in graph.nodes.values()}
    index = {name: rng.permuted(order, axis=-1) for name, order in every.items()}
    index = {n: np.where((i == every[n]).all(-1, keepdims=True), np.roll(i, 1, -1), i) for n, i in index.items()}
    return alignment.transport(graph, {n: permutation_map(i) for n, i in index.items()}, variables), index


def permutation_map(index: np.ndarray) -> alignment.NodeMap:
    """`alignment.permutation` by numpy."""
    push = np.eye(index.shape[-1], dtype=np.float32)[index]
    return alignment.NodeMap(push, push.swapaxes(-1, -2))


def undone(graph: Graph, index: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The permutations that bring back what `shuffle` moved, by hand: copies stand where their index was moved to."""
    found = {}
    for name, node in graph.nodes.items():
        found[name] = np.empty_like(index[name])
        for now in np.ndindex(*node.copies):
            before: dict[str, int] = {}
            for i, place in zip(node.index, now, strict=True):
                outer = tuple(before[j] for j in graph.nodes[i].index) if i in graph.nodes else ()
                before[i] = int(index[i][(*outer, place)]) if i in graph.nodes else place
            found[name][now] = np.argsort(index[name][tuple(before.values())])
    return found


def learned(net: Network, method: alignment.Alignment, theta: list, x: jax.Array, models: list) -> list[tuple[Any, Any]]:
    """Maps and model for each, after fifty steps on the line between two models that move every map of the second."""
    loss = npmerge.along_line(method, net.graph, net.apply, npmerge.CrossEntropy())
    batch = (x, np.arange(len(x)) % net.apply(models[0], x).shape[-1])
    found = npmerge.fit(theta, loss, npmerge.stack_models(models), [batch], optax.adam(0.02), steps=50).theta
    assert all(np.abs(found[1][name] - start).max() > 0.1 for name, start in theta[1].items())
    return list(zip(method.maps(found, net.graph), models, strict=True))


__all__ = [
    "ALL",
    "Network",
    "attend",
    "data",
    "dense",
    "elements",
    "fill",
    "flatten",
    "layer",
    "learned",
    "network",
    "permutation_map",
    "shuffle",
    "table",
    "undone",
]
