"""Adapters against what PEFT's merge_and_unload recorded (tests/fixtures/make_adapters.py) and a float64 oracle."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from npmerge.checkpoint import patterns
from npmerge.checkpoint.adapted import open_reference, split_reference
from npmerge.checkpoint.adapter import open_adapter
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.sharded import open_model
from npmerge.cli import app
from tests.npmerge.checkpoint.mutations import check_survives
from tests.npmerge.checkpoint.samples import ADAPTER

FIXTURES = Path(__file__).parents[2] / "fixtures" / "adapters"
CASES = ["plain", "rslora", "patterns", "embedding", "kernels", "conv1d", "bias"]


def adapted(name, base="base"):
    return open_reference(f"{FIXTURES / base}+{FIXTURES / name}")


@pytest.mark.parametrize("name", CASES)
def test_equals_peft(name):
    model, expected = adapted(name), load_file(FIXTURES / name / "merged.safetensors")
    base, changed = open_model(FIXTURES / "base"), 0
    assert set(expected) == set(model.entries)
    for key, array in expected.items():
        got = model.read(key)
        np.testing.assert_allclose(got.reshape(array.shape), array, rtol=2e-6, atol=2e-6)
        changed += not np.array_equal(got, base.read(key))
    assert changed >= 2


def test_equals_peft_in_bfloat16():
    model, expected = adapted("plain-bf16", "base-bf16"), open_model(FIXTURES / "plain-bf16" / "merged.safetensors")
    for key in expected.entries:
        got, want = model.read(key), expected.read(key)
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got.astype(np.float32), want.astype(np.float32), rtol=2**-8, atol=0)


def test_equals_an_oracle_in_float64():
    base, tensors = load_file(FIXTURES / "base" / "model.safetensors"), load_file(FIXTURES / "rslora/adapter_model.safetensors")
    model = adapted("rslora")
    for layer in range(2):
        A, B = (tensors[f"base_model.model.layers.{layer}.q.lora_{x}.weight"].astype(np.float64) for x in "AB")
        expected = base[f"layers.{layer}.q.weight"] + 6 / math.sqrt(4) * B @ A
        np.testing.assert_allclose(model.read(f"layers.{layer}.q.weight").reshape(4, 4), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_blocks_are_those_of_the_whole(name):
    model = adapted(name)
    for key, entry in model.entries.items():
        whole = model.read(key)
        for count in (1, 5):
            parts = [model.read(key, i, min(count, entry.size - i)) for i in range(0, entry.size, count)]
            np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6, atol=1e-6)
        assert model.read(key, entry.size, 0).size == 0


def test_several_adapters_one_after_the_other():
    both = open_reference(f"{FIXTURES / 'base'}+{FIXTURES / 'plain'}+{FIXTURES / 'rslora'}")
    one, other, base = adapted("plain"), adapted("rslora"), open_model(FIXTURES / "base")
    key = "layers.0.q.weight"
    np.testing.assert_allclose(both.read(key), one.read(key) + other.read(key) - base.read(key), rtol=1e-5, atol=1e-5)


def test_paths_with_a_plus(tmp_path):
    (tmp_path / "a+b").mkdir()
    (tmp_path / "c+d").mkdir()
    assert split_reference(f"{tmp_path}/a+b") == (f"{tmp_path}/a+b", ())
    assert split_reference(f"{tmp_path}/a+b+{tmp_path}/c+d") == (f"{tmp_path}/a+b", (f"{tmp_path}/c+d",))


def test_a_recipe_with_adapters(tmp_path):
    from typer.testing import CliRunner

    recipe = tmp_path / "recipe.yml"
    models = "".join(f"- model: {FIXTURES / 'base'}+{FIXTURES / name}\n  parameters: {{weight: 0.5}}\n" for name in CASES[:2])
    recipe.write_text(f"models:\n{models}merge_method: linear\n")
    result = CliRunner().invoke(app, ["merge", str(recipe), str(tmp_path / "out"), "-q"])
    assert result.exit_code == 0, result.output
    merged, record = open_model(tmp_path / "out"), json.loads((tmp_path / "out" / "npmerge.json").read_text())
    for key in merged.entries:
        mean = (adapted("plain").read(key) + adapted("rslora").read(key)) / 2
        np.testing.assert_allclose(merged.read(key), mean, rtol=1e-6, atol=1e-6)
    assert {Path(x).name for x in record["inputs"]} == {"model.safetensors", "adapter_model.safetensors", "adapter_config.json"}


def broken(tmp_path, *, config=None, tensors=None, rename=None):
    folder = shutil.copytree(FIXTURES / "plain", tmp_path / "adapter")
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    found = load_file(folder / "adapter_model.safetensors") | (tensors or {})
    save_file({(rename or str)(k): v for k, v in found.items() if v is not None}, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"config": {"peft_type": "LOHA"}}, "of the kind 'LOHA'"),
        ({"config": {"use_dora": True}}, "DoRA"),
        ({"config": {"lora_bias": True}}, "'lora_bias' asks for biases of lora_B"),
        ({"config": {"init_lora_weights": "pissa_niter_4"}}, "for a base with other weights"),
        ({"config": {"r": 0}}, "'r' is 0, expected a rank"),
        ({"config": {"r": 3}}, "expected (3, in) and (out, 3)"),
        ({"config": {"lora_alpha": "x"}}, "'lora_alpha' is 'x', expected a finite number"),
        ({"config": {"use_rslora": 1}}, "expected true or false"),
        ({"config": {"target_modules": ["up"]}}, "which target_modules does not name"),
        ({"config": {"target_modules": "layers.(q"}}, "no regular expression"),
        ({"config": {"target_modules": "(" * 6000 + ")" * 6000}}, "holds a pattern of 12000 characters"),
        ({"config": {"target_modules": "(?:x{1000}){1000}"}}, "which repeats more than 10000 times"),
        ({"config": {"target_modules": "(?R)"}}, "no regular expression"),
        ({"config": {"lora_alpha": 10**400}}, "expected a finite number"),
        ({"config": {"rank_pattern": [1]}}, "expected an object of patterns"),
        ({"tensors": {"base_model.model.layers.0.q.lora_A.weight": None}}, "expected a factor A of 'layers.0.q'"),
        (
            {"tensors": {"base_model.model.layers.0.q.lora_magnitude_vector": np.zeros(4, np.float32)}},
            "no part of a plain LoRA",
        ),
        ({"tensors": {"base_model.model.layers.0.q.lora_A.weight": np.zeros((2, 4), np.int32)}}, "has the dtype I32"),
        ({"tensors": {"base_model.model.other.bias": np.zeros(4, np.float32)}}, "base_model.model.other.bias (no other.bias)"),
        ({"rename": lambda name: name.replace("layers.1", "layers.9")}, "layers.9.up.lora_A.weight (no layers.9.up.weight)"),
    ],
)
def test_bad_adapters(tmp_path, change, says):
    folder = broken(tmp_path, **change)
    with pytest.raises(CheckpointError, match=re.escape(says)):
        open_reference(f"{FIXTURES / 'base'}+{folder}")


def test_patterns_that_would_take_for_ever_are_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    slow = "(?:.|.|.|.|.|.|.)+[xz]"
    for config in ({"target_modules": slow}, {"rank_pattern": {slow: 1}}):
        with pytest.raises(CheckpointError, match="to match '"):
            open_adapter(broken(tmp_path, config=config))
        shutil.rmtree(tmp_path / "adapter")


def test_damaged_adapters_are_read_or_refused(tmp_path):
    assert min(check_survives(ADAPTER.open, ADAPTER.make(tmp_path), tmp_path / "copies", 200)) > 5


def test_folders_that_hold_no_adapter(tmp_path):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: cannot be read: No such file"):
        open_reference(f"{FIXTURES / 'base'}+{FIXTURES / 'base'}")
    (broken(tmp_path) / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds neither"):
        open_reference(f"{FIXTURES / 'base'}+{tmp_path / 'adapter'}")


def test_prefixes_that_the_base_leaves_out(tmp_path):
    folder = broken(tmp_path, rename=lambda name: name.replace("base_model.model.", "base_model.model.model."))
    model, expected = open_reference(f"{FIXTURES / 'base'}+{folder}"), adapted("plain")
    for key in model.entries:
        np.testing.assert_array_equal(model.read(key), expected.read(key))
