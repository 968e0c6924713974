"""Recipes of mergekit run unchanged: what `npmerge merge` writes against what mergekit 0.1.5 wrote, as
tests/fixtures/record_recipes.py recorded it; the same under --mergekit-semantics, and exactly the listed differences without."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from npmerge.cli import app
from tests.fixtures.recipe_models import read_safetensors, write_models
from tests.fixtures.record_recipes import Case, read_cases

RECORDED = read_cases()
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
LOOSE = {  # in float32 both: how far rounding and the steps that are left of an iteration reach
    "karcher": 3e-5,  # theirs stops after 10 steps or 1e-5
    "halves": 2e-2,  # theirs merges in bfloat16; ours in float32, rounded once
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


def merge(case: str, models: Path, out: Path, monkeypatch, *flags: str) -> Path:
    """The folder that the command writes for the recorded recipe."""
    monkeypatch.chdir(models)
    path = out.with_suffix(".yml")
    path.write_text(RECORDED[case].recipe)
    result = CliRunner().invoke(app, ["merge", str(path), str(out), "--quiet", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def vocabulary(folder: Path) -> dict[str, int]:
    """The ids of the tokens of a folder, of its added ones too."""
    content = json.loads((folder / "tokenizer.json").read_text())
    return content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}


def by_token(x: np.ndarray, tokens: dict[str, int]) -> np.ndarray:
    """Rows in the order of their tokens' names, then the rows of none: mergekit gives new tokens ids by the order of a set."""
    known = [tokens[name] for name in sorted(tokens)]
    return x[[*known, *(i for i in range(len(x)) if i not in set(known))]]


def compare(got: dict[str, np.ndarray], expected: dict[str, np.ndarray], atol: float = 2e-6) -> set[str]:
    """Names of the tensors that differ."""
    assert sorted(got) == sorted(expected)
    assert {name: x.shape for name, x in got.items()} == {name: x.shape for name, x in expected.items()}
    return {name for name, x in got.items() if not np.allclose(x, expected[name], rtol=2e-6, atol=atol)}


def tensors_of(folder: Path, case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, str]]:
    """Ours, theirs with rows in one order, and the dtypes of ours."""
    got, dtypes = read_safetensors(folder)
    expected = dict(case.tensors)
    if tokens := case.about.get("vocabulary"):
        ours = vocabulary(folder)
        assert ours.keys() == tokens.keys()
        for name in {EMBEDDING, HEAD} & expected.keys():
            got[name], expected[name] = by_token(got[name], ours), by_token(expected[name], tokens)
    return got, expected, dtypes


@pytest.mark.parametrize("case", RECORDED)
def test_the_same(case, models, tmp_path, monkeypatch):
    recorded = RECORDED[case]
    folder = merge(case, models, tmp_path / "out", monkeypatch, "--mergekit-semantics")
    got, expected, dtypes = tensors_of(folder, recorded)
    assert compare(got, expected, LOOSE.get(case, 2e-6)) == set()
    assert dtypes == {name: dtype for name, (dtype, _) in recorded.about["tensors"].items()}
    if settings := recorded.about.get("config"):
        config = json.loads((folder / "config.json").read_text())
        assert config["num_hidden_layers"] == settings["num_hidden_layers"]
        assert config["vocab_size"] == settings["vocab_size"]
        assert config.get("dtype", config.get("torch_dtype")) == settings["dtype"]
