"""Users' names: spellings, faults told at once, architectures told from files, strangers' configurations."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from npmerge.checkpoint import config_of, from_named, load_named, named_shapes, to_named
from npmerge.checkpoint.errors import CheckpointError
from npmerge.models import Bert, Gpt2, Llama, Mlp, ResNet, ResNetCifar, Vit, WithWidths, abstract
from npmerge.models.names import NAMED
from tests.contract.test_models import CONFIGS, generic
from tests.fixtures.named_cases import ROPE

CIFAR = ResNetCifar(1, 4, classes=3, side=8, channels=2)
GPT2, (BERT, CLASSIFIER), VIT = CONFIGS[Gpt2][0], CONFIGS[Bert], CONFIGS[Vit][0]
LLAMA, QWEN2, MISTRAL = CONFIGS[Llama]


def named(config):
    return to_named(config, variables(config))


def variables(config):
    return generic(abstract(config).variables)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def renamed(config, spell, **more):
    """The tensors under other names, None for none, and more of them."""
    spelled = {spell(name): x for name, x in named(config).items()}
    return {name: x for name, x in spelled.items() if name is not None} | more


SPELLINGS = {
    "DataParallel without counters": (CIFAR, lambda n: None if "num_batches" in n else f"module.{n}", {}),
    "compiled": (CIFAR, lambda n: f"_orig_mod.module.{n}", {}),
    "GPT-2 without head": (
        GPT2,
        lambda n: None if n == "lm_head.weight" else n.removeprefix("transformer."),
        {"h.0.attn.bias": np.ones((1, 1, 5, 5), bool), "h.1.attn.masked_bias": np.float32(-1e4)},
    ),
    "MiniLM": (BERT, lambda n: n, {"embeddings.position_ids": np.arange(5), "pooler.dense.bias": np.zeros(8, np.float32)}),
    "pretraining": (
        BERT,
        lambda n: f"bert.{n}".replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
        {"cls.predictions.bias": np.zeros(11, np.float32)},
    ),
    "tied head left out": (QWEN2, lambda n: None if n == "lm_head.weight" else n, {}),
    "early torchvision": (VIT, lambda n: n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."), {}),
}


@pytest.mark.parametrize(("config", "spell", "more"), SPELLINGS.values(), ids=SPELLINGS)
def test_spellings_in_use_are_read_and_written_back(config, spell, more):
    tensors = renamed(config, spell, **more)
    read = from_named(config, tensors)
    same(read, variables(config))
    back = to_named(config, read, like=tensors)
    assert list(back) == [name for name in tensors if name not in more]
    same(back, {name: tensors[name] for name in back})


def test_the_order_of_a_file_is_kept():
    names = sorted(named_shapes(CIFAR))
    assert list(to_named(CIFAR, variables(CIFAR), like=iter(names))) == names


def test_names_are_those_of_a_file(tmp_path):
    tensors = renamed(CIFAR, lambda n: f"module.{n}")
    save_file(tensors, tmp_path / "theirs.safetensors")
    for path in (tmp_path / "theirs.safetensors", str(tmp_path / "theirs.safetensors")):
        assert sorted(to_named(CIFAR, variables(CIFAR), like=path)) == sorted(tensors)


def test_all_faults_are_told_at_once():
    tensors = renamed(CIFAR, lambda n: {"bn1.weight": "bn1.wieght", "bn1.bias": None}.get(n, n))
    tensors |= {"module.conv1.weight": tensors["conv1.weight"], "linear.weight": np.zeros((3, 17), np.float16)}
    tensors["layer1.0.bn1.bias"] = np.zeros(4, np.int32)
    with pytest.raises(CheckpointError) as told:
        from_named(CIFAR, tensors, source="model.th")
    assert told.value.path == "model.th"
    assert str(told.value) == (
        "model.th: missing: bn1.weight, bn1.bias; unexpected: bn1.wieght; there twice: conv1.weight and module.conv1.weight; "
        "of another shape or kind: layer1.0.bn1.bias (got int32, expected real numbers), "
        "linear.weight (got (3, 17), expected (3, 16))"
    )


def test_faults_of_names_to_write_are_told():
    names = [*named_shapes(CIFAR), "fc.weight", "module.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"^like: missing: linear\.bias; unexpected: fc\.weight; there"):
        to_named(CIFAR, variables(CIFAR), like=[name for name in names if name != "linear.bias"])


@pytest.mark.parametrize(("config", "first"), [(GPT2, "transformer.wte.weight"), (QWEN2, "model.embed_tokens.weight")])
def test_a_head_that_is_not_tied_is_refused_where_it_should_be(config, first):
    tensors = named(config)
    same(tensors["lm_head.weight"], tensors[first])
    with pytest.raises(CheckpointError, match=r"^tensors: 'lm_head.weight' differs from the tensor .* ties it to"):
        from_named(config, tensors | {"lm_head.weight": tensors[first] + 1})


def test_variables_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"'params/conv/kernel': got \(3, 3, 2, 6\), expected \(3, 3, 2, 4\)"):
        to_named(CIFAR, variables(dataclasses.replace(CIFAR, width=6)))


def test_architectures_without_a_table_are_told():
    with pytest.raises(
        CheckpointError, match=r"unknown architecture 'Mlp': .*expected one of Vgg, ResNetCifar, ResNet, Vit, Bert"
    ):
        from_named(Mlp(), {})


def test_networks_of_other_widths_have_names_too():
    config = CONFIGS[WithWidths][0]
    same(from_named(config, named(config)), variables(config))
    assert named_shapes(config)["layer1.0.conv1.weight"] == (5, 7, 3, 3)


JSON = {
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257},
        Gpt2(),
    ),
    "SmolLM2": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "num_attention_heads": 9,
            "num_hidden_layers": 2,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 100_000,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        },
        Llama(layers=2),
    ),
    "Mistral": (
        {
            "model_type": "mistral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 2,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        Llama(32_000, 4096, 2, 32, 8, 14_336, 32_768, 10_000.0, window=4096, tied=False),
    ),
    "Qwen2": (
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 131072,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "sliding_window": 131072,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        Llama(151_936, 896, 2, 14, 2, 4864, 131_072, 1e6, 1e-6, bias=True),
    ),
}
JSON["Llama 3.2"] = (
    JSON["SmolLM2"][0]
    | {
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        }
    },
    Llama(layers=2, stretch=(32.0, 1.0, 4.0, 8192)),
)
BLANKS = {f"tensor{k}": np.zeros(()) for k in range(40)}


@pytest.mark.parametrize(("described", "config"), JSON.values(), ids=JSON)
def test_the_architecture_is_told_from_config_json(described, config):
    assert config_of(BLANKS, described) == config
    assert config_of(BLANKS, described, length=7) == dataclasses.replace(config, length=7)


SMOL = JSON["SmolLM2"][0]
STRANGE = {
    "another family": ({"model_type": "lama"}, "unknown model_type 'lama': the nearest is 'llama'"),
    "no text": ({"model_type": ["gpt2"]}, "unknown model_type"),
    "a key too few": ({"model_type": "gpt2", "n_embd": 8}, "lack 'vocab_size'"),
    "scaled rotary positions": (SMOL | {"rope_scaling": {"type": "yarn"}}, "rope_type = 'yarn', which is not supported"),
    "half of a scale": (SMOL | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lack 'low_freq_factor'"),
    "a scale upside down": (
        SMOL | {"rope_scaling": ROPE | {"low_freq_factor": 9.0}},
        "stretch must be .* got .8.0, 9.0",
    ),
    "another activation": (SMOL | {"hidden_act": "relu"}, "hidden_act = 'relu', which is not supported: expected 'silu'"),
    "wide heads": (SMOL | {"head_dim": 128}, "head_dim = 128, which is not supported: expected 64"),
    "text for a number": (SMOL | {"hidden_size": "576"}, "does not describe Llama"),
    "no heads": (SMOL | {"num_attention_heads": 0}, "does not describe Llama"),
    "a list for a mapping": (SMOL | {"rope_parameters": [1]}, "does not describe Llama"),
    "a billion blocks": (SMOL | {"num_hidden_layers": 10**9}, "1000000000 blocks, but there are 40 tensors"),
    "absurd sizes": (SMOL | {"vocab_size": 10**30}, "got vocabulary=10+, expected sizes of at most 2"),
    "negative sizes": (SMOL | {"intermediate_size": -3}, "got hidden=-3, expected"),
}


@pytest.mark.parametrize(("described", "message"), STRANGE.values(), ids=STRANGE)
def test_configurations_of_strangers_are_refused_by_name(described, message):
    with pytest.raises(CheckpointError, match=message):
        config_of(BLANKS, described)


@pytest.mark.parametrize(
    ("tensors", "given", "message"),
    [
        (
            BLANKS,
            {},
            r"no known architecture has tensors such as tensor0, tensor1, tensor2: expected one of Vgg, .*module:function",
        ),
        ({"params/w": np.zeros(1)}, {}, "such as params/w: .*load_network reads what save_network wrote, load what save did"),
        ({"inputs": np.zeros(1), "labels": np.zeros(1)}, {}, "such as inputs, labels: .* is this a file of examples rather"),
        (named(GPT2), {}, "tensors of Gpt2 do not tell heads: give them, or a config.json"),
        (named(LLAMA), {"heads": 2, "kv_heads": 1}, "do not tell theta, eps"),
        (named(GPT2), {"heads": 3}, "does not describe Gpt2: width must be a multiple of heads, got width=8, heads=3"),
        (named(CIFAR), {"depth": 3}, "unknown field of ResNetCifar 'depth': the nearest is 'width'"),
        ({**named(CIFAR), "conv1.weight": np.zeros(())}, {}, "does not describe ResNetCifar"),
        ({"h.0.mlp.c_fc.weight": np.zeros(())}, {}, "no known architecture"),
        ({"wte.weight": np.zeros((3, 2))}, {"heads": 1}, "'h.0.mlp.c_fc.weight' is missing"),
    ],
)
def test_what_tensors_do_not_tell_is_asked_for(tensors, given, message):
    with pytest.raises(CheckpointError, match=message):
        config_of(tensors, **given)


def test_names_with_absurd_numbers_build_nothing():
    strange = {"fc.weight": (3, 4), "bn1.weight": (4,), "conv1.weight": (4, 3, 7, 7), "layer1.0.conv1.weight": (4, 4, 3, 3)}
    tensors = {name: np.zeros(shape, np.float32) for name, shape in strange.items()}
    tensors |= {f"layer{10**12}.{10**12}.conv1.weight": np.zeros(1), "layer1.999999999.bn1.bias": np.zeros(1)}
    with pytest.raises(CheckpointError, match=r"stages=\(2, 0\)"):
        config_of(tensors)
    del tensors[f"layer{10**12}.{10**12}.conv1.weight"]
    config = config_of(tensors)
    assert config == ResNet(stages=(2,), width=4, classes=3)
    with pytest.raises(CheckpointError, match=r"missing: .*; unexpected: layer1\.999999999\.bn1\.bias"):
        from_named(config, tensors)


def mutated(tensors, rng):
    """Tensors of which one is missing, misnamed, there twice or of another shape."""
    names = list(tensors)
    victim, other = rng.choice(names, 2)
    found = dict(tensors)
    x = found.pop(victim)
    kind = rng.integers(5)
    if kind == 1:
        found[victim[: rng.integers(len(victim))]] = x
    if kind == 2:
        found |= {victim: x, f"module.{victim}": x}
    if kind == 3:
        found[victim] = np.zeros(rng.integers(0, 4, rng.integers(0, 5)), np.float32)
    if kind == 4:
        found |= {victim: found.get(other, x), other: x}
    return found


@pytest.mark.parametrize("config", [c for known in NAMED for c in CONFIGS[known.config]])
def test_damaged_files_are_refused_or_read(config):
    rng, tensors, reasons = np.random.default_rng(0), named(config), set()
    asks = next(known.asks for known in NAMED if known.config is type(config))
    for _ in range(25):
        damaged = mutated(tensors, rng)
        for told in (True, False):
            try:
                from_named(config_of(damaged, **{field: getattr(config, field) for field in asks}) if told else config, damaged)
            except CheckpointError as error:
                reasons.add(error.reason.split(":")[0])
    assert reasons >= {"missing", "there twice"}


@pytest.mark.parametrize("config", [GPT2, CLASSIFIER, MISTRAL])
def test_files_are_read_and_become_float32(config, tmp_path):
    half = {name: x.astype(ml_dtypes.bfloat16) for name, x in named(config).items()}
    save_file(half, tmp_path / "model.safetensors")
    read, found = load_named(tmp_path / "model.safetensors", config)
    assert read is config
    same(found, jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), variables(config)))


def test_files_with_a_config_json_need_nothing_else(tmp_path):
    save_file(named(GPT2), tmp_path / "model.safetensors")
    sizes = {"n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 5, "vocab_size": 11, "n_inner": 6}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes}))
    config, found = load_named(tmp_path)
    assert config == GPT2
    same(found, variables(GPT2))
    said = rf"^{tmp_path}: holds Gpt2\(.*layers=2.*\), not Gpt2\(.*layers=1.*\): unexpected: transformer.h.1"
    with pytest.raises(CheckpointError, match=said):
        load_named(tmp_path, dataclasses.replace(GPT2, layers=1))
    with pytest.raises(CheckpointError, match=f"^{tmp_path}: unknown field of Gpt2 'layer': the nearest is 'layers'"):
        load_named(tmp_path, layer=2)
