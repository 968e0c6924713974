"""`npmerge evaluate`, and what `npmerge plan` says of blocks."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import npmerge as nm
from npmerge.checkpoint import save_network, to_named
from npmerge.commands.planning import planned
from npmerge.demo.digits import load_digits
from npmerge.learning.foreseen import warned
from npmerge.learning.predictions import FORWARD
from npmerge.models import Bert, build
from npmerge.recipe import load_recipe
from tests.npmerge.learning.digits import CONFIG, learn, merge, networks, recipe, run


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
        (("a.safetensors", "--data", "tset.npz"), "^tset.npz: no such file"),
        (("a.safetensors", "--data", "bare.npz"), "^bare.npz has no 'labels': it holds inputs$"),
        (("a.safetensors", "b.safetensors", "--data", "bare.npz"), r"^bare.npz has .* it holds inputs \(for a.safetensors\)$"),
        (
            ("a.safetensors", "--data", "wide.npz"),
            r"^wide.npz: inputs must have the shape \(examples, 64\), got \(2, 3, 8, 8\); im",
        ),
        (
            ("a.safetensors", "--data", "hot.npz"),
            r"^hot.npz: labels must be one per prediction, of shape \(2,\): got \(2, 10\); one-hot labels are .* labels.argmax",
        ),
        (("a.safetensors", "--data", "test.npz", "--batch-size", "0"), "--batch-size must be 1 or more"),
        (("a.safetensors", "--data", "test.npz", "--architecture", "Mpl"), "the nearest is 'Mlp'"),
    ],
)
def test_what_cannot_be_evaluated_is_told(arguments, message, here):
    np.savez(here / "bare.npz", inputs=np.zeros((2, 64), np.float32))
    np.savez(here / "wide.npz", inputs=np.zeros((2, 3, 8, 8), np.float32))
    np.savez(here / "hot.npz", inputs=np.zeros((2, 64), np.float32), labels=np.eye(10, dtype=int)[:2])
    with pytest.raises(ValueError, match=message):
        run("evaluate", *arguments)


def test_examples_that_a_model_was_made_from_are_told(here):
    merge(here, "out", recipe(learn=learn(steps=0)))
    said = run("evaluate", "a.safetensors", "out", "--data", "train.npz").splitlines()
    assert said[-1] == "out was made from train.npz, by its npmerge.json: take other examples for a test"
    assert "made from" not in run("evaluate", "a.safetensors", "out", "--data", "test.npz")


def test_tensors_that_the_network_does_not_read_are_not_learned_and_that_is_said(here):
    config = Bert(vocabulary=32, width=8, layers=1, heads=2, hidden=8, length=4)
    for name in "ab":
        tensors = to_named(config, build(config).variables)
        pooler = {"pooler.dense.weight": np.eye(8, dtype=np.float32), "pooler.dense.bias": np.zeros(8, np.float32)}
        save_file(tensors | pooler, here / f"{name}.safetensors")
    np.savez(here / "tokens.npz", inputs=np.ones((5, 4), np.int32))
    architecture = {"name": "Bert", "arguments": {"heads": 2}}
    block = learn(
        data="tokens.npz", objective="proximity", granularity="per_tensor", held_out=0, batch_size=5, architecture=architecture
    )
    (here / "recipe.yml").write_text(recipe(learn=block))
    blocks = planned(load_recipe("recipe.yml")[0], {}).blocks
    told = "not learned: the network does not read pooler.dense.bias, pooler.dense.weight; merged as without learn"
    assert warned(blocks, blocks.recipe.learn, blocks.tasks(blocks.recipe.learn)) == (told,)


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
    assert found["warnings"] == [] and found["compiling"] > 0
    assert "predicted for writing: at most about" in output and output.splitlines()[-1].startswith("predicted in all: about")
    assert "judged in" in output and output.splitlines()[-1].endswith(" s, and what aligning takes")
    assert found["flops"] > 3 * 2 * 16 * (64 * 16 + 16 * 16 + 16 * 10) - 2 * 16 * 64 * 16
    assert found["seconds"] > 0


def test_a_plan_counts_what_is_judged(here, monkeypatch):
    monkeypatch.setattr("npmerge.learning.predictions._timed", lambda *_: 1e6)  # compiling counts for nothing beside it
    (here / "recipe.yml").write_text(recipe(learn=learn()))
    (document,) = json.loads(run("plan", "recipe.yml", "--json"))["documents"]
    with np.load("train.npz") as file:
        held_out = round(0.25 * len(file["inputs"]))
    passes = (5 + 4) * held_out / 16  # at 0, 5, ..., 20 steps; two models, start, result
    assert document["learn"]["judging"] == pytest.approx(FORWARD * 1e6 * passes, rel=0.01)


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


def test_a_plan_warns_of_batches_that_are_larger_than_memory_or_the_examples(here, monkeypatch):
    monkeypatch.setattr("npmerge.learning.foreseen.machine_bytes", lambda: 1_000)
    np.savez(here / "few.npz", inputs=np.zeros((5, 64), np.float32), labels=np.zeros(5, int))
    (here / "recipe.yml").write_text(recipe(learn=learn(data="few.npz", held_out=0, granularity="per_model", steps=1)))
    for command in (("plan", "recipe.yml"), ("merge", "recipe.yml", "out")):
        said, _, after = run(*command).partition("learning: ")
        assert said.count("warning: a batch of 16 is more than the 5 examples of few.npz, and takes each 3 or 4 times") == 1
        assert re.search(r"warning: a step takes .* and there are 1 kB here: give a smaller batch_size", said)
        assert "warning: a batch" not in after
    assert "Warning: a batch of 16 is more" in (here / "out" / "report.md").read_text()


@pytest.mark.parametrize("command", [("plan", "recipe.yml"), ("merge", "recipe.yml", "out", "-q")])
def test_labels_that_the_network_does_not_predict_are_told_with_what_it_gives(command, here):
    np.savez(here / "rows.npz", inputs=np.zeros((5, 64), np.float32), labels=np.zeros((5, 3), int))
    (here / "recipe.yml").write_text(recipe(learn=learn(data="rows.npz", held_out=0)))
    told = r"recipe.yml:\d+: learn.objective: labels must be one per prediction, .* got \(5, 3\); a.safetensors gives"
    with pytest.raises(ValueError, match=told + r" \(5, 10\) for rows.npz"):
        run(*command)


@pytest.mark.parametrize("objective", ["cross_entropy", "distillation"])
def test_features_are_no_scores(objective, here):
    config = Bert(vocabulary=32, width=8, layers=1, heads=1, hidden=8, length=4)
    for name in "ab":
        (here / f"{name}.safetensors").unlink()
        save_network(here / f"{name}.safetensors", config, build(config).variables)
    np.savez(here / "tokens.npz", inputs=np.ones((5, 4), np.int32), labels=np.zeros(5, int))
    (here / "recipe.yml").write_text(recipe(learn=learn(data="tokens.npz", held_out=0, objective=objective)))
    told = rf"learn.objective: {objective} judges scores, and a.safetensors gives features \(5, 4, 8\) of no classes"
    with pytest.raises(ValueError, match=told + r" or tokens, labels are \(5,\): give an architecture with a head"):
        run("plan", "recipe.yml")
    with pytest.raises(ValueError, match=r"a.safetensors: gives features \(5, 4, 8\) of no classes or tokens"):
        run("evaluate", "a.safetensors", "--data", "tokens.npz")


def test_memory_that_does_not_suffice_is_told_in_a_line(here, monkeypatch):
    def fit(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 29745735105 bytes.")

    monkeypatch.setattr("npmerge.learning.learner.fit", fit)
    (here / "recipe.yml").write_text(recipe(learn=learn()))
    with pytest.raises(ValueError, match=r"recipe.yml:\d+: learn.batch_size: .*29745735105 bytes.; give a smaller batch_size"):
        run("merge", "recipe.yml", "out", "-q")
