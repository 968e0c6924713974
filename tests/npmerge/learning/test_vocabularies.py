"""Models with other tokens are joined first and then learned from, on text in the tokens of the result."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from npmerge.checkpoint.names import named_shapes
from npmerge.commands.planning import planned
from npmerge.models import Gpt2
from npmerge.recipe import parse_recipe
from tests.npmerge.folder.folders import words, write_model
from tests.npmerge.learning.digits import learn, merge

TOKENS = {"a": ["<unk>", "red", "blue", "green"], "b": ["<unk>", "green", "red", "grey", "pink"]}
UNION = ["<unk>", "red", "blue", "green", "grey", "pink"]
TABLE = "transformer.wte.weight"
RECIPE = """merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
tokenizer_source: union
learn: LEARN
"""
NETWORK = f"def pairs():\n    return lambda tensors, tokens: tensors['{TABLE}'][tokens] @ tensors['{TABLE}'].T\n"


def config(rows):
    return Gpt2(vocabulary=rows, width=8, layers=1, heads=2, hidden=8, length=6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, tokens in TOKENS.items():
        described = {"model_type": "gpt2", "vocab_size": len(tokens), "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 6}
        described |= {"n_inner": 8, "activation_function": "gelu_new"}
        shapes = named_shapes(config(len(tokens)))
        tensors = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items() if "lm_head" not in key}
        write_model(tmp_path / name, tensors, described, tokenizer__json=words(tokens))
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(UNION[1:], 100).tolist()))
    return tmp_path


def test_networks_have_the_joined_table_and_text_the_joined_tokens(folder):
    block = learn(data={"path": "text.txt", "length": 6}, granularity="per_parameter")
    (found,) = parse_recipe(RECIPE.replace("LEARN", json.dumps(block)))
    blocks = planned(found, {}).blocks
    assert blocks.network.config == config(6)
    tables = [np.asarray(x["params"]["tokens"]["embedding"]) for x in blocks.aligned(blocks.stored())]
    own = [dict(zip(TOKENS[name], load_file(f"{name}/model.safetensors")[TABLE], strict=True)) for name in "ab"]
    for table, mine, other in zip(tables, own, own[::-1], strict=True):
        np.testing.assert_array_equal(table, [mine.get(token, other.get(token)) for token in UNION])
    inputs = blocks.tasks(found.learn).train[0].inputs
    written = (folder / "text.txt").read_text().split()
    assert {" ".join(UNION[k] for k in row) in " ".join(written) for row in inputs} == {True}


def test_the_joined_table_is_learned(folder, monkeypatch):
    (folder / "pairs_of_mine.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(folder))
    block = learn(data={"path": "text.txt", "length": 6}, architecture="pairs_of_mine:pairs", steps=10)
    out = merge(folder, "out", RECIPE.replace("LEARN", json.dumps(block)))
    found = json.loads((out / "history.json").read_text())["held_out_loss"]
    assert min(found) < found[0]
    assert load_file(out / "model.safetensors")[TABLE].shape == (6, 8)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 6
