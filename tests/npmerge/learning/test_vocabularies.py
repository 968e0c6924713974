"""Models with other tokens are joined first and then learned from, on text in the tokens of the result."""

import json

import numpy as np
import pytest

from npmerge.checkpoint.names import load_named, to_named
from npmerge.models import Gpt2, build
from tests.npmerge.folder.folders import words, write_model
from tests.npmerge.learning.digits import learn, merge, run
from tests.npmerge.learning.test_starts import close

TOKENS = {"a": ["<unk>", "red", "blue", "green"], "b": ["<unk>", "green", "red", "grey", "pink"]}
UNION = ["<unk>", "red", "blue", "green", "grey", "pink"]
RECIPE = """merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
tokenizer_source: union
learn: LEARN
"""


def config(rows):
    return Gpt2(vocabulary=rows, width=8, layers=1, heads=2, hidden=8, length=6)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, (name, tokens) in enumerate(TOKENS.items()):
        described = {"model_type": "gpt2", "vocab_size": len(tokens), "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 6}
        described |= {"n_inner": 8, "activation_function": "gelu_new"}
        tensors = to_named(config(len(tokens)), build(config(len(tokens)), seed=k).variables)
        write_model(tmp_path / name, tensors, described, tokenizer__json=words(tokens))
    rng = np.random.default_rng(0)
    (tmp_path / "text.txt").write_text(" ".join(rng.choice(UNION[1:], 400).tolist()))
    return tmp_path


def test_the_joined_table_is_learned_on_the_joined_tokens(folder):
    block = learn(data={"path": "text.txt", "length": 6}, granularity="per_parameter", steps=8)
    text = RECIPE.replace("LEARN", json.dumps(block))
    out = merge(folder, "out", text)
    found = json.loads((out / "history.json").read_text())["held_out_loss"]
    assert min(found) < found[0]
    known, variables = load_named(out)
    assert known == config(6)
    closed = merge(folder, "closed", text.replace('"steps": 8', '"steps": 0'))
    assert "coefficients to learn" in run("plan", "recipe.yml")
    plain = merge(folder, "plain", text[: text.index("learn:")])
    close(load_named(closed)[1], load_named(plain)[1])
    moved = np.abs(variables["params"]["tokens"]["embedding"] - load_named(plain)[1]["params"]["tokens"]["embedding"]).max(1)
    assert (moved > 1e-4).sum() >= 3
