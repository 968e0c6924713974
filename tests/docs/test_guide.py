"""The examples and commands of the guide run, and say what they print."""

import ast
import json
import re

import jax
import numpy as np
import optax
from flax import nnx
from safetensors.numpy import load_file, save_file

import npmerge as nm
from alignment.graph import flatten
from alignment.primitives import registry
from npmerge import METHODS
from npmerge.models import ResNetCifar, build
from tests.docs.pages import PAGES, blocks, examples, follow, run


def numbers(printed: str) -> dict[str, float]:
    """The last word of each line, by what stands before it."""
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in printed.splitlines())}


def test_the_example_runs_and_learning_does_not_hurt():
    (example,) = examples("library")
    found = numbers(run(example))
    assert list(found) == ["aligned average", "learned", "fine-tuned"]
    assert found["aligned average"] > 0.8
    assert found["learned"] > found["aligned average"] - 0.01
    assert found["fine-tuned"] > found["aligned average"] - 0.01


def test_modules_of_nnx_are_split_merged_and_get_the_merge_back(tmp_path):
    def module(seed: int) -> nnx.Module:
        rngs = nnx.Rngs(seed)
        norm, drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        return nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), norm, nnx.relu, drop, nnx.Linear(6, 3, rngs=rngs))

    models = [module(k) for k in range(2)]
    kernels = [np.asarray(model.layers[0].kernel[...]) for model in models]
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    run(examples("any-network")[0], {"models": models, "batches": [(x, None)]})
    first, norm, *_ = models[0].layers
    np.testing.assert_allclose(first.kernel[...], np.mean(kernels, axis=0), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], np.asarray(first(x)).mean(0), rtol=1e-4, atol=1e-6)
    assert models[0](x).shape == (64, 3)
    nm.checkpoint.save(tmp_path / "a.safetensors", nnx.to_pure_dict(nnx.state(models[0], nnx.Any(nnx.Param, nnx.BatchStat))))
    models[1].eval()
    nnx.update(models[1], nm.checkpoint.load(tmp_path / "a.safetensors"))
    np.testing.assert_array_equal(models[1](x), models[0](x))


def test_the_graph_of_any_network_is_read_drawn_and_verified(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, worst, each, shapes = run(examples("any-network")[1]).rsplit("\n", 4)[:4]
    assert "params/blocks/1/feed_forward/gate" in table
    assert float(worst) < 1e-5
    assert max(ast.literal_eval(each).values()) < 1e-5
    assert shapes == "(128, 64) (128, 96)"
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_a_primitive_can_be_taught(monkeypatch):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    run(examples("any-network")[2])
    assert "my_primitive" in registry.RULES


def test_networks_of_pytorch_are_merged_and_written_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = ResNetCifar(blocks=1, width=2)
    theirs = [nm.checkpoint.to_named(config, build(config, seed=k).variables) for k in range(2)]
    for name, tensors in zip("ab", theirs, strict=True):
        wrapped = {f"module.{key}": x for key, x in tensors.items()}
        save_file(wrapped, f"resnet20_{name}.th")  # what a file is stands in its first bytes
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    run(examples("any-network")[3], {"batches": [(images, None)]})
    merged = load_file("merged.safetensors")
    assert not np.array_equal(merged["bn1.running_mean"], (theirs[0]["bn1.running_mean"] + theirs[1]["bn1.running_mean"]) / 2)
    assert {name: x.shape for name, x in merged.items()} == {name: x.shape for name, x in theirs[0].items()}
    bias = "linear.bias"
    np.testing.assert_allclose(merged[bias], (theirs[0][bias] + theirs[1][bias]) / 2)


def test_a_transformer_is_given_its_full_group():
    (example,) = examples("alignments")
    groups, change = run(example).splitlines()
    assert all(group in groups for group in ("permutation", "orthogonal", "linear"))
    assert float(change) < 1e-5


def test_merges_of_fine_tunes_with_what_they_cost():
    (example,) = examples("merges")
    rows = [line.split(" ") for line in run(example).splitlines()]
    assert [name for name, *_ in rows] == ["Ties", "Fisher", "MaTS", "Emr"]
    assert min(float(accuracy) for *_, accuracy in rows) > 0.8
    assert min(float(number) for _, number, _ in rows) > 0


def test_the_table_of_merges_has_every_method():
    assert re.findall(r"^\| `(\w+)` \|", PAGES["merges"], re.M) == [method.__name__ for method in METHODS]


def test_networks_of_other_sizes():
    (example,) = examples("other-sizes")
    found = numbers(run(example))
    assert list(found) == ["one and a half", "a half", "second head", "fused"]
    assert found["one and a half"] > 0.9
    assert min(found.values()) > 0.6


def test_a_merge_is_learned_layer_group_by_layer_group():
    shares = [float(line.split(" ")[1]) for line in run(examples("accelerators")[0]).splitlines()]
    assert len(shares) == 2
    assert min(shares) < 0.8
    assert max(shares) <= 1


def test_every_process_of_a_job_reads_its_part(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda: None)  # of one process there is nothing to find
    inputs = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    given = {"nm": nm, "inputs": inputs, "labels": (inputs[:, 0] > 0).astype(np.int32), "folder": tmp_path / "fit"}
    given |= {"theta": {"w": np.zeros((3, 2), np.float32)}, "stack": None}
    given |= {"loss": nm.fine_tuning(lambda v, x: x @ v["w"], nm.CrossEntropy())}
    given["optimizer"] = optax.adam(0.1)
    run(examples("accelerators")[1], given)
    history = given["result"].history.loss
    assert len(history) == 1000
    assert history[-1] < 0.2 * history[0]


def test_checkpoints_are_saved_aligned_merged_learned_from_and_converted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = examples("align-checkpoints")
    run(example)
    follow(blocks("align-checkpoints")["align"])
    assert {path.name for path in (tmp_path / "aligned").iterdir()} >= {"a.safetensors", "b.safetensors", "barrier.png"}
    (network,) = json.loads((tmp_path / "aligned" / "summary.json").read_text())["networks"]
    assert network["barrier"]["before"] > network["barrier"]["after"] + 0.1  # of networks that have learned something
    follow_the_recipe(tmp_path)
    learn_by_the_recipe(tmp_path)


def follow_the_recipe(folder) -> None:
    """The commands on the aligned networks; the merge is a network again, between the two."""
    (folder / "recipe.yml").write_text(blocks("recipes")["recipe"])
    follow(blocks("recipes")["merge"])
    follow(blocks("formats")["convert"])
    assert (folder / "compared" / "report.md").is_file()
    assert (folder / "halved" / "model.safetensors").stat().st_size < (folder / "merged.npz").stat().st_size
    (config, merged), (same, a), (_, b) = (
        nm.checkpoint.load_network(folder / name)
        for name in ("merged/model.safetensors", "aligned/a.safetensors", "aligned/b.safetensors")
    )
    assert config == same
    expected = {"params/layers/1/kernel": nm.Slerp(0.5), "params/layers/2/kernel": nm.Slerp(0.6)}
    for path, method in expected.items():
        got, *models = (flatten(tree)[path] for tree in (merged, a, b))
        np.testing.assert_allclose(got, method(nm.stack_models([{"x": x} for x in models]))["x"], rtol=1e-5, atol=1e-6)


def learn_by_the_recipe(folder) -> None:
    """Learning from data does better than the aligned average."""
    (folder / "learned.yml").write_text(blocks("learning-by-recipe")["learned"])
    follow(blocks("learning-by-recipe")["learn"])
    rows = json.loads((folder / "learned" / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]
