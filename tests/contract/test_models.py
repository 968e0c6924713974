"""What every architecture keeps, over MODELS. A new one needs its tiny configurations in CONFIGS."""

import dataclasses
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.graph import flatten, path_name, signature
from alignment.layer_groups.cut_places import candidates, cuts_at
from alignment.layer_groups.groups import flow_of
from npmerge.models import (
    MODELS,
    Bert,
    Config,
    Gpt2,
    Llama,
    Mlp,
    ResNet,
    ResNetCifar,
    Vgg,
    Vit,
    WithWidths,
    abstract,
    build,
    example,
)

VGG = Vgg(stages=((3,), (4, 5)), dense=(6,), classes=3, side=8, channels=2)
BERT = Bert(vocabulary=11, width=8, layers=1, heads=2, hidden=6, length=5)
LLAMA = Llama(vocabulary=11, width=8, layers=1, heads=2, kv_heads=1, hidden=6, length=5, tied=False)
VIT = Vit(patch=4, width=8, layers=1, heads=2, hidden=6, classes=3, side=8, channels=2)
RESNET = ResNetCifar(1, 4, classes=3, side=8, channels=2)
CONFIGS: dict[type[Config], tuple[Config, ...]] = {
    Mlp: (Mlp(4, (6, 5), 3),),
    Vgg: (VGG, dataclasses.replace(VGG, norm="batch"), dataclasses.replace(VGG, pooled=3)),
    ResNetCifar: tuple(ResNetCifar(1, 4, shortcut, classes=3, side=8, channels=2) for shortcut in ("A", "B")),
    ResNet: (
        ResNet("basic", (1, 1), width=3, classes=3, side=8, channels=2),
        ResNet("bottleneck", (2,), width=2, classes=3, side=8, channels=2),
    ),
    Vit: (VIT,),
    Bert: (BERT, dataclasses.replace(BERT, classes=3)),
    Gpt2: (Gpt2(vocabulary=11, width=8, layers=2, heads=2, hidden=6, length=5),),
    Llama: (
        LLAMA,
        dataclasses.replace(LLAMA, heads=4, kv_heads=2, bias=True, tied=True),  # Qwen2
        dataclasses.replace(LLAMA, layers=2, window=2),  # Mistral
    ),
    WithWidths: (  # a stream, hidden channels and padded ones
        WithWidths(RESNET, (("params/blocks/0/conv1", 5), ("params/blocks/2/conv2", 6), ("params/conv", 7))),
        WithWidths(
            Vit(patch=4, width=8, layers=1, heads=2, hidden=6, classes=3, side=8), (("params/blocks/0/feed_forward/up", 9),)
        ),
    ),
}
ALL = [pytest.param(c, id=f"{m.__name__}-{k}") for m in MODELS for k, c in enumerate(CONFIGS.get(m, ()))]
configs = pytest.mark.parametrize("config", ALL)
causal = pytest.mark.parametrize("config", [p for p in ALL if isinstance(p.values[0], Gpt2 | Llama)])


def generic(tree: Any, seed: int = 0) -> Any:
    """Random variables without dead or equal units: scales and variances in [0.5, 1.5], positive biases."""
    rng = np.random.default_rng(seed)

    def leaf(path: tuple, x: jax.Array) -> jax.Array:
        name = path_name(path)
        if "scale" in name or "var" in name:
            return jnp.asarray(rng.uniform(0.5, 1.5, x.shape).astype(x.dtype), x.dtype)
        if "bias" in name or "mean" in name:  # means below biases: between the two a unit would die
            low, high = (0.5, 1.5) if "bias" in name else (-0.2, 0.2)
            return jnp.asarray(rng.uniform(low, high, x.shape).astype(x.dtype), x.dtype)
        values = rng.standard_normal(x.shape)
        if "kernel" in name:  # nearly centred: behind a ReLU all inputs are positive, and a unit would live or die
            values -= 0.8 * values.mean(tuple(range(x.ndim - 1)), keepdims=True)
            values /= np.sqrt(np.prod(x.shape[:-1]) / 2)
        return jnp.asarray(values.astype(x.dtype), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def inputs(config: Config, seed: int = 3, n: int = 4) -> jax.Array:
    """Random images or tokens; the sequences of an encoder end in padding, the first one as long as it can be."""
    shape, rng = example(config, n).shape, np.random.default_rng(seed)
    if not isinstance(config, Bert | Gpt2 | Llama):
        return jnp.asarray(rng.standard_normal(shape).astype(np.float32), np.float32)
    tokens = rng.integers(1, config.vocabulary, shape)
    lengths = config.length - np.arange(n) % config.length
    padded = isinstance(config, Bert) & (np.arange(config.length) >= lengths[:, None])
    return jnp.asarray(np.where(padded, 0, tokens).astype(np.int32), np.int32)


def output_shape(config: Any, n: int = 4) -> tuple[int, ...]:
    config = getattr(config, "config", config)
    if isinstance(config, Gpt2 | Llama):
        return (n, config.length, config.vocabulary)
    if isinstance(config, Bert) and config.classes is None:
        return (n, config.length, config.width)
    return (n, config.classes)


def run(config: Config, x: jax.Array) -> jax.Array:
    network = abstract(config)
    return jax.jit(network.apply)(generic(network.variables), x)


def changed(a: jax.Array, b: jax.Array) -> list[bool]:
    """At which positions of the sequences two outputs differ by more than rounding."""
    return (jnp.abs(a - b).max((0, 2)) > 1e-4).tolist()


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
    assert outputs.shape == output_shape(config)
    assert outputs.dtype == jnp.float32
    chex.assert_tree_all_finite(outputs)
    chex.assert_trees_all_equal(network.variables, build(config, seed=1).variables)
    other = build(config, seed=2).variables
    chex.assert_trees_all_equal_shapes_and_dtypes(network.variables, other)
    kernels = [p for p in flatten(other) if p.endswith(("kernel", "embedding", "positions", "token"))]
    assert kernels
    assert all(bool(jnp.any(flatten(network.variables)[p] != flatten(other)[p])) for p in kernels)


@configs
def test_equal_configurations_share_their_functions(config):
    a, b = build(config), build(dataclasses.replace(config))
    assert a.apply is b.apply
    assert a.train_apply is b.train_apply


@configs
def test_training_mode_moves_statistics_and_nothing_else(config):
    network = abstract(config)
    variables = generic(network.variables)
    outputs, moved = jax.jit(network.train_apply)(variables, inputs(config))
    assert outputs.shape == output_shape(config)
    chex.assert_trees_all_equal_shapes_and_dtypes(moved, variables)
    chex.assert_trees_all_equal(moved["params"], variables["params"])
    for path, old in flatten(variables["batch_stats"]).items():
        assert bool(jnp.all(flatten(moved["batch_stats"])[path] != old)), path


@configs
def test_evaluation_mode_looks_at_each_example_alone(config):
    network = abstract(config)
    variables, x = generic(network.variables), inputs(config)
    apply = jax.jit(network.apply)
    together, turned = apply(variables, x), apply(variables, jnp.concatenate([x[:1], inputs(config, seed=4)[1:]]))
    chex.assert_trees_all_close(turned[0], together[0], rtol=1e-5, atol=1e-6)


@causal
def test_language_models_do_not_look_ahead(config):
    x = inputs(config)
    other = x.at[:, 3].set(x[:, 3] % 10 + 1)
    reached = changed(run(config, x), run(config, other))
    assert reached[:4] == [False, False, False, True]


@causal
def test_every_block_sees_a_window(config):
    x = inputs(config)
    reached = changed(run(config, x), run(config, x.at[:, 0].set(x[:, 0] % 10 + 1)))
    window = getattr(config, "window", None) or config.length
    assert reached == [k <= config.layers * (window - 1) for k in range(config.length)]


@causal
def test_tied_heads_are_one_leaf(config):
    heads = [p for p in flatten(abstract(config).variables) if "head" in p]
    assert heads == ([] if getattr(config, "tied", True) else ["params/head/kernel"])


@pytest.mark.parametrize("config", CONFIGS[Bert])
def test_encoders_ignore_padding(config):
    x = inputs(config)[:1, :3]
    assert bool(jnp.all(x != config.pad))
    longer = jnp.pad(x, ((0, 0), (0, 2)), constant_values=config.pad)
    short, long = run(config, x), run(config, longer)
    chex.assert_trees_all_close(long if config.classes else long[:, :3], short, rtol=1e-5, atol=1e-6)
    seen = run(config, jnp.where(longer == config.pad, 1, longer))
    assert float(jnp.abs(seen - long).max()) > 1e-3


@pytest.mark.parametrize("config", [BERT, *CONFIGS[Gpt2]])
def test_sequences_are_as_long_as_the_learned_positions(config):
    with pytest.raises(ValueError, match="got 6 tokens, but there are learned positions for 5"):
        jax.eval_shape(abstract(config).apply, abstract(config).variables, jnp.ones((1, 6), jnp.int32))


PUBLISHED = {
    "VGG-11 with BatchNorm": (Vgg(dense=(4096, 4096), classes=1000, side=224, norm="batch"), 132_868_840),
    "ResNet-18": (ResNet(), 11_689_512),
    "ResNet-50": (ResNet("bottleneck", (3, 4, 6, 3)), 25_557_032),
    "ViT-B/16": (Vit(), 86_567_656),
    "BERT-base without pooler": (Bert(), 108_891_648),
    "GPT-2": (Gpt2(), 124_439_808),
    "SmolLM2-135M": (Llama(), 134_515_008),
    "Qwen2-0.5B": (Llama(151_936, 896, 24, 14, 2, 4864, bias=True), 494_032_768),
    "Mistral-7B": (Llama(32_000, 4096, 32, 32, 8, 14_336, window=4096, tied=False), 7_241_732_096),
}


@pytest.mark.parametrize(("config", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_as_many_parameters_as_published(config, parameters):
    shapes = jax.eval_shape(lambda: build(config).variables["params"])
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Vgg(side=20), "side must be divisible by 2\\^stages = 32, got 20"),
        (lambda: ResNetCifar(shortcut="C"), "shortcut must be 'A'.* got 'C'"),
        (lambda: ResNetCifar(width=3), "width must be even.*got width=3"),
        (lambda: ResNetCifar(blocks=0), "blocks positive.*blocks=0"),
        (lambda: Vgg(pooled=0), "pooled must be positive or None, got 0"),
        (lambda: Vgg(norm="layer"), "norm must be 'none' or 'batch', got 'layer'"),
        (lambda: ResNet("wide"), "block must be 'basic' or 'bottleneck', got 'wide'"),
        (lambda: ResNet(stages=(2, 0)), "every stage must be positive.*stages=\\(2, 0\\)"),
        (lambda: Vit(side=30), "side must be a multiple of patch, got side=30, patch=16"),
        (lambda: Vit(heads=5), "width must be a multiple of heads, got width=768, heads=5"),
        (lambda: Bert(pad=-1), "pad must be a token, got pad=-1"),
        (lambda: Gpt2(heads=0), "width must be a multiple of heads, got width=768, heads=0"),
        (lambda: Llama(kv_heads=2), "heads must be a multiple of kv_heads, got heads=9, kv_heads=2"),
        (lambda: Llama(width=27), "width / heads must be even, got 27 / 9"),
        (lambda: Llama(window=0), "window must be positive or None, got 0"),
        (lambda: Llama(stretch=(8.0, 4.0, 1.0, 9)), r"stretch must be \(factor > 0.* got \(8.0, 4.0, 1.0, 9\)"),
        (
            lambda: WithWidths(RESNET, (("params/head", 3),)),
            "unknown node 'params/head': .* expected one of params/conv",
        ),
        (lambda: WithWidths(RESNET, (("params/conv", 0),)), "widths of 'params/conv' must be an integer of 1 or more, got 0"),
        (lambda: WithWidths(RESNET, (("params/conv", 2.5),)), "widths of 'params/conv' must be an integer.*got 2.5"),
        (lambda: WithWidths(RESNET, (("params/conv", 3), ("params/conv", 5))), "widths names 'params/conv' twice"),
        (lambda: WithWidths(RESNET, {"params/conv": 3}), r"widths must be a tuple of \(node, units\), got {'params/conv': 3}"),
        (lambda: WithWidths("resnet", ()), r"WithWidths takes \(config, widths\), got \(str, tuple\)"),
        (lambda: WithWidths(CONFIGS[WithWidths][0], ()), "give them all at once"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_widths_of_an_architecture_are_those_that_differ():
    changed = WithWidths.of(RESNET, {"params/conv": 4, "params/blocks/0/conv1": 6})
    assert changed == WithWidths(RESNET, (("params/blocks/0/conv1", 6),))
    assert WithWidths.of(changed, {"params/conv": 5}).widths == (("params/blocks/0/conv1", 6), ("params/conv", 5))
    assert WithWidths.of(changed, {"params/blocks/0/conv1": 4}) == RESNET


@pytest.mark.parametrize("config", [pytest.param(CONFIGS[m][-1], id=m.__name__) for m in MODELS if m in CONFIGS])
def test_layer_groups_are_the_network_each_equation_once(config):
    """Run, they are equal bit for bit (`test_layer_groups`); here of every architecture what is run and what it makes."""
    network, x = abstract(config), example(config)
    places = candidates(network.apply, network.variables, x)
    cuts = cuts_at(network.apply, network.variables, x, [place.behind for place in places])
    groups, leaves = cuts.groups(x), flatten(network.variables)
    assert len(places) > len(leaves) // 4
    whole, _ = flow_of(network.apply, cuts.variables, signature(x), cuts.behind)
    run = [step.outs for group in groups for step in group.program.steps if whole.data.intersection(step.outs)]
    assert run == [whole.program.steps[k].outs for k in whole.order]

    def chain(leaves, x):
        values = {}
        for group in groups:
            values |= group({path: leaves[path] for path in group.leaves}, x, {n: values[n] for n in group.needs})
        return groups[-1].returned(values)

    assert jax.eval_shape(chain, leaves, x) == jax.eval_shape(network.apply, network.variables, x)
