"""Networks as users write them in plain JAX, each with the table of nodes that theory says it has.

A table is a sorted list of rows `(size, group, copies)`. `group` is the largest exact symmetry that acts alike wherever the
unit appears: one factor of a product (a gated unit, the input of a BatchNorm) may be scaled while the other is only
permuted, and that is not counted. `copies` is the number of independent maps of such a node: one per head for what is inside
a head, per layer inside a scan over stacked layers, per expert, per member of an ensemble. `nodes` is what a graph must
contain, comments what theory has beyond that.

Sizes differ within a network, so that a row is one unit; the rows of a builder are commented in the order of the code.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.alignment.networks import Network, Shape, attend, data, dense, fill

Row = tuple[int, str, int]
Built = tuple[Callable[..., jax.Array], Mapping[str, Any], jax.Array, list[Row]]
Core = Callable[[Any, jax.Array], jax.Array]

BUILDERS: dict[str, Callable[[], Network]] = {}
IN, OUT, WIDTH, HIDDEN, HEADS, HEAD, VALUE = 9, 11, 7, 5, 2, 3, 4
ROWS, TOKENS, IMAGES = data(16, IN), data(2, 6, IN), data(8, 6, 6, 3)
INDICES = jnp.asarray(np.arange(18).reshape(3, 6) * 5 % 9, jnp.int32)  # every one of nine words


def builder(function: Callable[[], Built]) -> Callable[[], Network]:
    """Register a function that returns apply, shapes, inputs and the table as the builder of a network of its name."""

    def build() -> Network:
        apply, shapes, inputs, nodes = function()
        tree = jax.tree.map(lambda s: Shape(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
        return Network(function.__name__, jax.jit(apply), fill(tree, 0), inputs, sorted(nodes))

    BUILDERS[function.__name__] = build
    return build


# ------------------------------------------------------------------------------------------------------- layers by hand


def layer(n: int, m: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a dense layer."""
    return {"kernel": (n, m), "bias": (m,)}


def times(x: jax.Array, kernel: jax.Array, axes: int = 1) -> jax.Array:
    """Contract the last axes of x with the first of the kernel."""
    return jnp.tensordot(x, kernel, axes)


def like(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector broadcast by hand along the leading axes of x, because rank promotion is an error here."""
    return jnp.broadcast_to(vector, x.shape)


def perceptron(v: Any, x: jax.Array, activation: Callable[[jax.Array], jax.Array] = jax.nn.relu) -> jax.Array:
    """One hidden layer, with biases."""
    return dense(v["down"], activation(dense(v["up"], x)))


def perceptron_shapes(width: int = WIDTH, hidden: int = HIDDEN) -> dict[str, Any]:
    """The shapes of `perceptron`, from a stream and back to it."""
    return {"up": layer(width, hidden), "down": layer(hidden, width)}


def layer_norm(v: Any, x: jax.Array) -> jax.Array:
    """LayerNorm with scale and bias."""
    centred = x - x.mean(-1, keepdims=True)
    y = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return y * like(v["scale"], x) + like(v["bias"], x)


def unit_rms(x: jax.Array) -> jax.Array:
    """RMSNorm without a learned scale."""
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5)


def rms_norm(v: Any, x: jax.Array) -> jax.Array:
    """RMSNorm with a learned scale."""
    return unit_rms(x) * like(v["scale"], x)


def norm_shapes(width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    """The shapes of a norm with scale and bias."""
    return {"scale": (width,), "bias": (width,)}


def batch_norm(v: Any, x: jax.Array) -> jax.Array:
    """BatchNorm in evaluation, with its running statistics."""
    y = (x - like(v["mean"], x)) * like(jax.lax.rsqrt(v["var"] + 1e-5), x)
    return y * like(v["scale"], x) + like(v["bias"], x)


def batch_norm_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """The shapes of `batch_norm`."""
    return {**norm_shapes(width), "mean": (width,), "var": (width,)}


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Any = "SAME", **options: Any) -> jax.Array:
    """An NHWC convolution with an HWIO kernel."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=numbers, **options)


# ---------------------------------------------------------------------------------------------------------- the frames


def rows(core: Core, shapes: Mapping[str, Any], nodes: list[Row], width: int = WIDTH) -> Built:
    """Rows: a linear embedding, `core` and a linear head; `nodes` names the embedding as well."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        return times(core(v, times(x, v["embed"])), v["head"])

    return apply, {"embed": (IN, WIDTH), **shapes, "head": (width, OUT)}, ROWS, nodes


def tokens(core: Core, shapes: Mapping[str, Any], nodes: list[Row], width: int = WIDTH) -> Built:
    """The same for sequences of tokens."""
    apply, shapes, _, nodes = rows(core, shapes, nodes, width)
    return apply, shapes, TOKENS, nodes


def attention_block(core: Core, shapes: Mapping[str, Any], nodes: list[Row]) -> Built:
    """Tokens with a residual stream: `core` is attention behind a LayerNorm, which leaves the stream's permutations."""

    def body(v: Any, x: jax.Array) -> jax.Array:
        return x + core(v, layer_norm(v["norm"], x))

    return tokens(body, {"norm": norm_shapes(), **shapes}, [(WIDTH, "permutation", 1), *nodes])


def images(core: Core, shapes: Mapping[str, Any], nodes: list[Row], channels: tuple[int, int] = (5, 6)) -> Built:
    """Images: a convolution to the first number of channels, ReLU, `core` to the second, ReLU, the mean and a head."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(convolve(x, v["stem"]))
        h = jax.nn.relu(core(v, h))
        return times(h.mean((1, 2)), v["head"])

    return apply, {"stem": (3, 3, 3, channels[0]), **shapes, "head": (channels[1], OUT)}, IMAGES, nodes


TWO_CONVOLUTIONS: list[Row] = [(5, "scale", 1), (6, "scale", 1)]  # stem, core


# -------------------------------------------------------------------------------------------------------- convolutions


@builder
def dilated_convolution() -> Built:
    """A kernel with holes."""
    return images(lambda v, h: convolve(h, v["conv"], rhs_dilation=(2, 2)), {"conv": (3, 3, 5, 6)}, TWO_CONVOLUTIONS)


@builder
def transposed_convolution() -> Built:
    """jax.lax.conv_transpose, as Flax and Haiku call it."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        return jax.lax.conv_transpose(h, v["conv"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return images(core, {"conv": (3, 3, 5, 6)}, TWO_CONVOLUTIONS)


@builder
def transposed_convolution_as_gradient() -> Built:
    """The kernel is the one of the forward convolution: flipped, its output channels are consumed."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_transpose(h, v["conv"], (2, 2), "SAME", dimension_numbers=numbers, transpose_kernel=True)

    return images(core, {"conv": (3, 3, 6, 5)}, TWO_CONVOLUTIONS)


@builder
def input_dilated_convolution() -> Built:
    """Upsampling by lhs_dilation."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        return convolve(h, v["conv"], padding=((1, 2), (1, 2)), lhs_dilation=(2, 2))

    return images(core, {"conv": (3, 3, 5, 6)}, TWO_CONVOLUTIONS)


@builder
def grouped_convolution() -> Built:
    """Two groups of four channels become two groups of five; groups move as wholes, units inside each on their own."""
    nodes: list[Row] = [(2, "permutation", 1), (4, "scale", 2), (5, "scale", 2)]  # groups, inside before, inside after
    core = lambda v, h: convolve(h, v["conv"], feature_group_count=2)  # noqa: E731
    return images(core, {"conv": (3, 3, 4, 10)}, nodes, channels=(8, 10))


@builder
def mobilenet_block() -> Built:
    """Expand, depthwise convolution, project and add, each with BatchNorm (inverted residual)."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        y = jax.nn.relu6(batch_norm(v["norm1"], convolve(h, v["expand"])))
        y = jax.nn.relu6(batch_norm(v["norm2"], convolve(y, v["depthwise"], feature_group_count=8)))
        return h + batch_norm(v["norm3"], convolve(y, v["project"]))

    shapes = {"expand": (1, 1, 5, 8), "depthwise": (3, 3, 1, 8), "project": (1, 1, 8, 5)}
    shapes |= {"norm1": batch_norm_shapes(8), "norm2": batch_norm_shapes(8), "norm3": batch_norm_shapes(5)}
    nodes: list[Row] = [(5, "permutation", 1), (8, "permutation", 1)]  # stream, expanded channels
    return images(core, shapes, nodes, channels=(5, 5))


@builder
def average_pooling() -> Built:
    """Two convolutions with only a mean of windows between them."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        h = convolve(h, v["first"])
        h = jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
        return convolve(h, v["second"])

    nodes: list[Row] = [*TWO_CONVOLUTIONS, (8, "linear", 1)]  # first
    return images(core, {"first": (3, 3, 5, 8), "second": (3, 3, 8, 6)}, nodes)


@builder
def max_pooling() -> Built:
    """The largest of overlapping, padded windows: positive scales stay."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        h = convolve(h, v["first"])
        h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        return convolve(h, v["second"])

    nodes: list[Row] = [*TWO_CONVOLUTIONS, (8, "scale", 1)]  # first
    return images(core, {"first": (3, 3, 5, 8), "second": (3, 3, 8, 6)}, nodes)


@builder
def densenet() -> Built:
    """Every layer reads all before it, through a BatchNorm of the concatenation."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        for k in (1, 2):
            y = convolve(jax.nn.relu(batch_norm(v[f"norm{k}"], h)), v[f"conv{k}"])
            h = jnp.concatenate([h, y], axis=-1)
        return batch_norm(v["norm3"], h)

    shapes = {"conv1": (3, 3, 5, 4), "conv2": (3, 3, 9, 6)}
    shapes |= {f"norm{k + 1}": batch_norm_shapes(n) for k, n in enumerate((5, 9, 15))}
    nodes: list[Row] = [(5, "permutation", 1), (4, "permutation", 1), (6, "permutation", 1)]  # stem, two layers
    return images(core, shapes, nodes, channels=(5, 15))


@builder
def inception() -> Built:
    """Three branches laid end to end: 1x1, 3x3 and pooled."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        pooled = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")
        branches = [convolve(h, v["narrow"]), convolve(h, v["wide"]), convolve(pooled, v["pooled"])]
        return convolve(jax.nn.relu(jnp.concatenate(branches, axis=-1)), v["join"])

    shapes = {"narrow": (1, 1, 5, 4), "wide": (3, 3, 5, 7), "pooled": (1, 1, 5, 8), "join": (1, 1, 19, 6)}
    return images(core, shapes, [*TWO_CONVOLUTIONS, (4, "scale", 1), (7, "scale", 1), (8, "scale", 1)])  # the branches


@builder
def unet() -> Built:
    """Down by two, up by nearest neighbours, laid next to what was skipped."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        deep = jax.nn.relu(convolve(h, v["down"], stride=2))
        up = jax.image.resize(deep, (*h.shape[:-1], 7), "nearest")
        return convolve(jnp.concatenate([h, up], axis=-1), v["join"])

    return images(core, {"down": (3, 3, 5, 7), "join": (3, 3, 12, 6)}, [*TWO_CONVOLUTIONS, (7, "scale", 1)])  # down


@builder
def squeeze_excite() -> Built:
    """Channels times a gate computed from their means."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        gate = jax.nn.sigmoid(times(jax.nn.relu(times(h.mean((1, 2)), v["down"])), v["up"]))
        return convolve(h * jnp.broadcast_to(gate[:, None, None, :], h.shape), v["conv"])

    nodes: list[Row] = [(5, "permutation", 1), (4, "scale", 1), (6, "scale", 1)]  # stem, squeezed, conv
    return images(core, {"down": (5, 4), "up": (4, 5), "conv": (3, 3, 5, 6)}, nodes)


FLATTENED: list[Row] = [(5, "scale", 1), (7, "scale", 1)]  # channels, hidden


@builder
def flatten_nhwc() -> Built:
    """Positions outermost."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(convolve(x, v["conv"], stride=2))
        return perceptron(v, h.reshape(h.shape[0], -1))

    shapes = {"conv": (3, 3, 3, 5), "up": layer(45, 7), "down": layer(7, OUT)}
    return apply, shapes, IMAGES, FLATTENED


@builder
def flatten_nchw() -> Built:
    """Channels first, as PyTorch has them: channels outermost."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = jax.lax.conv_general_dilated(x, v["conv"], (2, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        h = jax.nn.relu(x + v["bias"].reshape(1, -1, 1, 1))
        return perceptron(v, h.reshape(h.shape[0], -1))

    shapes = {"conv": (5, 3, 3, 3), "bias": (5,), "up": layer(45, 7), "down": layer(7, OUT)}
    return apply, shapes, IMAGES.transpose(0, 3, 1, 2), FLATTENED


# ------------------------------------------------------------------------------------------------------- normalisations


@builder
def group_norm() -> Built:
    """Two groups of four channels: groups move as wholes, channels inside each."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        y = h.reshape(*h.shape[:-1], 2, 4)
        mean = y.mean((1, 2, 4), keepdims=True)
        var = jnp.square(y - mean).mean((1, 2, 4), keepdims=True)
        y = ((y - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(h.shape)
        return convolve(jax.nn.relu(y * like(v["norm"]["scale"], y) + like(v["norm"]["bias"], y)), v["conv"])

    nodes: list[Row] = [(2, "permutation", 1), (4, "permutation", 2), (6, "scale", 1)]  # groups, inside them, conv
    return images(core, {"norm": norm_shapes(8), "conv": (3, 3, 8, 6)}, nodes, channels=(8, 6))


@builder
def instance_norm() -> Built:
    """Every channel of every image by its own mean and variance."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        centred = h - h.mean((1, 2), keepdims=True)
        y = centred * jax.lax.rsqrt(jnp.square(centred).mean((1, 2), keepdims=True) + 1e-5)
        return convolve(jax.nn.relu(y * like(v["norm"]["scale"], y) + like(v["norm"]["bias"], y)), v["conv"])

    return images(core, {"norm": norm_shapes(5), "conv": (3, 3, 5, 6)}, [(5, "permutation", 1), (6, "scale", 1)])


@builder
def batch_norm_by_hand() -> Built:
    """Running statistics are transformed with the features."""

    def core(v: Any, h: jax.Array) -> jax.Array:
        return batch_norm(v["norm"], convolve(h, v["conv"]))

    return images(core, {"norm": batch_norm_shapes(6), "conv": (3, 3, 5, 6)}, [(5, "scale", 1), (6, "permutation", 1)])


def normed(norm: Core, shapes: Mapping[str, Any], group: str) -> Built:
    """A residual perceptron behind a norm; `group` is what the norm leaves to the stream."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return x + perceptron(v, norm(v, x), jax.nn.gelu)

    return tokens(core, {**shapes, **perceptron_shapes()}, [(WIDTH, group, 1), (HIDDEN, "permutation", 1)])


@builder
def layer_norm_with_scale() -> Built:
    """LayerNorm: permutations of the stream."""
    return normed(lambda v, x: layer_norm(v["norm"], x), {"norm": norm_shapes()}, "permutation")


@builder
def rms_norm_without_scale() -> Built:
    """A norm of the length alone: rotations of the stream."""
    return normed(lambda v, x: unit_rms(x), {}, "orthogonal")


@builder
def rms_norm_with_scale() -> Built:
    """The scale belongs to units: permutations of the stream."""
    return normed(rms_norm, {"scale": (WIDTH,)}, "permutation")


@builder
def layer_scale() -> Built:
    """A learned factor per unit on what is added to the stream."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return x + like(v["layer_scale"], x) * perceptron(v, x)

    nodes: list[Row] = [(WIDTH, "permutation", 1), (HIDDEN, "scale", 1)]  # stream, hidden
    return rows(core, {"layer_scale": (WIDTH,), **perceptron_shapes()}, nodes)


@builder
def weight_norm() -> Built:
    """kernel / ||kernel|| * g, twice: where such a kernel consumes, only permutations keep its columns' lengths."""

    def linear(v: Any, x: jax.Array) -> jax.Array:
        length = jnp.sqrt(jnp.square(v["kernel"]).sum(0, keepdims=True))
        return times(x, v["kernel"] / length * like(v["scale"], v["kernel"]))

    def apply(v: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.relu(linear(v["first"], x))
        return times(jax.nn.relu(linear(v["second"], h)), v["head"])

    shapes = {"first": {"kernel": (IN, 5), "scale": (5,)}, "second": {"kernel": (5, 6), "scale": (6,)}, "head": (6, OUT)}
    return apply, shapes, ROWS, [(5, "permutation", 1), (6, "permutation", 1)]  # first, second


# the direction is unchanged and g is scaled, which a tracer sees only if it knows that x / ||x|| has no scale
# theory: 6 scales too, because x / |x| does not see the scale of x


@builder
def gram_weight() -> Built:
    """w @ w.T inside a residual network: both axes of w are met by their own duals."""
    core = lambda v, x: x + times(x, v["w"] @ v["w"].T)  # noqa: E731
    return rows(core, {"w": (WIDTH, HIDDEN)}, [(WIDTH, "orthogonal", 1), (HIDDEN, "orthogonal", 1)])  # stream, inside


@builder
def gram_weight_alone() -> Built:
    """The same without the residual: features before and after transform by inverse transposes of each other."""
    core = lambda v, x: times(x, v["w"] @ v["w"].T)  # noqa: E731
    return rows(core, {"w": (WIDTH, HIDDEN)}, [(WIDTH, "linear", 1), (HIDDEN, "orthogonal", 1)])  # embed and head, inside


# ------------------------------------------------------------------------------------------------------------ attention


def separate(heads: tuple[int, ...] = (HEADS,), head: int = HEAD, value: int = VALUE) -> dict[str, tuple[int, ...]]:
    """The shapes of separate projections; the last of `heads` is the number of key and value heads."""
    shapes = {"query": (WIDTH, heads[0], head), "key": (WIDTH, heads[-1], head), "value": (WIDTH, heads[-1], value)}
    return {**shapes, "mix": (heads[0], value, WIDTH)}


def project(v: Any, x: jax.Array) -> tuple[jax.Array, ...]:
    """Queries, keys and values, each (batch, time, heads, width)."""
    return tuple(times(x, v[name]) for name in ("query", "key", "value"))


HEADED: list[Row] = [(HEADS, "permutation", 1), (HEAD, "linear", HEADS), (VALUE, "linear", HEADS)]  # heads, q/k, v/o


def softmax_mix(logits: jax.Array, value: jax.Array) -> jax.Array:
    """Values mixed by softmax of (batch, heads, query time, key time)."""
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits, axis=-1), value)


@builder
def attention_by_einsum() -> Built:
    """Kernels with an axis of heads."""
    return attention_block(lambda v, x: times(attend(*project(v, x)), v["mix"], 2), separate(), HEADED)


@builder
def attention_by_matmul() -> Built:
    """Flat kernels with biases, reshaped into heads and transposed in front, as in minGPT."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = (dense(v[n], x).reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3) for n in ("query", "key", "value"))
        weights = jax.nn.softmax(jnp.matmul(q, k.swapaxes(-1, -2)) / np.sqrt(HEAD).astype(np.float32), axis=-1)
        y = jnp.matmul(weights, w).transpose(0, 2, 1, 3)
        return dense(v["mix"], y.reshape(*x.shape[:2], -1))

    shapes = {"query": layer(WIDTH, HEADS * HEAD), "key": layer(WIDTH, HEADS * HEAD)}
    shapes |= {"value": layer(WIDTH, HEADS * VALUE), "mix": layer(HEADS * VALUE, WIDTH)}
    return attention_block(core, shapes, HEADED)


@builder
def attention_of_jax() -> Built:
    """jax.nn.dot_product_attention, whose values are as wide as its keys: two nodes of one size."""
    core = lambda v, x: times(library_attention(*project(v, x)), v["mix"], 2)  # noqa: E731
    nodes: list[Row] = [(HEADS, "permutation", 1), (HEAD, "linear", HEADS), (HEAD, "linear", HEADS)]  # heads, q/k, v/o
    return attention_block(core, separate(value=HEAD), nodes)


def library_attention(q: jax.Array, k: jax.Array, v: jax.Array, **options: Any) -> jax.Array:
    """jax.nn.dot_product_attention under its own rules of promotion."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v, **options)


@builder
def attention_of_jax_causal() -> Built:
    """The same with its own causal mask."""
    core = lambda v, x: times(library_attention(*project(v, x), is_causal=True), v["mix"], 2)  # noqa: E731
    nodes: list[Row] = [(HEADS, "permutation", 1), (HEAD, "linear", HEADS), (HEAD, "linear", HEADS)]  # heads, q/k, v/o
    return attention_block(core, separate(value=HEAD), nodes)


@builder
def grouped_queries_by_repeat() -> Built:
    """Two key/value heads, each for three queries: keys and values repeated."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        return times(attend(q, jnp.repeat(k, 3, axis=2), jnp.repeat(w, 3, axis=2)), v["mix"], 2)

    # key/value heads; queries inside each; q/k and v/o: one map per key/value head, the same for all of its queries
    nodes: list[Row] = [(2, "permutation", 1), (3, "permutation", 2), (4, "linear", 2), (5, "linear", 2)]
    return attention_block(core, separate((6, 2), 4, 5), nodes)


@builder
def grouped_queries_of_jax() -> Built:
    """The same by jax.nn.dot_product_attention, which takes fewer keys and values than queries."""
    core = lambda v, x: times(library_attention(*project(v, x)), v["mix"], 2)  # noqa: E731
    # key/value heads; queries inside each; q/k; v/o
    nodes: list[Row] = [(2, "permutation", 1), (3, "permutation", 2), (4, "linear", 2), (4, "linear", 2)]
    return attention_block(core, separate((6, 2), 4, 4), nodes)


@builder
def multi_query() -> Built:
    """One key/value head for all queries: their q/k and v/o maps are one."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = times(x, v["query"]), times(x, v["key"]), times(x, v["value"])
        weights = jax.nn.softmax(jnp.einsum("bthd,bsd->bhts", q, k), axis=-1)
        return times(jnp.einsum("bhts,bsd->bthd", weights, w), v["mix"], 2)

    shapes = {**separate(), "key": (WIDTH, HEAD), "value": (WIDTH, VALUE)}
    nodes: list[Row] = [(HEADS, "permutation", 1), (HEAD, "linear", 1), (VALUE, "linear", 1)]  # heads, q/k, v/o
    return attention_block(core, shapes, nodes)


@builder
def fused_by_split() -> Built:
    """One kernel and bias for queries, keys and values, cut in three and reshaped into heads."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        parts = jnp.split(dense(v["qkv"], x), (6, 12), axis=-1)
        y = attend(*(part.reshape(*x.shape[:2], HEADS, -1) for part in parts))
        return times(y.reshape(*x.shape[:2], -1), v["mix"])

    return attention_block(core, {"qkv": layer(WIDTH, 20), "mix": (8, WIDTH)}, HEADED)


FUSED: list[Row] = [(HEADS, "permutation", 1), (4, "linear", HEADS), (4, "linear", HEADS)]  # heads, q/k, v/o


def fused(cut: Callable[[jax.Array], tuple[jax.Array, ...]]) -> Built:
    """A fused kernel of 24 outputs that `cut` turns into queries, keys and values of two heads of four."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        y = attend(*cut(times(x, v["qkv"])))
        return times(y.reshape(*x.shape[:2], -1), v["mix"])

    return attention_block(core, {"qkv": (WIDTH, 24), "mix": (8, WIDTH)}, FUSED)


@builder
def fused_by_index() -> Built:
    """Reshaped to (3, heads, head_dim) and indexed: queries and keys are one node, values another."""

    def cut(y: jax.Array) -> tuple[jax.Array, ...]:
        y = y.reshape(*y.shape[:2], 3, HEADS, 4)
        return y[:, :, 0], y[:, :, 1], y[:, :, 2]

    return fused(cut)


@builder
def fused_by_transpose() -> Built:
    """The same with the axis of three moved in front and unpacked, as in timm."""
    return fused(lambda y: tuple(y.reshape(*y.shape[:2], 3, HEADS, 4).transpose(2, 0, 1, 3, 4)))


@builder
def fused_inside_heads() -> Built:
    """Heads outermost, queries, keys and values inside each, as in GPT-NeoX."""
    return fused(lambda y: tuple(jnp.split(y.reshape(*y.shape[:2], HEADS, 12), 3, axis=-1)))


@builder
def causal_attention() -> Built:
    """A triangular mask over positions."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        logits = jnp.einsum("bthd,bshd->bhts", q, k)
        seen = jnp.broadcast_to(jnp.tril(jnp.ones((6, 6), bool)), logits.shape)
        return times(softmax_mix(jnp.where(seen, logits, -1e9), w), v["mix"], 2)

    return attention_block(core, separate(), HEADED)


@builder
def alibi_attention() -> Built:
    """Heads are told apart by the constant slopes of their bias: the heads are no node, their insides are."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        time = jnp.arange(6, dtype=jnp.float32)
        distance = jnp.abs(time[:, None] - time[None, :])
        bias = jnp.array([0.5, 0.25])[:, None, None] * distance[None]
        logits = jnp.einsum("bthd,bshd->bhts", q, k)
        return times(softmax_mix(logits - jnp.broadcast_to(bias, logits.shape), w), v["mix"], 2)

    return attention_block(core, separate(), [(HEAD, "linear", HEADS), (VALUE, "linear", HEADS)])  # q/k, v/o


@builder
def normalised_queries() -> Built:
    """RMSNorm without scale on queries and keys: rotations inside each head."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        return times(attend(unit_rms(q), unit_rms(k), w), v["mix"], 2)

    # heads, q/k, v/o
    nodes: list[Row] = [(HEADS, "permutation", 1), (HEAD, "orthogonal", HEADS), (VALUE, "linear", HEADS)]
    return attention_block(core, separate(), nodes)


@builder
def normalised_queries_with_scale() -> Built:
    """The scales are shared by all heads: one permutation of head_dim for all of them."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        return times(attend(rms_norm(v["norm_q"], q), rms_norm(v["norm_k"], k), w), v["mix"], 2)

    shapes = {**separate(), "norm_q": {"scale": (HEAD,)}, "norm_k": {"scale": (HEAD,)}}
    # heads, q/k, v/o
    return attention_block(core, shapes, [(HEADS, "permutation", 1), (HEAD, "permutation", 1), (VALUE, "linear", HEADS)])


def rotary(rotate: Callable[[jax.Array, jax.Array], jax.Array]) -> Built:
    """Queries and keys of width four turned by angles that grow with time: only heads and values are nodes."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        q, k, w = project(v, x)
        angle = jnp.arange(6, dtype=jnp.float32)[:, None] * jnp.array([1.0, 0.1])[None, :]
        angle = jnp.broadcast_to(angle[None, :, None, :], (*q.shape[:-1], 2))
        return times(attend(rotate(q, angle), rotate(k, angle), w), v["mix"], 2)

    # heads, v/o
    return attention_block(core, separate(head=4, value=5), [(HEADS, "permutation", 1), (5, "linear", HEADS)])


@builder
def rotary_by_halves() -> Built:
    """Llama: the second half of head_dim turns with the first."""

    def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
        angle = jnp.concatenate([angle, angle], axis=-1)
        left, right = jnp.split(x, 2, axis=-1)
        return x * jnp.cos(angle) + jnp.concatenate([-right, left], axis=-1) * jnp.sin(angle)

    return rotary(rotate)


@builder
def rotary_interleaved() -> Built:
    """GPT-J: every odd unit turns with the even one before it."""

    def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
        even, odd, cos, sin = x[..., ::2], x[..., 1::2], jnp.cos(angle), jnp.sin(angle)
        return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    return rotary(rotate)


@builder
def rotary_complex() -> Built:
    """The original Llama code: pairs as complex numbers."""

    def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        turned = jax.lax.complex(pairs[..., 0], pairs[..., 1]) * jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        return jnp.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)

    return rotary(rotate)


@builder
def class_token() -> Built:
    """A learned token in front, learned positions, attention, and the head reads the first token (ViT)."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        first = jnp.broadcast_to(v["token"], (x.shape[0], 1, WIDTH))
        x = jnp.concatenate([first, x], axis=1)
        x = x + jnp.broadcast_to(v["positions"], x.shape)
        return (x + times(attend(*project(v, x)), v["mix"], 2))[:, 0]

    shapes = {**separate(), "token": (1, 1, WIDTH), "positions": (1, 7, WIDTH)}
    return tokens(core, shapes, [(WIDTH, "linear", 1), *HEADED])  # stream


# ----------------------------------------------------------------------------------------------------- gates and experts


@builder
def glu() -> Built:
    """Gated linear unit, two kernels, on a stream without norms."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return x + times(jax.nn.sigmoid(times(x, v["gate"])) * times(x, v["up"]), v["down"])

    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    return rows(core, shapes, [(WIDTH, "linear", 1), (HIDDEN, "permutation", 1)])  # stream, hidden


@builder
def swiglu_fused() -> Built:
    """SwiGLU with one kernel for gate and units, behind RMSNorm with scale."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(times(rms_norm(v, x), v["up"]), 2, axis=-1)
        return x + times(jax.nn.silu(gate) * up, v["down"])

    shapes = {"scale": (WIDTH,), "up": (WIDTH, 2 * HIDDEN), "down": (HIDDEN, WIDTH)}
    return tokens(core, shapes, [(WIDTH, "permutation", 1), (HIDDEN, "permutation", 1)])  # stream, hidden


def experts(v: Any, x: jax.Array, share: jax.Array) -> jax.Array:
    """All experts on all rows, summed by their (rows, experts) shares."""
    h = jax.nn.relu(jnp.einsum("bi,eih->beh", x, v["up"]))
    return jnp.einsum("be,bew->bw", share, jnp.einsum("beh,ehw->bew", h, v["down"]))


EXPERTS = {"router": (WIDTH, 4), "up": (4, WIDTH, HIDDEN), "down": (4, HIDDEN, WIDTH)}


@builder
def soft_experts() -> Built:
    """A softmax mixture of four experts: experts may be exchanged, and units inside each."""
    core = lambda v, x: x + experts(v, x, jax.nn.softmax(times(x, v["router"]), axis=-1))  # noqa: E731
    # stream, experts, hidden units
    return rows(core, EXPERTS, [(WIDTH, "linear", 1), (4, "permutation", 1), (HIDDEN, "scale", 4)])


@builder
def top_experts() -> Built:
    """The best expert only, by argmax and one-hot, with dense dispatch."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        share = jax.nn.softmax(times(x, v["router"]), axis=-1)
        return x + experts(v, x, share * jax.nn.one_hot(share.argmax(-1), 4))

    return rows(core, EXPERTS, [(WIDTH, "linear", 1), (HIDDEN, "scale", 4)])  # stream, hidden units


# one_hot(argmax(x)) moves with x, but each of the two alone does not
# theory: the 4 experts may be exchanged too, ties aside


# ------------------------------------------------------------------------------------------- embeddings, gather, scatter


def words(core: Core, shapes: Mapping[str, Any], nodes: list[Row]) -> Built:
    """Word indices into `core`."""
    return core, shapes, INDICES, nodes


@builder
def tied_embedding() -> Built:
    """The table is also the head: rotations of the stream."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        h = v["table"][x]
        return times(h + perceptron(v, h), v["table"].T)

    return words(core, {"table": (9, WIDTH), **perceptron_shapes()}, [(WIDTH, "orthogonal", 1), (HIDDEN, "scale", 1)])


@builder
def one_hot_embedding() -> Built:
    """The table read by a product with one-hot vectors, positions added."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        h = jax.nn.one_hot(x, 9) @ v["table"] + jnp.broadcast_to(v["positions"], (*x.shape, WIDTH))
        return times(perceptron(v, h), v["head"])

    shapes = {"table": (9, WIDTH), "positions": (1, 6, WIDTH), "head": (8, OUT)}
    shapes |= {"up": layer(WIDTH, HIDDEN), "down": layer(HIDDEN, 8)}
    return words(core, shapes, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1), (8, "linear", 1)])  # embedding, hidden, down


@builder
def gathered_tokens() -> Built:
    """Tokens picked by index, once and per sequence."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        x = jnp.take(x, jnp.array([4, 0, 1, 5]), axis=1)
        x = jnp.take_along_axis(x, jnp.array([[2, 0], [1, 3]])[:, :, None], axis=1)
        return perceptron(v, x)

    shapes = {"up": layer(WIDTH, HIDDEN), "down": layer(HIDDEN, 8)}
    return tokens(core, shapes, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1), (8, "linear", 1)], 8)  # embed, hidden, down


SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 4, 5, 0]), np.array([1, 2, 0, 4, 5, 3, 3])


def message_passing(collect: Callable[[jax.Array], jax.Array]) -> Built:
    """A graph network on six vertices: messages along edges, summed where they arrive, added to the state."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        messages = jax.nn.relu(times(x[SENDERS], v["send"]) + times(x[RECEIVERS], v["receive"]))
        return jnp.tanh(times(x, v["keep"]) + times(collect(messages), v["update"]))

    shapes = {"send": (WIDTH, HIDDEN), "receive": (WIDTH, HIDDEN), "keep": (WIDTH, 6), "update": (HIDDEN, 6)}
    # embed, messages, state
    apply, shapes, _, nodes = rows(core, shapes, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1), (6, "permutation", 1)], 6)
    return apply, shapes, data(6, IN), nodes


@builder
def graph_network_by_segment_sum() -> Built:
    """jax.ops.segment_sum over the receivers."""
    return message_passing(lambda messages: jax.ops.segment_sum(messages, jnp.asarray(RECEIVERS), num_segments=6))


@builder
def graph_network_by_scatter() -> Built:
    """zeros.at[receivers].add(messages)."""
    return message_passing(lambda messages: jnp.zeros((6, HIDDEN)).at[RECEIVERS].add(messages))


@builder
def window_of_positions() -> Built:
    """Three positions from the middle by dynamic_slice."""
    core = lambda v, x: jax.nn.relu(times(jax.lax.dynamic_slice_in_dim(x, 2, 3, axis=1), v["up"]))  # noqa: E731
    return tokens(core, {"up": (WIDTH, HIDDEN)}, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1)], HIDDEN)  # embed, hidden


@builder
def sum_over_positions() -> Built:
    """A cumulative sum over positions."""
    core = lambda v, x: jax.nn.relu(times(jnp.cumsum(x, axis=1), v["up"]))  # noqa: E731
    return tokens(core, {"up": (WIDTH, HIDDEN)}, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1)], HIDDEN)  # embed, hidden


# ---------------------------------------------------------------------------------------------- dropout, weights reused


RESIDUAL: list[Row] = [(WIDTH, "linear", 1), (HIDDEN, "scale", 1)]  # stream, hidden


def dropout(x: jax.Array, shape: tuple[int, ...], deterministic: bool) -> jax.Array:
    """Zero a fifth of x, by a mask of `shape`."""
    if deterministic:
        return x
    keep = jax.random.bernoulli(jax.random.key(0), 0.8, shape)
    return jnp.where(jnp.broadcast_to(keep, x.shape), x / 0.8, 0.0)


@builder
def dropout_in_evaluation() -> Built:
    """Dropout that does nothing."""
    core = lambda v, x: x + dropout(perceptron(v, x), x.shape, deterministic=True)  # noqa: E731
    return tokens(core, perceptron_shapes(), RESIDUAL)


@builder
def dropout_of_positions() -> Built:
    """Whole tokens are dropped, by a mask drawn inside the function."""
    core = lambda v, x: x + dropout(perceptron(v, x), (2, 6, 1), deterministic=False)  # noqa: E731
    return tokens(core, perceptron_shapes(), RESIDUAL)


@builder
def weight_used_twice() -> Built:
    """A recurrence written out: the kernel carries its node on both axes."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        h = jnp.tanh(x)
        h = jnp.tanh(times(h, v["again"]) + x)
        return jnp.tanh(times(h, v["again"]) + x)

    return rows(core, {"again": (WIDTH, WIDTH)}, [(WIDTH, "permutation", 1)])  # state


@builder
def rematerialised() -> Built:
    """A residual block under jax.checkpoint."""
    return rows(jax.checkpoint(lambda v, x: x + perceptron(v, x)), perceptron_shapes(), RESIDUAL)


@jax.custom_jvp
def softsign(x: jax.Array) -> jax.Array:
    """An activation with a forward rule."""
    return x / (1 + jnp.abs(x))


softsign.defjvp(lambda primals, tangents: (softsign(*primals), tangents[0]))


@jax.custom_vjp
def cubic(x: jax.Array) -> jax.Array:
    """An activation with a backward rule."""
    return x**3


cubic.defvjp(lambda x: (x**3, x), lambda x, g: (g * 3 * x**2,))


@builder
def activations_with_rules() -> Built:
    """custom_jvp and custom_vjp activations."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return cubic(times(softsign(times(x, v["first"])), v["second"]))

    # embed, first, second
    nodes: list[Row] = [(WIDTH, "linear", 1), (HIDDEN, "permutation", 1), (6, "permutation", 1)]
    return rows(core, {"first": (WIDTH, HIDDEN), "second": (HIDDEN, 6)}, nodes, 6)


# -------------------------------------------------------------------------------------------------------- vmap and loops


LAYERS = 6


def stacked(shapes: Any) -> Any:
    """The shapes of so many layers stacked in front."""
    return jax.tree.map(lambda shape: (LAYERS, *shape), shapes, is_leaf=lambda s: isinstance(s, tuple))


def member(v: Any, x: jax.Array) -> jax.Array:
    """One small perceptron on a single row or many."""
    return dense(v["out"], jax.nn.relu(dense(v["hidden"], x)))


MEMBER = {"hidden": layer(IN, HIDDEN), "out": layer(HIDDEN, OUT)}


@builder
def vmap_over_examples() -> Built:
    """A function of one row, mapped over the rows."""
    return jax.vmap(member, in_axes=(None, 0)), MEMBER, ROWS, [(HIDDEN, "scale", 1)]


@builder
def vmap_over_an_ensemble() -> Built:
    """Members with their own outputs."""
    return jax.vmap(member, in_axes=(0, None)), stacked(MEMBER), ROWS, [(HIDDEN, "scale", LAYERS)]  # units of each member


@builder
def mean_of_an_ensemble() -> Built:
    """The mean of members: the members may be exchanged too."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        return jax.vmap(member, in_axes=(0, None))(v, x).mean(0)

    return apply, stacked(MEMBER), ROWS, [(LAYERS, "permutation", 1), (HIDDEN, "scale", LAYERS)]  # members, their units


@builder
def scan_over_layers() -> Built:
    """A residual perceptron of stacked layers."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, w: (h + perceptron(w, h), None), x, v["layers"])[0]

    return rows(core, {"layers": stacked(perceptron_shapes())}, [(WIDTH, "linear", 1), (HIDDEN, "scale", LAYERS)])


@builder
def scan_over_transformer_layers() -> Built:
    """Stacked prenorm transformer layers: one stream, and in each layer its own heads, insides of heads and hidden units."""

    def block(x: jax.Array, v: Any) -> tuple[jax.Array, None]:
        y = layer_norm(v["norm1"], x)
        x = x + times(attend(*project(v, y)), v["mix"], 2)
        return x + perceptron(v, layer_norm(v["norm2"], x), jax.nn.gelu), None

    shapes = {**separate(), **perceptron_shapes(), "norm1": norm_shapes(), "norm2": norm_shapes()}
    inside = [(size, group, copies * LAYERS) for size, group, copies in HEADED]  # heads; q/k and v/o of each head
    nodes = [(WIDTH, "permutation", 1), *inside, (HIDDEN, "permutation", LAYERS)]  # stream; hidden units
    core = lambda v, x: jax.lax.scan(block, x, v["layers"])[0]  # noqa: E731
    return tokens(core, {"layers": stacked(shapes)}, nodes)


@builder
def scan_with_constant_weights() -> Built:
    """One block applied three times, its weights captured: one hidden node, not three."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda h, _: (h + perceptron(v, h), None), x, None, length=3)[0]

    return rows(core, perceptron_shapes(), RESIDUAL)


@builder
def scan_over_time() -> Built:
    """A GRU with fused gates over time: gates and state are one node."""

    def cell(v: Any, h: jax.Array, x: jax.Array) -> jax.Array:
        a, b, c = jnp.split(dense(v["input"], x), 3, axis=-1)
        d, e, f = jnp.split(dense(v["state"], h), 3, axis=-1)
        update = jax.nn.sigmoid(b + e)
        return (1 - update) * jnp.tanh(c + jax.nn.sigmoid(a + d) * f) + update * h

    def apply(v: Any, x: jax.Array) -> jax.Array:
        def step(h: jax.Array, now: jax.Array) -> tuple[jax.Array, jax.Array]:
            h = cell(v, h, now)
            return h, h

        last, every = jax.lax.scan(step, jnp.zeros((x.shape[0], WIDTH)), x.swapaxes(0, 1))
        return times(last + every.mean(0), v["head"])

    shapes = {"input": layer(IN, 3 * WIDTH), "state": layer(WIDTH, 3 * WIDTH), "head": (WIDTH, OUT)}
    return apply, shapes, TOKENS, [(WIDTH, "permutation", 1)]  # state


@builder
def loop_over_layers() -> Built:
    """fori_loop with a fixed number of layers, each read from the stack by its number."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        def body(k: jax.Array, h: jax.Array) -> jax.Array:
            at = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, k, keepdims=False), v["layers"])
            return h + perceptron(at, h)

        return jax.lax.fori_loop(0, LAYERS, body, x)

    # stream; hidden units, one map for all layers: that each layer is read once is known only from the loop's counter
    return rows(core, {"layers": stacked(perceptron_shapes())}, [(WIDTH, "linear", 1), (HIDDEN, "scale", 1)])


# theory: the hidden units have a map for each layer, since the counter reads each layer once


def guarded(through: Core, shapes: Mapping[str, Any], inside: Sequence[Row] = ()) -> Built:
    """A network whose stream of seven runs `through` control flow, which has the nodes `inside`."""

    def core(v: Any, x: jax.Array) -> jax.Array:
        h = times(jax.nn.relu(x), v["before"])
        return jax.nn.relu(times(through(v, h), v["after"]))

    # the embedding of eight, the last layer of six and the seven units in between
    nodes: list[Row] = [(8, "scale", 1), (6, "scale", 1), (7, "permutation", 1), *inside]
    apply, shapes, inputs, _ = rows(core, {"before": (8, 7), "after": (7, 6), **shapes}, nodes, 6)
    return apply, {**shapes, "embed": (IN, 8)}, inputs, nodes


@builder
def while_elementwise() -> Built:
    """A while loop whose body is elementwise."""

    def through(v: Any, h: jax.Array) -> jax.Array:
        def going(state: tuple[jax.Array, jax.Array]) -> jax.Array:
            return state[0] < 3

        return jax.lax.while_loop(going, lambda state: (state[0] + 1, jnp.tanh(state[1])), (0, h))[1]

    return guarded(through, {})


@builder
def while_with_a_kernel() -> Built:
    """A while loop whose body multiplies the state by a kernel, until it is long enough."""

    def through(v: Any, h: jax.Array) -> jax.Array:
        def body(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return state[0] + 1, jnp.tanh(times(state[1], v["again"]))

        return jax.lax.while_loop(lambda state: state[0] < 3, body, (0, h))[1]

    return guarded(through, {"again": (7, 7)})


@builder
def conditional() -> Built:
    """One of two kernels, chosen by the data; what passes through is linear in both branches."""

    def through(v: Any, h: jax.Array) -> jax.Array:
        left, right = (lambda h, name=name: h + times(h, v[name]) for name in ("left", "right"))
        return jax.lax.cond(h.sum() > 0, left, right, h) + jax.lax.cond(h.sum() > 0, right, left, 2 * h)

    return guarded(through, {"left": (7, 7), "right": (7, 7)})


# The predicate sums over the units, which only permutations keep.


@builder
def switch_between_perceptrons() -> Built:
    """One of two perceptrons with their own hidden units, chosen by an index; both take part."""

    def through(v: Any, h: jax.Array) -> jax.Array:
        branches = [lambda h, name=name: h + perceptron(v[name], h) for name in ("left", "right")]
        index = (h.sum() > 0).astype(jnp.int32)
        return jax.lax.switch(index, branches, h) + jax.lax.switch(1 - index, branches, h)

    inside: list[Row] = [(4, "scale", 1), (5, "scale", 1)]  # the hidden units of both branches
    return guarded(through, {"left": perceptron_shapes(7, 4), "right": perceptron_shapes(7, 5)}, inside)


ALL = tuple(BUILDERS)
