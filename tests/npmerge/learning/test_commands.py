"""`npmerge evaluate`, and what `npmerge plan` says of blocks."""

import json

import numpy as np
import pytest

import npmerge as nm
from npmerge.demo.digits import load_digits
from npmerge.models import build
from tests.npmerge.learning.digits import CONFIG, learn, networks, recipe, run


def test_evaluate_measures_each_model(here):
    output = run("evaluate", "a.safetensors", "b.safetensors", "--data", "test.npz")
    found = json.loads(run("evaluate", "a.safetensors", "b.safetensors", "--data", "test.npz", "--json"))
    test = load_digits("80-20", seed=0).test
    for name, variables in zip("ab", networks(), strict=True):
        expected = nm.evaluate(build(CONFIG).apply, variables, [tuple(test)])
        row = found["models"][f"{name}.safetensors"]
        assert (row["examples"], row["accuracy"]) == (359, pytest.approx(expected.accuracy))
        assert row["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert f"{name}.safetensors  {expected.accuracy:.4f}" in output
    assert found["data"]["hash"].startswith("blake3:")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c.safetensors", "--data", "test.npz"), "c.safetensors: no such file"),
        (("a.safetensors", "--data", "tset.npz"), "tset.npz: no such file"),
        (("a.safetensors", "--data", "bare.npz"), "bare.npz has no 'labels'"),
        (("a.safetensors", "--data", "test.npz", "--batch-size", "0"), "--batch-size must be 1 or more"),
        (("a.safetensors", "--data", "test.npz", "--architecture", "Mpl"), "the nearest is 'Mlp'"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments, message, here):
    np.savez(here / "bare.npz", inputs=np.zeros((2, 64), np.float32))
    with pytest.raises(ValueError, match=message):
        run("evaluate", *arguments)


def test_a_plan_says_what_learning_takes(here):
    (here / "recipe.yml").write_text(recipe(learn=learn(), align={"method": "weight_matching"}))
    output = run("plan", "recipe.yml")
    entries = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 10 + 10
    assert "align: weight_matching" in output
    assert "learn: cross_entropy, per_parameter, simplex, 20 steps of 16" in output
    (document,) = json.loads(run("plan", "recipe.yml", "--json"))["documents"]
    found = document["learn"]
    assert found["coefficients"] == entries  # one latent for two models
    memory = found["memory"]
    assert (memory["models"], memory["theta"], memory["moments"]) == (8 * entries, 2 * 4 * entries, 8 * entries + 4)
    assert "each of 1 device holds" in output and memory["total"] > 4 * entries * (2 + 2 + 2)
    (here / "parts.yml").write_text(recipe(learn=learn(accumulate=2), align={"method": "weight_matching"}))
    (document,) = json.loads(run("plan", "parts.yml", "--json"))["documents"]
    assert document["learn"]["memory"]["gradient"] == memory["gradient"] + 4 * entries + memory["models"]  # the loop's own
    assert found["flops"] > 3 * 2 * 16 * (64 * 16 + 16 * 16 + 16 * 10) - 2 * 16 * 64 * 16
    assert found["seconds"] > 0


def test_a_plan_of_a_faulty_block_is_refused(here):
    (here / "recipe.yml").write_text(recipe(learn=learn(optimizer="adm")))
    with pytest.raises(ValueError, match=r"recipe\.yml:.*the nearest is 'adam'"):
        run("plan", "recipe.yml")


def test_a_plan_says_what_each_of_several_devices_holds(here):
    own = {"name": "distillation", "arguments": {"teacher": "own"}}
    block = learn(data=["train.npz", "train.npz"], objective=own, exclude=["layers/0"], batch_size=64)
    found = []
    for more in ({}, {"devices": 4, "shard": "features", "accumulate": 4}):
        (here / "recipe.yml").write_text(recipe(learn={**block, **more}))
        (document,) = json.loads(run("plan", "recipe.yml", "--json"))["documents"]
        found.append(document["learn"])
    one, parts = [x["memory"] for x in found]
    assert [x["devices"] for x in found] == [1, 4]
    assert found[0]["coefficients"] == 16 * 16 + 16 + 16 * 10 + 10
    assert one["batch"] == 2 * 64 * 65 * 4 == 4 * parts["batch"]
    assert one["models"] == 4 * parts["models"] and one["merged"] == parts["merged"]
    assert parts["activations"] < one["activations"] / 8
