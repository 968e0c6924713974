"""Bad input of `npmerge merge`, and each fault of mergekit 0.1.5 that its users meet, by name: what ours does instead."""

import builtins
import io
import json
import os
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import npmerge as nm
from npmerge.checkpoint.sharded import ShardedModel, open_model
from npmerge.cli import app
from npmerge.commands import documents
from npmerge.recipe import parse_recipe
from npmerge.recipe.make_plan import make_plan, open_models
from tests.fixtures.recipe_models import (
    TOKENS,
    from_bfloat16,
    read_safetensors,
    shapes,
    tensors,
    to_bfloat16,
    write_model,
    write_models,
    write_safetensors,
)

LINEAR = """models:
- model: a
  parameters: {weight: 0.5}
- model: b
  parameters: {weight: 0.5}
merge_method: linear
"""
TIES = """models:
- {model: a, parameters: {weight: 0.5, density: 0.5}}
- {model: b, parameters: {weight: 0.5, density: 0.5}}
merge_method: ties
base_model: base
"""
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture
def here(models, monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(models)
    return tmp_path


def merge(here: Path, recipe: str, *flags: str, out: Path | None = None) -> Path:
    path, folder = here / "recipe.yml", out or here / "out"
    path.write_text(recipe)
    result = CliRunner().invoke(app, ["merge", str(path), str(folder), "--quiet", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder


def refused(here: Path, recipe: str, *parts: str, out: Path | None = None) -> None:
    """The recipe is refused with all those parts in the message, and nothing is written."""
    with pytest.raises(ValueError) as caught:
        merge(here, recipe, out=out)
    for part in parts:
        assert part in str(caught.value)
    assert not (here / "out").exists()


FAULTY = {
    "a top-level key": (
        LINEAR.replace("merge_method: linear", "merge_methd: linear"),
        ("recipe.yml:6", "merge_methd", "merge_method"),
    ),
    "a parameter": (LINEAR.replace("weight", "wieght", 1), ("recipe.yml:3", "wieght", "weight")),
    "a parameter of another method": (LINEAR + "parameters: {density: 0.5}\n", ("recipe.yml:7", "density", "linear")),
    "a method": (LINEAR.replace("linear", "lniear"), ("recipe.yml:6", "lniear", "linear")),
    "a method that is not ours": (LINEAR.replace("linear", "ram"), ("recipe.yml:6", "ram", "not implemented")),
    "a model": (LINEAR.replace("model: a", "model: basee"), ("recipe.yml:2", "basee", "base")),
    "a hub's name": (LINEAR.replace("model: a", "model: someone/a"), ("recipe.yml:2", "someone/a", "download")),
    "an adapter": (LINEAR.replace("model: a", "model: a+adapter"), ("recipe.yml:2", "adapter")),
    "no base": (TIES.replace("base_model: base\n", ""), ("recipe.yml:4", "ties", "base_model")),
    "a base that is missing": (TIES.replace("base_model: base", "base_model: bose"), ("recipe.yml:5", "bose", "base")),
    "a filter that matches nothing": (
        LINEAR + "parameters:\n  normalize:\n  - {filter: self_atn, value: false}\n  - {value: true}\n",
        ("recipe.yml:9", "self_atn"),
    ),
    "a density": (TIES.replace("density: 0.5", "density: 1.5", 1), ("recipe.yml:2", "density", "1.5", "from 0 to 1")),
    "a weight": (LINEAR.replace("weight: 0.5", "weight: .nan", 1), ("recipe.yml:3", "weight", "nan")),
    "weights that cancel": (LINEAR.replace("weight: 0.5", "weight: -0.5", 1), ("weight",)),
    "no weight": (LINEAR.replace("  parameters: {weight: 0.5}\n", "", 1), ("recipe.yml:2", "weight", "'a'")),
    "a cycle": (
        f"name: one\n{LINEAR.replace('model: a', 'model: two')}---\nname: two\n{LINEAR.replace('model: a', 'model: one')}",
        ("cycle", "recipe.yml"),
    ),
    "two documents of one name": (f"name: x\n{LINEAR}---\nname: x\n{LINEAR}", ("recipe.yml:9", "'x'")),
    "models and slices": (LINEAR + "slices:\n- sources: [{model: a, layer_range: [0, 4]}]\n", ("models", "slices")),
    "layers that are not there": (
        "slices:\n- sources: [{model: a, layer_range: [2, 6]}]\nmerge_method: passthrough\n",
        ("recipe.yml:2", "6", "4"),
    ),
    "models of different shapes": (
        LINEAR.replace("model: b", "model: wide"),
        ("model.embed_tokens.weight", "(16, 8)", "(19, 8)", "tokenizer_source"),
    ),
    "another architecture": (
        LINEAR.replace("model: b", "model: conv_b.safetensors"),
        ("recipe.yml:4", "conv_b.safetensors", "no tensor"),
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_refused_with_the_line_and_what_was_expected(case, here):
    recipe, parts = FAULTY[case]
    refused(here, recipe, *parts)


@pytest.mark.parametrize("case", ["a top-level key", "a parameter", "a method", "no base", "a density", "a cycle"])
def test_what_the_recipe_tells_is_refused_before_a_file_is_opened(case, here, monkeypatch):
    """There: an unknown method fails after the models have been loaded."""

    def guarded(opened):
        def open_(path, *args, **kwargs):
            if str(path).endswith((".safetensors", ".json")):
                pytest.fail(f"{path} was opened")
            return opened(path, *args, **kwargs)

        return open_

    for module in (os, io, builtins):
        monkeypatch.setattr(module, "open", guarded(module.open))
    recipe, parts = FAULTY[case]
    refused(here, recipe, *parts)
    with pytest.raises(pytest.fail.Exception, match="was opened"):
        merge(here, LINEAR)


def folder(here: Path, **arrays: np.ndarray) -> Path:
    write_model(here / "model", tensors(shapes(len(TOKENS)), 1) | arrays, TOKENS)
    return here / "model"


def no_weights(path: Path) -> None:
    for file in path.glob("*.safetensors*"):
        file.unlink()


def two_formats(path: Path) -> None:
    (path / "pytorch_model.bin").write_bytes(b"1234")


def missing_file(path: Path) -> None:
    (path / TWO).unlink()


def no_such_tensor(path: Path) -> None:
    index = json.loads((path / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.bias"] = TWO
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def no_index(path: Path) -> None:
    (path / "model.safetensors.index.json").write_text("{")


def truncated(path: Path) -> None:
    content = (path / TWO).read_bytes()
    (path / TWO).write_bytes(content[:-5])


def overlapping(path: Path) -> None:
    content = (path / ONE).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    names = [name for name, entry in header.items() if entry.get("shape") == [8, 8]]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header).encode().ljust(length)
    (path / ONE).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (no_weights, "model"),
        (two_formats, "pytorch_model.bin"),
        (missing_file, TWO),
        (no_such_tensor, "model.norm.bias"),
        (no_index, "model.safetensors.index.json"),
        (truncated, TWO),
        (overlapping, ONE),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_folder_that_is_damaged_is_refused_by_name(spoil, part, here):
    path = folder(here)
    spoil(path)
    refused(here, LINEAR.replace("model: b", f"model: {path}"), part)


def test_an_output_inside_an_input_is_refused(here):
    path = folder(here)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    for out in (path, path / "merged"):
        refused(here, LINEAR.replace("model: b", f"model: {path}"), str(path), out=out)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_a_path_with_a_plus_is_a_path(here, models):
    """There: a model and an adapter, or an error for two of them."""
    path = here / "a+b+c"
    shutil.copytree(models / "b", path)
    got, _ = read_safetensors(merge(here, LINEAR.replace("model: b", f"model: {path}")))
    expected, _ = read_safetensors(merge(here, LINEAR, out=here / "expected"))
    for name, x in got.items():
        np.testing.assert_array_equal(x, expected[name])


def test_the_size_of_files_is_in_bytes(here):
    """There: documented as parameters."""
    path = merge(here, LINEAR, "--out-shard-size", "4KB")
    sizes = []
    for file in sorted(path.glob("*.safetensors")):
        content = file.read_bytes()
        sizes.append(len(content) - 8 - struct.unpack("<Q", content[:8])[0])
    total = 4 * sum(int(np.prod(shape)) for shape in shapes(len(TOKENS)).values())
    assert sum(sizes) == total and max(sizes) <= 4000
    assert len(sizes) < 1.5 * total / 4000


def test_the_number_of_threads_arrives(here, monkeypatch):
    """There `--write-threads` is dropped on its way."""
    seen: list[int] = []
    real = documents.write_model

    def spied(plan, kernel_of, target, options, progress):
        seen.append(options.threads)
        return real(plan, kernel_of, target, options, progress)

    monkeypatch.setattr(documents, "write_model", spied)
    merge(here, LINEAR, "--num-threads", "3")
    assert seen == [3]


def test_gradients_reach_coefficients_of_every_shape():
    """There: numbers lose it, vectors and tensors are refused."""
    stack = nm.stack_models([{"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([3.0, -1.0])}], {"x": jnp.array([0.5, 0.5])})
    for granularity, shape in ((nm.PerModel(), (2,)), (nm.PerTensor(), (2,)), (nm.PerParameter(), (2, 2))):
        merge_ = nm.Learned(nm.TaskArithmetic(0.3), granularity, nm.Free())
        found = jax.grad(lambda theta, m=merge_: m.apply(theta, stack)["x"].sum())(merge_.init(stack))
        (leaf,) = jax.tree.leaves(found)
        assert leaf.shape == shape and jnp.all(leaf != 0)


def test_models_of_halves_are_merged_in_single_precision(here):
    """There `dtype: bfloat16` means that all of TIES is computed in it."""
    halves = (
        TIES.replace("model: a", "model: half_a")
        .replace("model: b", "model: half_b")
        .replace("model: base", "model: half_base")
    )
    halves = halves.replace("base_model: base", "base_model: half_base")
    got, dtypes = read_safetensors(merge(here, halves + "dtype: bfloat16\n"))
    wide, _ = read_safetensors(merge(here, halves + "dtype: float32\n", out=here / "wide"))
    assert set(dtypes.values()) == {"BF16"}
    for name, x in got.items():
        np.testing.assert_array_equal(x, from_bfloat16(to_bfloat16(wide[name])))


def test_what_dare_keeps_is_divided_by_the_density(here):
    """There: multiplied so that the sum of magnitudes stays, 3.988 instead of 4 at 0.25; which the flag gives."""
    write_safetensors(here / "zero.safetensors", {"x": np.zeros((8, 40), np.float32)})
    write_safetensors(here / "one.safetensors", {"x": np.arange(1, 321, dtype=np.float32).reshape(8, 40)})
    recipe = "models:\n- {model: one.safetensors, parameters: {weight: 1, density: 0.25}}\nmerge_method: dare_linear\n"
    recipe = recipe.replace("one.s", f"{here}/one.s") + f"base_model: {here}/zero.safetensors\n"
    paper = read_safetensors(merge(here, recipe))[0]["x"]
    theirs = read_safetensors(merge(here, recipe, "--mergekit-semantics", out=here / "theirs"))[0]["x"]
    x = np.arange(1, 321).reshape(8, 40)
    assert set(np.unique(paper / x)) == {0, 4} and 0.15 < np.mean(paper > 0) < 0.35
    np.testing.assert_allclose(theirs.sum(), x.sum(), rtol=1e-5)
    assert np.ptp((theirs / x)[theirs > 0]) < 1e-4


def test_lists_over_depth_end_with_the_head(here):
    """There: the final norm and the head take the first entry."""
    recipe = LINEAR.replace("weight: 0.5", "weight: [0.0, 1.0]", 1).replace("weight: 0.5", "weight: [1.0, 0.0]", 1)
    got, _ = read_safetensors(merge(here, recipe))
    theirs, _ = read_safetensors(merge(here, recipe, "--mergekit-semantics", out=here / "theirs"))
    (a, b) = (tensors(shapes(len(TOKENS)), number) for number in (1, 2))
    for name, first, last in (
        ("model.embed_tokens.weight", b, b),
        ("model.layers.0.mlp.up_proj.weight", b, b),
        ("model.layers.3.mlp.up_proj.weight", a, a),
        ("model.norm.weight", b, a),
        ("lm_head.weight", b, a),
    ):
        np.testing.assert_allclose(got[name], last[name], atol=1e-6)
        np.testing.assert_allclose(theirs[name], first[name], atol=1e-6)


def test_tensors_are_merged_in_the_order_of_the_files(here):
    """There: in the order of their names, for which a model of three files is opened 17 times."""
    (recipe,) = parse_recipe(TIES)
    plan = make_plan(recipe, open_models(recipe, open_model))
    for number, model in enumerate(plan.models):
        assert isinstance(model, ShardedModel)
        file_of = {name: file for file, header in model.files.items() for name in header.tensors}
        names = [s.name for step in plan.steps for s in step.inputs if s.model == number]
        files = [file_of[name] for name in names]
        assert len(files) == len(model.entries) and files == sorted(files)
