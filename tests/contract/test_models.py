"""What every architecture keeps, over MODELS. A new one needs its tiny configurations in CONFIGS."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import trace, verify
from alignment.graph import flatten, path_name
from npmerge.models import MODELS, Config, Mlp, ResNetCifar, Vgg, build, example

CONFIGS: dict[type[Config], tuple[Config, ...]] = {
    Mlp: (Mlp(4, (6, 5), 3),),
    Vgg: (Vgg(stages=((3,), (4, 5)), dense=(6,), classes=3, side=8, channels=2),),
    ResNetCifar: tuple(ResNetCifar(1, 4, shortcut, classes=3, side=8, channels=2) for shortcut in ("A", "B")),
}
ALL = [pytest.param(c, id=f"{m.__name__}-{k}") for m in MODELS for k, c in enumerate(CONFIGS.get(m, ()))]
configs = pytest.mark.parametrize("config", ALL)


def generic(tree: Any, seed: int = 0) -> Any:
    """Random variables without dead or equal units: scales and variances in [0.5, 1.5], positive biases."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, x: jax.Array) -> jax.Array:
        name = path_name(path)
        if "scale" in name or "var" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, x.shape), x.dtype)
        if "bias" in name:
            return jnp.asarray(rng.uniform(0.2, 1.0, x.shape), x.dtype)
        return jnp.asarray(rng.standard_normal(x.shape) / np.sqrt(np.prod(x.shape[:-1]) + 1), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def inputs(config: Config, seed: int = 3, n: int = 4) -> jax.Array:
    shape = example(config, n).shape
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_every_model_is_in_the_table():
    missing = [m.__name__ for m in MODELS if m not in CONFIGS]
    assert not missing, f"add tiny configurations of {missing} to CONFIGS of {__file__}"
    assert set(CONFIGS) == set(MODELS)
    for model, several in CONFIGS.items():
        assert several, f"{model.__name__} has no configuration"
        assert all(type(c) is model for c in several)


@configs
def test_build_gives_pure_functions_of_a_tree(config):
    network = build(config, seed=1)
    assert set(network.variables) == {"params", "batch_stats"}
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(network.variables))
    outputs = jax.jit(network.apply)(network.variables, inputs(config))
    assert outputs.shape == (4, config.classes)
    chex.assert_tree_all_finite(outputs)
    chex.assert_trees_all_equal(network.variables, build(config, seed=1).variables)
    other = build(config, seed=2).variables
    chex.assert_trees_all_equal_shapes_and_dtypes(network.variables, other)
    kernels = [p for p in flatten(other) if p.endswith("kernel")]
    assert kernels
    assert all(bool(jnp.any(flatten(network.variables)[p] != flatten(other)[p])) for p in kernels)


@configs
def test_equal_configurations_share_their_functions(config):
    a, b = build(config), build(dataclasses.replace(config))
    assert a.apply is b.apply
    assert a.train_apply is b.train_apply


@configs
def test_the_traced_graph_leaves_the_function_unchanged(config):
    network = build(config)
    variables = generic(network.variables)
    graph = trace(network.apply, variables, example(config))  # an abstract input is enough, and any warning an error
    assert graph.nodes
    assert set(graph.axes) == set(flatten(variables))
    for seed in range(2):
        assert verify(network.apply, graph, variables, inputs(config), key=jax.random.key(seed)) < 1e-5


@configs
def test_training_mode_moves_statistics_and_nothing_else(config):
    network = build(config)
    variables = generic(network.variables)
    outputs, moved = jax.jit(network.train_apply)(variables, inputs(config))
    assert outputs.shape == (4, config.classes)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, variables)
    chex.assert_trees_all_equal(moved["params"], variables["params"])
    for path, old in flatten(variables["batch_stats"]).items():
        assert bool(jnp.all(flatten(moved["batch_stats"])[path] != old)), path


@configs
def test_evaluation_mode_looks_at_each_example_alone(config):
    network = build(config)
    variables, x = generic(network.variables), inputs(config)
    apply = jax.jit(network.apply)
    together, turned = apply(variables, x), apply(variables, jnp.concatenate([x[:1], 5 * x[1:]]))
    chex.assert_trees_all_close(turned[0], together[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vgg(side=20), "side must be divisible by 2\\^stages = 32, got 20"),
        (lambda: ResNetCifar(shortcut="C"), "shortcut must be 'A'.* got 'C'"),
        (lambda: ResNetCifar(width=3), "width must be even.*got width=3"),
        (lambda: ResNetCifar(blocks=0), "blocks positive.*blocks=0"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
