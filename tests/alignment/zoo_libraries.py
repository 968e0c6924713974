"""Networks as users of Flax (Linen and NNX), Equinox and Haiku write them, with the tables that theory says they have.

Tables are written as in `zoo_plain`: sorted rows `(size, group, copies)`. Every network is a pure `apply(variables, inputs)`.
Equinox and Haiku are optional: each builder imports the library that it needs.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.alignment.networks import Network, Shape, data, fill

Row = tuple[int, str, int]
Built = tuple[Callable[..., jax.Array], Any, jax.Array, list[Row]]

BUILDERS: dict[str, Callable[[], Network]] = {}
REQUIRES: dict[str, str] = {}
"""The optional module that a builder needs, by name."""

IN, OUT, WIDTH, HIDDEN, HEADS, HEAD, VALUE = 9, 11, 7, 5, 2, 3, 4
ROWS, TOKENS, IMAGES = data(16, IN), data(2, 6, IN), data(8, 6, 6, 3)


@contextlib.contextmanager
def permissive() -> Iterator[None]:
    """The rules of promotion that libraries are written for."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def filled(tree: Any, outputs_first: bool) -> Any:
    """Random values for a tree of shapes, by fan-in; leaves that are not floating-point (counters) are ones."""
    if outputs_first:
        last = fill(jax.tree.map(lambda s: Shape((*s.shape[1:], *s.shape[:1]), s.dtype), tree), 0)
        return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), last)
    return jax.tree.map(lambda s, x: x if s.dtype == jnp.float32 else jnp.ones(s.shape, s.dtype), tree, fill(tree, 0))


def builder(function: Callable[[], Built], requires: str | None = None) -> Callable[[], Network]:
    """Register a function that returns apply, the variables' shapes, inputs and the table."""

    def build() -> Network:
        with permissive():
            apply, shapes, inputs, nodes = function()
        variables = filled(shapes, outputs_first=requires == "equinox")
        return Network(function.__name__, jax.jit(permissive()(apply)), variables, inputs, sorted(nodes))

    BUILDERS[function.__name__] = build
    if requires is not None:
        REQUIRES[function.__name__] = requires
    return build


def equinox_builder(function: Callable[[], Built]) -> Callable[[], Network]:
    """A builder that needs Equinox."""
    return builder(function, "equinox")


def haiku_builder(function: Callable[[], Built]) -> Callable[[], Network]:
    """A builder that needs Haiku."""
    return builder(function, "haiku")


# ---------------------------------------------------------------------------------------------------------- Flax Linen


def linen(model: nn.Module, inputs: jax.Array, nodes: list[Row]) -> Built:
    """A Linen module, initialised abstractly."""
    return model.apply, jax.eval_shape(model.init, jax.random.key(0), inputs), inputs, nodes


class LinenBlock(nn.Module):
    """A prenorm transformer layer; returns a pair, so that it can be scanned."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        y = nn.LayerNorm(name="norm1")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=HEADS * HEAD, name="attention")(y)
        y = nn.gelu(nn.Dense(HIDDEN, name="up")(nn.LayerNorm(name="norm2")(x)))
        return x + nn.Dense(WIDTH, name="down")(y), None


class LinenTransformer(nn.Module):
    """Embedding, one layer or several scanned, head."""

    layers: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(WIDTH, name="embed")(x)
        block: Any = LinenBlock
        if self.layers:
            block = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers)
        x, _ = block(name="block")(x, None)
        return nn.Dense(OUT, name="head")(x)


# heads, q/k, v/o: Flax makes keys and values equally wide
LINEN_HEADED: list[Row] = [(HEADS, "permutation", 1), (HEAD, "linear", HEADS), (HEAD, "linear", HEADS)]


@builder
def linen_transformer() -> Built:
    """nn.MultiHeadDotProductAttention behind nn.LayerNorm, and a perceptron."""
    nodes = [(WIDTH, "permutation", 1), *LINEN_HEADED, (HIDDEN, "permutation", 1)]  # stream, heads, hidden
    return linen(LinenTransformer(), TOKENS, nodes)


@builder
def linen_scan_over_layers() -> Built:
    """Six such layers by nn.scan: all that is inside a layer is there six times."""
    inside = [(size, group, 6 * copies) for size, group, copies in LINEN_HEADED]
    # stream; heads, q/k, v/o; hidden
    return linen(LinenTransformer(6), TOKENS, [(WIDTH, "permutation", 1), *inside, (HIDDEN, "permutation", 6)])


class LinenGroupNorm(nn.Module):
    """Convolutions with nn.GroupNorm between them."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(num_groups=2, name="norm")(nn.Conv(8, (3, 3), name="conv1")(x)))
        x = nn.relu(nn.Conv(6, (3, 3), name="conv2")(x))
        return nn.Dense(OUT, name="head")(x.mean((1, 2)))


@builder
def linen_group_norm() -> Built:
    """Two groups of four channels: groups move as wholes, channels inside each."""
    nodes: list[Row] = [(2, "permutation", 1), (4, "permutation", 2), (6, "scale", 1)]  # groups, inside them, conv2
    return linen(LinenGroupNorm(), IMAGES, nodes)


class LinenRecurrent(nn.Module):
    """nn.RNN over nn.LSTMCell, the last output into a head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(OUT, name="head")(nn.RNN(nn.LSTMCell(WIDTH), name="rnn")(x)[:, -1])


@builder
def linen_lstm() -> Built:
    """State, memory and the four gates are one node."""
    return linen(LinenRecurrent(), TOKENS, [(WIDTH, "permutation", 1)])


# ------------------------------------------------------------------------------------------------------------ Flax NNX


def nnx_network(make: Callable[[], nnx.Module], inputs: jax.Array, nodes: list[Row]) -> Built:
    """An NNX module split into its definition, what is not a parameter (closed over) and its parameters."""
    definition, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)
    if jax.tree.leaves(rest):
        raise ValueError(f"an evaluation-mode network of parameters only, not {rest}")

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(definition, variables, rest)(x)

    return apply, params, inputs, nodes


class NnxAttention(nnx.Module):
    """nnx.MultiHeadAttention behind nnx.LayerNorm on a residual stream."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Linear(IN, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, HEADS * HEAD, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, OUT, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        return self.head(x + self.attention(self.norm(x)))


@builder
def nnx_attention() -> Built:
    """Kernels with axes of heads, as in Linen."""
    nodes = [(WIDTH, "permutation", 1), *LINEN_HEADED]  # stream, heads
    return nnx_network(lambda: NnxAttention(nnx.Rngs(0)), TOKENS, nodes)


class NnxAutoencoder(nnx.Module):
    """nnx.Conv down and nnx.ConvTranspose up."""

    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.Conv(3, 5, (3, 3), strides=2, rngs=rngs)
        self.up = nnx.ConvTranspose(5, 6, (3, 3), strides=2, rngs=rngs)
        self.out = nnx.Conv(6, 4, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.up(nnx.relu(self.down(x)))))


@builder
def nnx_convolutions() -> Built:
    """Channels down and up; the four of the image that comes out are held."""
    nodes: list[Row] = [(5, "scale", 1), (6, "scale", 1)]  # down, up
    return nnx_network(lambda: NnxAutoencoder(nnx.Rngs(0)), IMAGES, nodes)


# ------------------------------------------------------------------------------------------------------------- Equinox


def equinox_network(make: Callable[[jax.Array], Any], inputs: jax.Array, nodes: list[Row]) -> Built:
    """An Equinox module of one example, its arrays the variables, mapped over the batch."""
    import equinox as eqx

    model = eqx.filter_eval_shape(make, jax.random.key(0))
    arrays, static = eqx.partition(model, lambda leaf: isinstance(leaf, Shape))

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(eqx.combine(variables, static))(x)

    return apply, arrays, inputs, nodes


@equinox_builder
def equinox_mlp() -> Built:
    """eqx.nn.MLP, whose hidden layers have one width."""
    import equinox as eqx

    nodes: list[Row] = [(WIDTH, "scale", 1), (WIDTH, "scale", 1)]  # two hidden layers
    return equinox_network(lambda key: eqx.nn.MLP(IN, OUT, WIDTH, depth=2, key=key), ROWS, nodes)


@equinox_builder
def equinox_convolutions() -> Built:
    """eqx.nn.Conv2d, channels first, pooled, flattened into dense layers by eqx.nn.Sequential."""
    import equinox as eqx

    def make(key: jax.Array) -> Any:
        keys = jax.random.split(key, 4)
        relu = eqx.nn.Lambda(jax.nn.relu)
        convolutions = [eqx.nn.Conv2d(3, 5, 3, padding=1, key=keys[0]), relu, eqx.nn.MaxPool2d(2, 2)]
        convolutions += [eqx.nn.Conv2d(5, 6, 3, padding=1, key=keys[1]), relu, eqx.nn.AvgPool2d(2, 1)]
        dense = [eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(24, 7, key=keys[2]), relu, eqx.nn.Linear(7, OUT, key=keys[3])]
        return eqx.nn.Sequential([*convolutions, *dense])

    nodes: list[Row] = [(5, "scale", 1), (6, "scale", 1), (7, "scale", 1)]  # two convolutions, hidden
    return equinox_network(make, IMAGES.transpose(0, 3, 1, 2), nodes)


@equinox_builder
def equinox_attention() -> Built:
    """eqx.nn.MultiheadAttention and eqx.nn.LayerNorm, tokens mapped inside examples."""
    import equinox as eqx

    class Block(eqx.Module):
        embed: Any
        norm: Any
        attention: Any
        head: Any

        def __init__(self, key: jax.Array):
            keys = jax.random.split(key, 3)
            widths = {"qk_size": HEAD, "vo_size": VALUE, "use_query_bias": True, "use_output_bias": True}
            self.embed, self.norm = eqx.nn.Linear(IN, WIDTH, key=keys[0]), eqx.nn.LayerNorm(WIDTH)
            self.attention = eqx.nn.MultiheadAttention(HEADS, WIDTH, key=keys[1], **widths)
            self.head = eqx.nn.Linear(WIDTH, OUT, key=keys[2])

        def __call__(self, x: jax.Array) -> jax.Array:
            x = jax.vmap(self.embed)(x)
            y = jax.vmap(self.norm)(x)
            return jax.vmap(self.head)(x + self.attention(y, y, y))

    # stream, heads, q/k, v/o
    nodes: list[Row] = [(WIDTH, "permutation", 1), (HEADS, "permutation", 1), (HEAD, "linear", HEADS), (VALUE, "linear", HEADS)]
    return equinox_network(Block, TOKENS, nodes)


# --------------------------------------------------------------------------------------------------------------- Haiku


def haiku_network(forward: Callable[[jax.Array], jax.Array], inputs: jax.Array, nodes: list[Row]) -> Built:
    """A Haiku function with its parameters and state side by side."""
    import haiku as hk

    network = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(network.init, jax.random.key(0), inputs)

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return network.apply(variables["params"], variables["state"], x)[0]

    return apply, {"params": params, "state": state}, inputs, nodes


@haiku_builder
def haiku_mlp() -> Built:
    """hk.nets.MLP."""
    import haiku as hk

    nodes: list[Row] = [(7, "scale", 1), (5, "scale", 1)]  # two hidden layers
    return haiku_network(lambda x: hk.nets.MLP([7, 5, OUT])(x), ROWS, nodes)


@haiku_builder
def haiku_attention() -> Built:
    """hk.MultiHeadAttention behind hk.LayerNorm on a residual stream."""
    import haiku as hk

    def forward(x: jax.Array) -> jax.Array:
        init = hk.initializers.VarianceScaling()
        x = hk.Linear(WIDTH, name="embed")(x)
        y = hk.LayerNorm(-1, create_scale=True, create_offset=True)(x)
        x = x + hk.MultiHeadAttention(HEADS, HEAD, value_size=VALUE, model_size=WIDTH, w_init=init)(y, y, y)
        return hk.Linear(OUT, name="head")(x)

    # stream, heads, q/k, v/o
    nodes: list[Row] = [(WIDTH, "permutation", 1), (HEADS, "permutation", 1), (HEAD, "linear", HEADS), (VALUE, "linear", HEADS)]
    return haiku_network(forward, TOKENS, nodes)


@haiku_builder
def haiku_batch_norm() -> Built:
    """hk.Conv2D with hk.BatchNorm in evaluation; its state also holds what only training reads."""
    import haiku as hk

    def forward(x: jax.Array) -> jax.Array:
        x = hk.Conv2D(5, 3, with_bias=False)(x)
        norm = hk.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        x = jax.nn.relu(norm(x, is_training=hk.running_init()))  # it needs a first batch
        x = jax.nn.relu(hk.Conv2D(6, 3)(x))
        return hk.Linear(OUT)(x.mean((1, 2)))

    return haiku_network(forward, IMAGES, [(5, "permutation", 1), (6, "scale", 1)])  # the two convolutions


ALL = tuple(BUILDERS)
