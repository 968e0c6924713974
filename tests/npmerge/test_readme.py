"""The README's example runs, and says what it prints."""

import ast
import contextlib
import io
import json
import re
import shlex
import textwrap
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import npmerge as nm
from alignment.graph import flatten
from alignment.primitives import registry
from npmerge import METHODS
from npmerge.cli import app
from npmerge.models import ResNetCifar, build

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


EXAMPLES = [textwrap.dedent(block) for block in re.findall(r" *```python\n(.*?)```", README, re.S)]


def run(example: str, **given: object) -> str:
    """What an example prints, with the names that it takes for given."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "README.md", "exec"), given)
    return printed.getvalue()


def test_the_example_runs_and_learning_does_not_hurt():
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in run(EXAMPLES[0]).splitlines())}
    assert list(found) == ["aligned average", "learned", "fine-tuned"]
    assert found["aligned average"] > 0.8
    assert found["learned"] > found["aligned average"] - 0.01
    assert found["fine-tuned"] > found["aligned average"] - 0.01


def test_the_graph_of_any_network_is_read_drawn_and_verified(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, worst, each, shapes = run(next(e for e in EXAMPLES if "Llama(" in e)).rsplit("\n", 4)[:4]
    assert "params/blocks/1/feed_forward/gate" in table
    assert float(worst) < 1e-5
    assert max(ast.literal_eval(each).values()) < 1e-5
    assert shapes == "(128, 64) (128, 96)"
    assert (tmp_path / "graph.png").stat().st_size > 10_000


def test_modules_of_nnx_are_split_merged_and_get_the_merge_back():
    def module(seed: int) -> nnx.Module:
        rngs = nnx.Rngs(seed)
        norm, drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        return nnx.Sequential(nnx.Linear(4, 6, rngs=rngs), norm, nnx.relu, drop, nnx.Linear(6, 3, rngs=rngs))

    models = [module(k) for k in range(2)]
    kernels = [np.asarray(model.layers[0].kernel[...]) for model in models]
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    (example,) = [e for e in EXAMPLES if "nnx.split" in e]
    run(example, models=models, batches=[(x, None)])
    first, norm, *_ = models[0].layers
    np.testing.assert_allclose(first.kernel[...], np.mean(kernels, axis=0), rtol=1e-6)
    np.testing.assert_allclose(norm.mean[...], np.asarray(first(x)).mean(0), rtol=1e-4, atol=1e-6)
    assert models[0](x).shape == (64, 3)


def test_networks_of_pytorch_are_merged_and_written_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = [e for e in EXAMPLES if "load_named" in e]
    config = ResNetCifar(blocks=1, width=2)
    theirs = [nm.checkpoint.to_named(config, build(config, seed=k).variables) for k in range(2)]
    for name, tensors in zip("ab", theirs, strict=True):
        wrapped = {f"module.{key}": x for key, x in tensors.items()}
        save_file(wrapped, f"resnet20_{name}.th")  # what a file is stands in its first bytes
    run(example, batches=[(np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32), None)])
    merged = load_file("merged.safetensors")
    assert not np.array_equal(merged["bn1.running_mean"], (theirs[0]["bn1.running_mean"] + theirs[1]["bn1.running_mean"]) / 2)
    assert {name: x.shape for name, x in merged.items()} == {name: x.shape for name, x in theirs[0].items()}
    bias = "linear.bias"
    np.testing.assert_allclose(merged[bias], (theirs[0][bias] + theirs[1][bias]) / 2)


def test_a_primitive_can_be_taught(monkeypatch):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))
    (example,) = [e for e in EXAMPLES if "my_primitive" in e]
    run(example)
    assert "my_primitive" in registry.RULES


def test_merges_of_fine_tunes_with_what_they_cost():
    (example,) = [e for e in EXAMPLES if "nm.cost.merged" in e]
    rows = [line.split(" ") for line in run(example).splitlines()]
    assert [name for name, *_ in rows] == ["Ties", "Fisher", "MaTS", "Emr"]
    assert min(float(accuracy) for *_, accuracy in rows) > 0.8
    assert min(float(number) for _, number, _ in rows) > 0


def test_networks_of_other_sizes():
    (example,) = [e for e in EXAMPLES if "Pleas" in e]
    found = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in run(example).splitlines())}
    assert list(found) == ["one and a half", "a half", "second head", "fused"]
    assert found["one and a half"] > 0.9
    assert min(found.values()) > 0.6


def test_a_merge_is_learned_layer_group_by_layer_group():
    (example,) = [e for e in EXAMPLES if "fit_layerwise" in e]
    shares = [float(line.split(" ")[1]) for line in run(example).splitlines()]
    assert len(shares) == 2
    assert min(shares) < 0.8
    assert max(shares) <= 1


def test_checkpoints_are_saved_and_the_command_aligns_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = [e for e in EXAMPLES if "save_network" in e]
    run(example)
    block = re.search(r"<!-- align -->\n```sh\n(.*?)\n```", README, re.S)
    assert block is not None
    result = CliRunner().invoke(app, shlex.split(block[1])[1:], catch_exceptions=False)
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "aligned").iterdir()} >= {"a.safetensors", "b.safetensors", "barrier.png"}
    (network,) = json.loads((tmp_path / "aligned" / "summary.json").read_text())["networks"]
    assert network["barrier"]["before"] > network["barrier"]["after"] + 0.1  # of networks that have learned something
    follow_the_recipe(tmp_path)
    learn_by_the_recipe(tmp_path)


def follow_the_recipe(folder: Path) -> None:
    """The commands on the aligned networks; the merge is a network again, between the two."""
    recipe, commands, converting = (
        re.search(rf"<!-- {name} -->\n```\w+\n(.*?)\n```", README, re.S)[1] for name in ("recipe", "merge", "convert")
    )
    (folder / "recipe.yml").write_text(recipe)
    for command in [*commands.splitlines(), *converting.splitlines()]:
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, command
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


def learn_by_the_recipe(folder: Path) -> None:
    """Learning from data does better than the aligned average."""
    recipe, commands = (re.search(rf"<!-- {name} -->\n```\w+\n(.*?)\n```", README, re.S)[1] for name in ("learned", "learn"))
    (folder / "learned.yml").write_text(recipe)
    for command in commands.splitlines():
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0, command
    rows = json.loads((folder / "learned" / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]


def test_the_commands_are_the_ones_that_ci_runs():
    block = re.search(r"<!-- commands -->(.*?)<!-- end -->", README, re.S)
    assert block is not None
    assert [line for line in block[1].splitlines() if "&&" in line] == [
        "pip install -e . && npmerge demo",
        'pip install -e ".[test]" && pytest',
    ]


def test_its_contents_are_all_sections_in_their_order():
    sections = re.findall(r"^## (.*)$", README, re.M)
    links = re.findall(r"\[([\w ]+)\]\(#([\w-]+)\)", README.split("\n## ")[0])
    assert links == [(name, name.lower().replace(" ", "-")) for name in sections]


def test_every_folder_and_file_it_names_exists():
    root = Path(__file__).parents[2]
    for name in re.findall(r"`([a-z_]+/(?:[a-z_/]+(?:\.py)?)?)`", README):
        assert (root / name).exists(), name


def test_the_table_of_merges_has_every_method():
    section = re.search(r"## Merges\n(.*?)\n## ", README, re.S)[1]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == [method.__name__ for method in METHODS]
