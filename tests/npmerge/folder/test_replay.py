"""A merge made again from its record alone: by the command, with vocabularies that differ."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from npmerge.cli import app
from npmerge.folder import recipe_of_record
from tests.npmerge.folder.folders import EMBEDDING, HEAD, of_words

KEPT = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "npmerge.json")


def merge(*arguments):
    result = CliRunner().invoke(app, ["merge", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def made(tmp_path):
    a = of_words(tmp_path / "a", 0, ["<unk>", "red", "blue"])
    b = of_words(tmp_path / "b", 1, ["<unk>", "blue", "grey", "red"])
    models = f"base_model: {a}\nmodels:\n- model: {a}\n- model: {b}\n"
    (tmp_path / "r.yml").write_text(f"merge_method: linear\nparameters: {{weight: 1.0}}\ntokenizer_source: union\n{models}")
    merge(tmp_path / "r.yml", tmp_path / "out", "--seed", 5)
    return tmp_path / "out"


def test_a_merge_is_made_again_from_its_record(made, tmp_path):
    rows = load_file(made / "model.safetensors")[HEAD]
    a, b = (load_file(tmp_path / name / "model.safetensors")[HEAD] for name in "ab")
    np.testing.assert_allclose(rows, [(a[0] + b[0]) / 2, (a[1] + b[3]) / 2, (a[2] + b[1]) / 2, b[2]], rtol=1e-6)
    record = json.loads((made / "npmerge.json").read_text())
    names = {name.removeprefix(f"{tmp_path}/") for name in record["inputs"]}
    assert names == {f"{model}/{file}" for model in "ab" for file in ("model.safetensors", "config.json", "tokenizer.json")}
    assert record["seed"] == 5 and record["versions"]["jax"]
    (tmp_path / "r.yml").unlink()
    merge(made / "npmerge.json", tmp_path / "again")
    for name in KEPT:
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_inputs_of_every_format_are_in_the_record(tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in "ab"]
    for k, path in enumerate(paths):
        np.savez(path, w=np.full((2, 2), k, np.float32))
    listed = "\n".join(f"- model: {path}" for path in paths)
    (tmp_path / "r.yml").write_text(f"merge_method: linear\nparameters: {{weight: 1.0}}\nmodels:\n{listed}\n")
    merge(tmp_path / "r.yml", tmp_path / "out")
    assert list(json.loads((tmp_path / "out" / "npmerge.json").read_text())["inputs"]) == list(map(str, paths))
    np.savez(paths[1], w=np.full((2, 2), 5, np.float32))
    told = merge(tmp_path / "out" / "npmerge.json", tmp_path / "again")
    assert f"not as the first time: input {paths[1]}" in told and "not as the first time: output model.safetensors" in told


def test_an_input_that_has_changed_is_told(made, tmp_path):
    path = tmp_path / "b" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    told = merge(made / "npmerge.json", tmp_path / "again")
    before, _, after = told.partition("tensors merged")
    first = f"warning: not as the first time: input {path}: "
    assert before.count(first) == after.count(first) == 1 and after.count("output model.safetensors") == 1
    planned = CliRunner().invoke(app, ["plan", str(made / "npmerge.json")]).output
    assert planned.startswith(first) and planned.count("not as the first time") == 1
    assert EMBEDDING in load_file(tmp_path / "again" / "model.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe", 5, "recipe is 5, expected a text"),
        ("options", [], r"options is \[\], expected an object"),
        ("options", {"out_shard_size": 5}, r"options\.out_shard_size is 5, expected a text"),
        ("options", {"seed": "a"}, r"options\.seed is 'a', expected an integer"),
        ("mergekit_semantics", 1, "mergekit_semantics is 1, expected true or false"),
    ],
)
def test_a_record_of_other_kinds_is_refused(tmp_path, key, value, message):
    record = {"format": 1, "recipe": "", "options": {}, "inputs": {}, "outputs": {}}
    record |= {"seed": 0, "mergekit_semantics": False, "versions": {}}
    (tmp_path / "npmerge.json").write_text(json.dumps(record | {key: value}))
    with pytest.raises(ValueError, match=rf"npmerge\.json is a damaged record: {message}"):
        recipe_of_record(tmp_path / "npmerge.json")
