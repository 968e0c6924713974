"""Numbers that code derives from widths: they follow, or a warning names them; the oracle is the same code at the new width."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import resize, trace
from alignment.graph import path_name
from npmerge.models import Bert, Config, Gpt2, Llama, Mlp, ResNet, ResNetCifar, Vgg, Vit, abstract, example
from tests.contract.test_models import CONFIGS, generic, inputs

IN, OUT = 3, 2
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((6, IN)), jnp.float32)


def variables(n):
    shapes = {"up": (IN, n), "down": (n, OUT)}
    return {name: jnp.asarray(RNG.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def scaled(h, c):
    return h * jnp.float32(c)


def norm(h):
    return jnp.sqrt(jnp.square(h).sum(-1, keepdims=True) + 1e-6)


def like(x, h):
    return jnp.broadcast_to(x, h.shape)


def softmax(h):
    return jax.nn.softmax(h, -1)


FOLLOW = {  # features h of n units -> features, or one number
    "mean": lambda h, n: h.sum(-1, keepdims=True) / n,
    "mean_by_factor": lambda h, n: h.sum(-1, keepdims=True) * (1 / n),
    "mean_of_scaled": lambda h, n: scaled(h, 1 / n).sum(-1, keepdims=True),
    "mean_of_divided": lambda h, n: (h / n).sum(-1, keepdims=True),
    "mean_by_dot": lambda h, n: h @ jnp.full((n, 1), 1 / n),
    "mean_by_ones": lambda h, n: h @ jnp.ones((n, 1)) / n,
    "mean_by_ones_of_scaled": lambda h, n: scaled(h, 1 / n) @ jnp.ones((n, 1)),
    "mean_by_array": lambda h, n: (h @ (jnp.ones(n) / n))[:, None],
    "mean_of_two_axes": lambda h, n: like((h.sum(-1).sum(0) / (len(X) * n)).reshape(1, 1), h[:, :1]),
    "mean_of_two_axes_at_once": lambda h, n: like((h.sum((0, 1)) / (len(X) * n)).reshape(1, 1), h[:, :1]),
    "numpy_average": lambda h, n: jnp.average(h, -1, weights=jnp.ones(n))[:, None],
    "mean_of_unstacked": lambda h, n: like((sum(jnp.unstack(h.sum(-1))) / n / len(X)).reshape(1, 1), h[:, :1]),
    "mean_of_a_stack": lambda h, n: (jnp.stack([h, jnp.ones_like(h)], 1).sum((1, 2)) / n)[:, None],
    "unbiased": lambda h, n: jnp.var(h, -1, ddof=1)[:, None],
    "unbiased_by_hand": lambda h, n: jnp.square(h - like(h.mean(-1, keepdims=True), h)).sum(-1, keepdims=True) / (n - 1),
    "standard_deviation": lambda h, n: jnp.std(h, -1, keepdims=True, ddof=1),
    "standard_error": lambda h, n: norm(h - like(h.mean(-1, keepdims=True), h)) / (n - 1) ** 0.5,
    "root_mean_square": lambda h, n: norm(h) / n**0.5,
    "root_by_power": lambda h, n: jax.lax.pow(norm(h), jnp.full((len(X), 1), 0.5)) / n**0.25,
    "root_mean_by_power": lambda h, n: jax.lax.pow(jnp.square(h).sum(-1, keepdims=True), jnp.full((len(X), 1), 0.5)) / n**0.5,
    "rms_norm": lambda h, n: scaled(h / like(norm(h), h), n**0.5),
    "rms_norm_by_rsqrt": lambda h, n: scaled(h * like(jax.lax.rsqrt(jnp.square(h).sum(-1, keepdims=True)), h), n**0.5),
    "rms_norm_in_the_program": lambda h, n: h / like(jnp.linalg.norm(h, axis=-1, keepdims=True), h) * jnp.sqrt(jnp.float32(n)),
    "entropy": lambda h, n: -(softmax(h) * jnp.log(softmax(h))).sum(-1, keepdims=True) / np.log(n),
    "log_mean_exp": lambda h, n: jax.nn.logsumexp(h, -1, keepdims=True) - jnp.log(jnp.float32(n)),
    "softmax_of_mean_one": lambda h, n: softmax(h) * n,
    "harmonic_mean": lambda h, n: n / (1 / (jnp.abs(h) + 1)).sum(-1, keepdims=True),
    "mean_of_four_neighbours": lambda h, n: jax.lax.reduce_window(h, 0.0, jax.lax.add, (4, 1), (1, 1), "SAME") / 4,
    # 5 is also one less than the six samples
    "rows_that_are_alike": lambda h, n: like(h.sum(0, keepdims=True), h)[1:3].sum((0, 1), keepdims=True) / n,
    "gram": lambda h, n: (jnp.einsum("bi,bi->b", h, h) / n)[:, None],
}
ROOT = {  # as long as the root of n is no whole number
    "norm_times_root": lambda h, n: scaled(norm(h), n**0.5),
    "sum_over_root": lambda h, n: h.sum(-1, keepdims=True) / n**0.5,
    "dot_with_roots": lambda h, n: h @ jnp.full((n, 1), n**-0.5),
}
WARNED = {
    "as_many_as_n": lambda h, n: ((h > -2).sum(-1, keepdims=True) <= n).astype(jnp.float32),  # whole numbers
    "embedding": lambda h, n: scaled(h, n**0.5),
    "over_root": lambda h, n: h / n**0.5,
    "root_in_the_program": lambda h, n: h / jnp.sqrt(n),
    "over_logarithm": lambda h, n: h / np.log(n),
    "sum_less_n": lambda h, n: h.sum(-1, keepdims=True) - n,
    "mean_times_n": lambda h, n: h.mean(-1, keepdims=True) * n,
    "larger_of_a_sum_and_its_square": lambda h, n: (
        jnp.maximum(jnp.square(h.sum(-1, keepdims=True)), h.sum(-1, keepdims=True)) / n
    ),
}


def network(form, n):
    def apply(v, x):
        h = jnp.tanh(x @ v["up"])
        y = form(h, n)
        return (like(y, h) + h) @ v["down"]

    return apply


def compared(make, old, new):
    """What the resized network computes, and the same code at the new width."""
    small, wide = (variables(n) for n in (old, new))
    apply = make(old)
    return resize(apply, trace(apply, small, X), wide)(wide, X), make(new)(wide, X)


@pytest.mark.parametrize("old", [4, 5])
@pytest.mark.parametrize("name", FOLLOW)
def test_numbers_that_undo_a_sum_follow(name, old):
    got, expected = compared(lambda n: network(FOLLOW[name], n), old, 11)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ROOT)
def test_roots_that_look_like_nothing_else_follow(name):
    got, expected = compared(lambda n: network(ROOT[name], n), 5, 11)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "old"), [*((n, 4) for n in ROOT), *((n, 5) for n in WARNED), *((n, 4) for n in WARNED)])
def test_numbers_that_may_mean_anything_stay_and_are_named(name, old):
    form = (ROOT | WARNED)[name]
    line = r"resizing/test_width_numbers.py:\d+ \(.*\)"
    with pytest.warns(
        UserWarning, match=rf"the number \S+ at {line} equals .*, and 'up' now has 11 units instead of {old} there"
    ):
        got, native = compared(lambda n: network(form, n), old, 11)
    assert not np.allclose(got, native, rtol=1e-2)  # else there was nothing to warn of


WIDER: dict[type[Config], dict[str, Any]] = {  # other widths that the configurations themselves can say
    Mlp: {"hidden": (9, 7)},
    Vgg: {"stages": ((5,), (7, 3)), "dense": (11,)},
    ResNetCifar: {"width": 6},
    ResNet: {"width": 5},
    Vit: {"width": 12, "heads": 3, "hidden": 9},
    Bert: {"width": 12, "heads": 3, "hidden": 9},
    Gpt2: {"width": 12, "heads": 3, "hidden": 9},
    Llama: {"width": 12, "heads": 3, "hidden": 9},
}
TRAINED = (Vgg, ResNetCifar, ResNet)  # what BatchNorm makes of a batch is looked at in training mode


def resized(config, other, train=False):
    """A model for variables of another configuration, and that configuration's own."""
    net, native = abstract(config), abstract(other)
    graph = trace(net.apply, net.variables, example(config))
    indexing = {i for node in graph.nodes.values() for i in node.index if i in graph.nodes}
    heads = {name: other.heads for name in indexing if graph.nodes[name].size == config.heads}
    functions = (net.train_apply, native.train_apply) if train else (net.apply, native.apply)
    return resize(functions[0], graph, native.variables, heads), functions[1], generic(native.variables)


@pytest.mark.parametrize("config", [CONFIGS[m][-1] for m in WIDER], ids=lambda c: type(c).__name__)
def test_models_at_other_widths_are_those_built_at_them(config):
    other = dataclasses.replace(config, **WIDER[type(config)])
    ours, native, v = resized(config, other, isinstance(config, TRAINED))
    got, expected = jax.jit(ours)(v, inputs(config)), jax.jit(native)(v, inputs(config))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, expected)


def test_the_scale_of_attention_stays():
    """Six features in a head instead of four: as of the model built so, with queries times the root of 6 / 4."""
    config = CONFIGS[Vit][0]
    ours, native, v = resized(config, dataclasses.replace(config, width=12))
    path = ("params", "blocks", "0", "attention", "query")
    scaled_query = jax.tree_util.tree_map_with_path(
        lambda p, x: x * jnp.float32(1.5**0.5) if path_name(p).startswith("/".join(path)) else x, v
    )
    np.testing.assert_allclose(ours(v, inputs(config)), native(scaled_query, inputs(config)), rtol=1e-3, atol=1e-4)
    assert not np.allclose(ours(v, inputs(config)), native(v, inputs(config)), rtol=1e-2)
