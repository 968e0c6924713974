"""Layers read off names."""

import pytest

from npmerge.recipe.layers import layers_of, place_of
from tests.npmerge.recipe.headers import language_model


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.experts.3.weight", ("model.layers.", 12, ".mlp.experts.3.weight")),
        ("h.0.attn.bias", ("h.", 0, ".attn.bias")),
        ("0.weight", ("", 0, ".weight")),
        ("params/Dense_1/kernel", ("params/Dense_", 1, "/kernel")),
        ("weights.3", ("weights.", 3, "")),
        ("layer1.conv2.weight", None),
        ("lm_head.weight", None),
    ],
)
def test_the_first_number_of_a_name_is_its_layer(name, place):
    assert place_of(name) == place


def test_depth_runs_from_the_first_layer_to_the_last():
    layers = layers_of(language_model(layers=12))
    assert [layers.depth(f"model.layers.{i}.norm.weight") for i in (0, 2, 11)] == [0.0, pytest.approx(2 / 11), 1.0]


def test_the_only_layer_is_at_depth_one_as_in_mergekit():
    assert layers_of(language_model(layers=1)).depth("model.layers.0.norm.weight") == 1.0


@pytest.mark.parametrize(
    ("names", "after"),
    [
        (
            ("lm_head.weight", "model.embed_tokens.weight", "model.layers.0.a", "model.layers.1.a", "model.norm.weight"),
            (1, 0, 1),
        ),
        (("h.0.a", "h.1.a", "ln_f.weight", "wpe.weight", "wte.weight"), (1, 0, 0)),
        (("embeddings.word_embeddings.weight", "encoder.layer.0.a", "encoder.layer.1.a", "pooler.dense.weight"), (0, 1)),
        (("bn1.weight", "conv1.weight", "fc.weight", "layer1.0.a", "layer1.1.a", "layer2.0.a"), (0, 0, 1, 1)),
        (("embed_in.weight", "embed_out.weight", "layers.0.a", "layers.1.a"), (0, 1)),
    ],
)
def test_embeddings_come_before_the_layers_and_heads_after_whatever_the_order(names, after):
    layers = layers_of(names)
    outside = [name for name in names if layers.place(name) is None]
    assert [int(layers.depth(name)) for name in outside] == list(after)


def test_stacks_of_one_layer_are_none_beside_longer_ones():
    assert list(layers_of(["head.0.weight", "blocks.0.a", "blocks.1.a"]).numbers) == ["blocks."]


def test_numbers_with_gaps_are_layers_in_their_order():
    layers = layers_of(["features.0.weight", "features.3.weight", "features.10.weight"])
    assert [layers.depth(f"features.{i}.weight") for i in (0, 3, 10)] == [0.0, 0.5, 1.0]


def test_models_without_numbers_have_no_layers():
    assert not layers_of(["weight", "bias"]).numbers
