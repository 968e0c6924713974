"""Folding norms: the same function, a stream that may be rotated, and what cannot be folded left alone and named."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from alignment import fold
from npmerge.models import Bert, Config, Gpt2, Llama, Mlp, Vit, abstract, example
from tests.alignment import zoo_plain
from tests.alignment.networks import data
from tests.alignment.zoo_plain import times, unit_rms

KEY = jax.random.key(0)
WIDTH, HEADS, HEAD, HIDDEN, OUT = 10, 2, 5, 12, 7
TOKENS = jax.ShapeDtypeStruct((2, 6, 9), jnp.float32)


def random(tree: Any, seed: int) -> Any:
    """Random leaves, none of which is near the one or zero that norms start from."""
    rng = np.random.default_rng(seed)

    def leaf(s: Any) -> jax.Array:
        values = rng.uniform(0.4, 1.6, s.shape) if len(s.shape) == 1 else 0.5 * rng.standard_normal(s.shape)
        return jnp.asarray(values, s.dtype)

    return jax.tree.map(leaf, tree)


@dataclass(frozen=True, eq=False)
class Net:
    """A network and its folded form."""

    apply: Callable[..., jax.Array]
    variables: Any
    inputs: jax.Array

    @functools.cached_property
    def folded(self) -> alignment.Folded:
        """Folded from shapes and its own variables."""
        return fold(self.apply, self.variables, self.inputs)

    @functools.cached_property
    def graph(self) -> alignment.Graph:
        """Of the folded network."""
        return alignment.trace(self.folded.apply, self.folded.variables, self.inputs)

    def groups(self, size: int) -> list[str]:
        """The groups of the folded network's nodes of this size."""
        return [node.group for node in self.graph.nodes.values() if node.size == size]

    @functools.cached_property
    def both(self) -> Callable[[Any, jax.Array], tuple[jax.Array, jax.Array]]:
        """The network and the folded one of the same variables, compiled together."""
        folded = self.folded
        return jax.jit(lambda v, x: (self.apply(v, x), folded.apply(folded.convert(v), x)))

    def error(self, seed: int | None = None) -> float:
        """How far the folded network is from the network, relative to the scale of the outputs."""
        before, after = self.both(self.variables if seed is None else random(self.variables, seed), self.inputs)
        assert after.shape == before.shape and after.dtype == before.dtype
        return float(jnp.abs(after - before).max() / jnp.abs(before).max())


def model(config: Config, seed: int = 0) -> Net:
    """A network of npmerge."""
    network, x = abstract(config), example(config)
    tokens = np.random.default_rng(1).integers(1, 9, x.shape)
    inputs = jnp.asarray(tokens, jnp.int32) if x.dtype == "int32" else data(*x.shape)
    return Net(network.apply, random(network.variables, seed), inputs)


SIZES = {"width": WIDTH, "layers": 1, "heads": HEADS, "hidden": HIDDEN}
LLAMA = {"vocabulary": 11, "width": 24, "layers": 1, "heads": 4, "kv_heads": 2, "hidden": 14, "length": 6}
CONFIGS = {
    "gpt2": Gpt2(vocabulary=11, length=6, **SIZES | {"layers": 2}),
    "vit": Vit(patch=2, side=4, classes=OUT, **SIZES),
    "llama": Llama(**LLAMA),
    "llama_untied": Llama(**LLAMA, tied=False, bias=True),
}


# ------------------------------------------------------------------------------------------- pre-norm networks by hand


def by_variance(v: Any, x: jax.Array) -> jax.Array:
    """LayerNorm of jnp.mean and jnp.var, divided by a root."""
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return y * spread(v["scale"], x) + spread(v["bias"], x)


def by_squares(v: Any, x: jax.Array) -> jax.Array:
    """LayerNorm with E[x^2] - E[x]^2, the scale multiplied first."""
    mean = jnp.sum(x, -1, keepdims=True) * (1 / x.shape[-1])
    variance = jnp.maximum(jnp.mean(x * x, -1, keepdims=True) - mean**2, 0.0)
    factor = spread(v["scale"], x) * jnp.broadcast_to(jax.lax.rsqrt(variance + 1e-5), x.shape)
    return (x - mean) * factor + spread(v["bias"], x)


def by_power(v: Any, x: jax.Array) -> jax.Array:
    """RMSNorm with one plus a scale, as Gemma has it, a power, and epsilon in front."""
    return x * (1e-5 + jnp.square(x).mean(-1, keepdims=True)) ** -0.5 * (1 + spread(v["scale"], x))


def by_computed_numbers(v: Any, x: jax.Array) -> jax.Array:
    """RMSNorm whose constants are operations of the program."""
    one = jnp.float32(1.0)
    share, small = one / (jnp.float32(2.0) * jnp.float32(4.0) + one + one), jnp.sqrt(jnp.float32(1e-10))
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) * share + small) * spread(v["scale"], x)


def spread(vector: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(vector, x.shape)


def block(norm: Callable, v: Any, x: jax.Array) -> jax.Array:
    """Attention over heads without a bias, then a hidden layer with one."""
    y = norm(v["norm1"], x)
    query, key = (jnp.einsum("ntw,whd->nthd", y, v[name]) for name in ("query", "key"))
    value = jnp.einsum("whd,ntw->nthd", v["value"], y)
    weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key))
    x = x + jnp.einsum("nhqk,nkhd,hdw->nqw", weights, value, v["mix"])
    hidden = times(norm(v["norm2"], x), v["up"])
    return x + times(jax.nn.gelu(hidden + spread(v["up_bias"], hidden)), v["down"])


def body(norm: Callable, v: Any, x: jax.Array) -> jax.Array:
    """A pre-norm transformer up to its last norm: embedding with positions, a layer scale, the mean over tokens."""
    x = times(x, v["embed"]) + jnp.broadcast_to(v["positions"], (*x.shape[:2], WIDTH))
    x = jax.checkpoint(functools.partial(block, norm))(v, x)
    return norm(v["last"], x.mean(1))


NORM = {"scale": (WIDTH,), "bias": (WIDTH,)}
SHAPES = {
    "embed": (9, WIDTH), "positions": (6, WIDTH), "norm1": NORM, "norm2": NORM, "last": NORM, "mix": (HEADS, HEAD, WIDTH),
    **dict.fromkeys(("query", "key", "value"), (WIDTH, HEADS, HEAD)),
    "up": (WIDTH, HIDDEN), "up_bias": (HIDDEN,), "down": (HIDDEN, WIDTH), "head": (WIDTH, OUT),
}  # fmt: skip


def by_hand(apply: Callable[..., jax.Array], shapes: Any = SHAPES) -> Net:
    """A network in plain JAX."""
    tree = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple))
    return Net(jax.jit(apply), random(tree, 0), data(*TOKENS.shape))


def plain(norm: Callable) -> Net:
    return by_hand(lambda v, x: times(body(norm, v, x), v["head"]))


NORMS = {"variance": by_variance, "squares": by_squares, "power": by_power, "computed": by_computed_numbers}


@functools.cache
def net(name: str) -> Net:
    return plain(NORMS[name]) if name in NORMS else model(CONFIGS[name])


EVERY = (*CONFIGS, *NORMS)
STREAM = {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)}


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("name", EVERY)
def test_the_function_is_the_same_for_any_variables(name):
    assert net(name).error() < 1e-5
    assert net(name).error(seed=1) < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_the_stream_becomes_orthogonal_and_the_rest_stays(name):
    width = 24 if name.startswith("llama") else WIDTH
    before = alignment.trace(net(name).apply, net(name).variables, net(name).inputs)
    assert [n.group for n in before.nodes.values() if n.size == width] == ["permutation"]
    assert net(name).groups(width) == ["orthogonal"]
    inside = [[(n.size, n.group, n.copies) for n in g.nodes.values() if n.size != width] for g in (before, net(name).graph)]
    assert inside[0] == inside[1] and len(inside[0]) > 1
    assert net(name).folded.kept == ()


@pytest.mark.parametrize("name", EVERY)
def test_random_elements_of_all_groups_keep_the_function(name):
    folded, x = net(name).folded, net(name).inputs
    assert alignment.verify(folded.apply, net(name).graph, folded.variables, x, key=KEY) < 1e-5
    alone = alignment.verify_each(folded.apply, net(name).graph, folded.variables, x, key=KEY)
    assert {node: change for node, change in alone.items() if change > 1e-5} == {}


@pytest.mark.parametrize("name", EVERY)
def test_scales_and_biases_of_norms_are_gone_and_nothing_else(name):
    paths = alignment.graph.flatten(net(name).variables)
    unread = {p for p in paths if name in ("power", "computed") and p.endswith("/bias")}  # RMSNorm reads none
    assert set(net(name).folded.gone) == {p for p in paths if "norm" in p or "last" in p} - unread


def test_a_head_tied_to_an_embedding_becomes_a_leaf_of_its_own():
    tied, head = (net(name).folded.variables for name in ("llama", "llama_untied"))
    assert {p for p in tied if "untied" in p} == {"params/tokens/embedding/untied"}
    assert not [p for p in head if "untied" in p]
    assert {p for p in net("gpt2").folded.variables if "untied" in p} == {
        "params/tokens/embedding/untied",
        "params/tokens/embedding/untied/bias",
    }


def test_biases_go_into_those_that_are_there():
    assert set(net("vit").folded.variables) < set(alignment.graph.flatten(net("vit").variables))
    made = set(net("variance").folded.variables) - set(alignment.graph.flatten(net("variance").variables))
    assert made == {"query/bias", "key/bias", "value/bias", "head/bias"}


def test_what_writes_to_the_stream_is_centred():
    v = net("vit").folded.variables
    writers = ("patches", "attention/out", "feed_forward/down")
    centred = {p: x.mean(-1) for p, x in v.items() if any(w in p for w in writers) or p.endswith(("positions", "class_token"))}
    assert len(centred) == 8
    assert all(float(jnp.abs(m).max()) < 1e-6 for m in centred.values())


def test_layer_norm_between_two_contractions_is_the_formula():
    """W' = W C before; W' = diag(gamma) W and b' = beta W behind; an RMSNorm between them."""
    apply = lambda v, x: times(by_variance(v["norm"], times(x, v["embed"])), v["head"])  # noqa: E731
    one = by_hand(apply, {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)})
    embed, norm, head = one.variables["embed"], one.variables["norm"], one.variables["head"]
    want = {
        "embed": embed - embed.mean(1, keepdims=True),
        "head": norm["scale"][:, None] * head,
        "head/bias": norm["bias"] @ head,
    }
    assert one.folded.variables.keys() == want.keys()
    for path, leaf in want.items():
        np.testing.assert_allclose(one.folded.variables[path], leaf, atol=1e-6)
    x = times(one.inputs, want["embed"])
    y = times(x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5), want["head"])
    np.testing.assert_allclose(y + spread(want["head/bias"], y), apply(one.variables, one.inputs), atol=1e-5)


def test_a_stream_may_be_written_by_a_choice_among_weights():
    """Tokens that are left out get zeros instead of the embedding."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        kept = jnp.broadcast_to(jnp.arange(9)[:, None] < 5, v["embed"].shape)
        return times(by_variance(v["norm"], times(x, jnp.where(kept, v["embed"], 0.0))), v["head"])

    one = by_hand(apply, STREAM)
    assert one.error() < 1e-5 and one.folded.kept == () and one.groups(WIDTH) == ["orthogonal"]


def test_arrays_are_stacked_and_unstacked_on_the_way_to_and_from_a_norm():
    def apply(v: Any, x: jax.Array) -> jax.Array:
        first, second, *_ = jnp.unstack(times(x, v["embed"]), axis=1)
        left, right = jnp.unstack(by_variance(v["norm"], jnp.stack([first, second + v["position"]], axis=1)), axis=1)
        return times(left, v["left"]) + times(right, v["right"])

    shapes = {"embed": (9, WIDTH), "position": (1, WIDTH), "norm": NORM, "left": (WIDTH, OUT), "right": (WIDTH, OUT)}
    one = by_hand(apply, shapes)
    assert one.error() < 1e-5 and one.folded.kept == () and one.groups(WIDTH) == ["orthogonal"]
    assert one.folded.gone == ("norm/bias", "norm/scale")


def test_shapes_fold_to_shapes():
    network, x = abstract(CONFIGS["gpt2"]), example(CONFIGS["gpt2"])
    folded = fold(network.apply, network.variables, x)
    shapes = {path: (leaf.shape, leaf.dtype) for path, leaf in net("gpt2").folded.variables.items()}
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in folded.variables.items()} == shapes
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in folded.variables.values())


def test_other_batch_sizes():
    one = by_hand(reads_the_stream, {"embed": (9, WIDTH), "norm": NORM, "up": (WIDTH, OUT), "tap": (WIDTH, OUT)})
    before, after = one.both(one.variables, data(1, 6, 9))
    np.testing.assert_allclose(after, before, atol=1e-5 * float(jnp.abs(before).max()))
    for name in CONFIGS:
        folded, rows = net(name).folded, net(name).inputs[:1]
        assert jax.eval_shape(folded.apply, folded.variables, rows).shape[0] == 1


def test_a_model_folded_alike_may_be_rotated():
    one = net("vit")
    theirs = jax.jit(one.folded.convert)(random(one.variables, 2))
    maps = {n.name: alignment.identity(n.size, n.copies) for n in one.graph.nodes.values()}
    (stream,) = [n.name for n in one.graph.nodes.values() if n.group == "orthogonal"]
    maps[stream] = alignment.orthogonal(jnp.linalg.qr(data(WIDTH, WIDTH))[0])
    moved = alignment.transport(one.graph, maps, theirs)
    assert float(jnp.abs(moved["params/positions"] - theirs["params/positions"]).max()) > 0.1
    assert alignment.discrepancy(one.folded.apply, one.graph, maps, theirs, one.inputs) < 1e-5


# -------------------------------------------------------------------------------------------------- what is not folded


def unchanged(one: Net) -> tuple[str, ...]:
    """That folding did nothing; why."""
    variables = alignment.graph.flatten(one.variables)
    assert one.folded.variables.keys() == variables.keys() and one.folded.gone == ()
    assert all(np.array_equal(one.folded.variables[path], leaf) for path, leaf in variables.items())
    assert one.error() < 1e-6
    return tuple(kept.reason for kept in one.folded.kept)


def test_without_norms_nothing_is_folded():
    assert unchanged(model(Mlp())) == ()


def test_post_norm_is_left_alone_and_named():
    one = model(Bert(vocabulary=11, length=6, **SIZES))
    reasons = unchanged(one)
    assert any("add reads a norm's output" in reason for reason in reasons)
    assert all("bert.py" in kept.source for kept in one.folded.kept)


def test_a_stream_that_is_read_without_a_norm_keeps_its_centring():
    """Scales are folded, means stay: the head sees the mean of the stream."""
    stream = by_hand(reads_the_stream, {"embed": (9, WIDTH), "norm": NORM, "up": (WIDTH, OUT), "tap": (WIDTH, OUT)})
    assert stream.error() < 1e-5
    assert [kept.reason for kept in stream.folded.kept] == ["dot_general reads the stream without a norm that centres"]
    assert stream.folded.gone == ("norm/bias", "norm/scale")
    assert np.array_equal(stream.folded.variables["embed"], stream.variables["embed"])


def reads_the_stream(v: Any, x: jax.Array) -> jax.Array:
    x = times(x, v["embed"])
    return times(by_variance(v["norm"], x), v["up"]) + times(x, v["tap"])


def test_a_stream_that_meets_itself_on_another_axis_keeps_its_centring():
    def apply(v: Any, x: jax.Array) -> jax.Array:
        h = times(x.mean(1), v["embed"])
        square = h[:, None, :] * v["rows"][None, :, None]
        return times(by_variance(v["norm"], square + square.swapaxes(1, 2)), v["head"])

    one = by_hand(apply, STREAM | {"rows": (WIDTH,)})
    assert "the features of the stream meet themselves on another axis" in not_centred(one)


@pytest.mark.parametrize(
    ("between", "why"),
    [(jnp.tanh, "tanh reads a norm's output"), (lambda y: y + y[:, :1], "add reads a norm's output")],
)
def test_a_scale_read_by_something_else_stays(between, why):
    shapes = {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)}
    one = by_hand(lambda v, x: times(between(by_variance(v["norm"], times(x, v["embed"]))), v["head"]), shapes)
    assert any(why in reason for reason in unchanged(one))


def not_centred(one: Net) -> list[str]:
    """That the writers of the stream stay as they are; why."""
    assert one.error() < 1e-5
    assert np.array_equal(one.folded.variables["embed"], one.variables["embed"])
    return [kept.reason for kept in one.folded.kept]


def masked(x: jax.Array, y: jax.Array) -> jax.Array:
    return y * jnp.broadcast_to((x[..., :1] > 0).astype(y.dtype), y.shape)


def summed(x: jax.Array, y: jax.Array) -> jax.Array:
    return y.sum(1)


def padded(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.pad(y, ((0, 0), (1, 0), (0, 0)))


@pytest.mark.parametrize("weighed", [masked, summed, padded])
def test_a_bias_stays_where_tokens_are_weighed_behind_the_norm(weighed):
    """A masked token has no bias, and all together have it often: none of them is a reader's own. A scale is every token's."""

    def apply(norm: Callable, v: Any, x: jax.Array) -> jax.Array:
        return times(weighed(x, norm(v["norm"], times(x, v["embed"]))), v["head"])

    name = {"masked": "mul", "summed": "reduce_sum", "padded": "pad"}[weighed.__name__]
    reasons = unchanged(by_hand(functools.partial(apply, by_variance), STREAM))
    assert f"{name} reads a norm's output, so its scale cannot move into weights" in reasons
    scaled = by_hand(functools.partial(apply, by_power), STREAM)
    assert scaled.error() < 1e-5
    assert (scaled.folded.gone, scaled.folded.kept) == (("norm/scale",), ())


def test_a_scale_that_is_read_outside_of_its_norm_stays():
    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = times(x, v["embed"])
        factor = spread(v["norm"]["scale"], x) * jnp.broadcast_to(jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5), x.shape)
        y = times((x - x.mean(-1, keepdims=True)) * factor, v["head"])
        return y + jnp.broadcast_to(jnp.tanh(factor).sum(-1, keepdims=True), y.shape)

    assert "tanh also reads a norm's scale" in unchanged(by_hand(apply, STREAM))


def test_a_stream_less_twice_its_mean_is_not_centred():
    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = times(x, v["embed"])
        y = (x - 2 * x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return times(y * spread(v["norm"]["scale"], x), v["head"])

    assert unchanged(by_hand(apply, STREAM)) == ()  # no norm at all


@pytest.mark.parametrize(("squares", "square"), [(2.0, 1.0), (1.0, 0.7)])
def test_a_difference_of_squares_is_a_variance_with_both_factors_only(squares, square):
    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = times(x, v["embed"])
        mean = x.mean(-1, keepdims=True)
        variance = squares * jnp.square(x).mean(-1, keepdims=True) - (square * mean) ** 2
        y = (x - mean) * jax.lax.rsqrt(variance + 1e-5) * spread(v["norm"]["scale"], x)
        return times(y, v["head"])

    one = by_hand(apply, STREAM)
    assert unchanged(one) == ()


def test_a_stream_that_the_outputs_show_keeps_its_mean():
    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = times(x, v["embed"])
        return jnp.concatenate([times(by_variance(v["norm"], x), v["head"]), x], -1)

    def both(v: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = times(x, v["embed"])
        return times(by_variance(v["norm"], x), v["head"]), x

    assert not_centred(by_hand(apply, STREAM)) == ["concatenate reads the stream without a norm that centres"]
    one = by_hand(both, STREAM)
    folded = one.folded
    for before, after in zip(one.apply(one.variables, one.inputs), folded.apply(folded.variables, one.inputs), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-5 * float(jnp.abs(before).max()))
    assert [kept.reason for kept in folded.kept] == ["the outputs show the stream itself"]


@pytest.mark.parametrize("fill", [1.0, jnp.nan])
def test_rows_that_a_table_does_not_have_are_no_rows_of_it(fill):
    """What stands in their place is written to the stream too, and cannot be centred unless it is not a number anyway."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        rows = jnp.argmax(x, -1) + (4 if fill == 1 else 0)  # some beyond the table
        return times(by_variance(v["norm"], jnp.take(v["embed"], rows, axis=0, mode="fill", fill_value=fill)), v["head"])

    one = by_hand(apply, STREAM)
    assert one.error() < 1e-5
    why = [kept.reason for kept in one.folded.kept]
    assert why == (["gather writes to the stream, and is no contraction, sum or table"] if fill == 1 else [])


GROUPED = ({}, {"feature_group_count": 2}, {"feature_group_count": WIDTH}, {"batch_group_count": 2})


@pytest.mark.parametrize("groups", GROUPED, ids=["whole", "grouped", "depthwise", "batches"])
def test_a_convolution_in_groups_keeps_the_mean_and_is_named(groups):
    """Its features are made of different ones each, so their mean is made by no such kernel."""

    def apply(v: Any, x: jax.Array) -> jax.Array:
        x, numbers = times(x, v["embed"]), ("NTC", "TIO", "NTC")
        x = jax.lax.conv_general_dilated(x, v["kernel"], (1,), "SAME", dimension_numbers=numbers, **groups)
        return times(by_variance(v["norm"], x), v["head"])

    one = by_hand(apply, STREAM | {"kernel": (3, WIDTH // groups.get("feature_group_count", 1), WIDTH)})
    why = ["conv_general_dilated writes to the stream, and is no contraction, sum or table"] if groups else []
    assert not_centred(one) == why
    assert np.array_equal(one.folded.variables["kernel"], one.variables["kernel"]) == bool(groups)


@pytest.mark.parametrize("writes", [jnp.abs, lambda x: x + 1.0, lambda x: x * jnp.arange(1.0, WIDTH + 1)])
def test_a_writer_that_cannot_be_centred_keeps_the_mean(writes):
    shapes = {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)}
    with jax.numpy_rank_promotion("allow"):
        one = by_hand(lambda v, x: times(by_variance(v["norm"], writes(times(x, v["embed"]))), v["head"]), shapes)
        assert one.error() < 1e-5
    assert any("the stream" in kept.reason for kept in one.folded.kept)
    assert np.array_equal(one.folded.variables["embed"], one.variables["embed"])


def test_root_mean_squares_of_a_stream_with_a_mean_keep_it():
    shapes = {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)}
    one = by_hand(lambda v, x: times(by_variance(v["norm"], unit_rms(times(x, v["embed"]))), v["head"]), shapes)
    assert one.error() < 1e-5
    assert {kept.reason for kept in one.folded.kept} == {"mul reads a mean or a square of the stream"}
    assert np.array_equal(one.folded.variables["embed"], one.variables["embed"])


def test_a_stream_with_a_norm_that_stays_is_not_centred():
    shapes = {"embed": (9, WIDTH), "norm": NORM, "stays": NORM, "head": (WIDTH, OUT)}

    def apply(v: Any, x: jax.Array) -> jax.Array:
        x = times(x, v["embed"])
        return times(by_variance(v["norm"], x), v["head"]) + times(jnp.tanh(by_variance(v["stays"], x)), v["head"])

    folded = by_hand(apply, shapes).folded
    assert set(folded.gone) == {"norm/scale", "norm/bias"}
    assert np.array_equal(folded.variables["embed"], by_hand(apply, shapes).variables["embed"])


def test_variables_of_another_structure_are_refused():
    one = net("vit")
    with pytest.raises(ValueError, match="norm1/bias"):
        one.folded.apply(alignment.graph.flatten(one.variables), one.inputs)
    wrong = jax.tree.map(lambda x: x, one.variables)
    wrong["params"]["head"]["bias"] = jnp.zeros(3)
    with pytest.raises(ValueError, match="params/head/bias"):
        one.folded.convert(wrong)


def test_derivatives_of_activations_are_their_own():
    """max(x, 0) has a gradient of one half at zero, jax.nn.relu has none."""
    shapes = {"embed": (9, WIDTH), "norm": NORM, "head": (WIDTH, OUT)}
    one = by_hand(lambda v, x: jax.nn.relu(times(by_variance(v["norm"], times(x, v["embed"])), v["head"])), shapes)
    zero = {**one.folded.variables, "head": jnp.zeros((WIDTH, OUT)), "head/bias": jnp.zeros(OUT)}
    assert not jax.grad(lambda v: one.folded.apply(v, one.inputs).sum())(zero)["head/bias"].any()


@pytest.mark.parametrize("name", ["instance_norm", "scan_over_transformer_layers"])
def test_norms_of_other_axes_and_inside_loops_are_left_alone(name):
    zoo = zoo_plain.BUILDERS[name]()
    reasons = unchanged(Net(zoo.apply, random(zoo.variables, 3), zoo.inputs))
    assert reasons == (("norms inside scan are not looked for",) if "scan" in name else ())
