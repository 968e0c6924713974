"""Recipes of mergekit run unchanged, against what mergekit 0.1.5 wrote (tests/fixtures/record_recipes.py).

Under --mergekit-semantics the same to float32 rounding, and without exactly the differences that npmerge/recipe/README.md and
npmerge/methods/README.md list.
"""

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from npmerge.cli import app
from tests.fixtures.recipe_models import LAYERS, TOKENS, read_safetensors, shapes, tensors, write_models
from tests.fixtures.record_recipes import Case, read_cases

RECORDED = read_cases()
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
SHAPES = shapes(len(TOKENS))
BASE, *FINE_TUNES = (tensors(SHAPES, number) for number in range(4))
EXACT = 2e-6
LOOSE = {
    "karcher": 3e-5,  # both stop after 10 steps, in float32
    "halves": 0.016,  # there in bfloat16; here in float32, rounded once
    "dtype_bfloat16": 0.016,  # there the inputs are rounded first
}

NOT_FOLLOWED = ("conv_model_stock", "tied_base")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    return root


@pytest.fixture
def here(models, monkeypatch, tmp_path) -> Path:
    monkeypatch.chdir(models)
    return tmp_path


def merge(case: str, here: Path, *flags: str) -> Path:
    """The folder that the command writes for the recorded recipe."""
    path, out = here / "recipe.yml", here / "out"
    path.write_text(RECORDED[case].recipe)
    result = CliRunner().invoke(app, ["merge", str(path), str(out), "--quiet", *flags], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return out


def vocabulary(folder: Path) -> dict[str, int]:
    """The ids of the tokens of a folder, of its added ones too."""
    content = json.loads((folder / "tokenizer.json").read_text())
    return content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}


def by_token(x: np.ndarray, tokens: dict[str, int]) -> np.ndarray:
    """Rows in the order of their tokens' names, then the rows of none: mergekit gives new tokens other ids in every run."""
    known = [tokens[name] for name in sorted(tokens)]
    return x[[*known, *sorted(set(range(len(x))) - set(known))]]


def differing(case: str, folder: Path, without: str = "") -> set[str]:
    """Names of the tensors whose values are not those that mergekit wrote; their names, shapes and dtypes are."""
    recorded: Case = RECORDED[case]
    got, dtypes = read_safetensors(folder)
    expected = dict(recorded.tensors)
    described = {name: x for name, x in recorded.about["tensors"].items() if name != without}
    assert {n: [dtypes[n], list(x.shape)] for n, x in got.items()} == described
    if tokens := recorded.about.get("vocabulary"):
        ours = vocabulary(folder)
        assert ours.keys() == tokens.keys()
        for name in {EMBEDDING, HEAD} & got.keys():
            got[name], expected[name] = by_token(got[name], ours), by_token(expected[name], tokens)
    atol = LOOSE.get(case, EXACT)
    return {name for name, x in got.items() if not np.allclose(x, expected[name], rtol=EXACT, atol=atol)}


@pytest.mark.parametrize("case", [case for case in RECORDED if case not in NOT_FOLLOWED])
def test_the_same(case, here):
    folder = merge(case, here, "--mergekit-semantics")
    assert differing(case, folder) == set()
    about = RECORDED[case].about
    if settings := about.get("config"):
        config = json.loads((folder / "config.json").read_text())
        got = {"dtype": config.get("dtype", config.get("torch_dtype")), **{n: config[n] for n in settings if n != "dtype"}}
        assert got == settings
    if about["chat_template"]:
        apart, tokenizer = folder / "chat_template.jinja", json.loads((folder / "tokenizer_config.json").read_text())
        assert about["chat_template"] == (apart.read_text() if apart.exists() else tokenizer["chat_template"])


def test_filters_of_convolutions_are_what_enters_one_channel(here):
    """There the last axis: rows of a kernel, and single numbers of those of one pixel."""
    found = differing("conv_model_stock", merge("conv_model_stock", here, "--mergekit-semantics"))
    assert found == {"stem.weight", "stages.0.conv.weight", "stages.1.conv.weight"}


def test_the_head_of_another_model_is_no_tensor_of_a_base_that_has_none(here):
    """There it is merged with the base's embedding and written, though the configuration says that it is tied."""
    folder = merge("tied_base", here, "--mergekit-semantics")
    assert RECORDED["tied_base"].about["config"]["tie_word_embeddings"]
    assert differing("tied_base", folder, without=HEAD) == set()


def obtuse(models: list[dict], *, rows: bool = False) -> set[str]:
    """Tensors of which the task vectors, or a row of each, are at angles above 90 degrees on average."""
    found = set()
    for name in SHAPES:
        taus = [np.float64(m[name]) - BASE[name] for m in models]
        taus = [t.reshape(len(t) if rows and t.ndim > 1 else 1, -1) for t in taus]
        units = [t / np.linalg.norm(t, axis=1, keepdims=True) for t in taus]
        cosines = np.mean([(a * b).sum(1) for a, b in combinations(units, 2)], 0)
        found |= {name} if (cosines < 0).any() else set()
    return found


def depth(name: str) -> float:
    """0 for the first layer and what is before, 1 for the last and what is after."""
    if name.startswith("model.layers."):
        return int(name.split(".")[2]) / (LAYERS - 1)
    return float(name != EMBEDDING)


def rounded(*densities: float | list[float], gamma: float | None = None) -> set[str]:
    """Tensors of which another number of entries is kept when it is rounded to the nearest rather than down."""

    def kept(name: str, density: float | list[float], nearest: bool) -> tuple[int, int]:
        size = math.prod(SHAPES[name])
        d = float(np.interp(depth(name), [0, 1], density)) if isinstance(density, list) else density
        count = max(1, round(d * size)) if nearest else int(d * size)
        above = (round if nearest else int)((gamma or 0) * size)
        return count, min(above, size - count)

    return {n for n in SHAPES if any(kept(n, d, True) != kept(n, d, False) for d in densities)}


LISTS = {NORM, HEAD}
DIFFERENT = {
    "list_over_depth": LISTS,
    "list_of_five": LISTS,
    "exponents_as_text": LISTS,
    "slices_of_lists": LISTS,
    "model_stock": obtuse(FINE_TUNES),
    "model_stock_two": obtuse(FINE_TUNES[:2]),
    "model_stock_rows": obtuse(FINE_TUNES, rows=True),
    "ties_weights": rounded(0.5, 0.7, 0.9),
    "ties_sum": rounded(0.45),
    "density_over_depth": rounded([0.2, 0.9]) | LISTS,
    "breadcrumbs": rounded(0.5, gamma=0.2),
    "breadcrumbs_default": rounded(0.45, gamma=0.01),
    "breadcrumbs_dense": rounded(0.9, gamma=0.2),
    "breadcrumbs_ties": rounded(0.5, 0.6, 0.7, gamma=0.1),
    "filters": set(),
    "union_of_three": set(),
    "tokens_given": set(),
    "slices_stacked": set(),
    "conv_linear": set(),
}


ELECTED = {"ties_weights", "density_over_depth", "breadcrumbs_ties"}
"""Of which an entry more or less may be outvoted, and have no effect."""


@pytest.mark.parametrize("case", DIFFERENT)
def test_what_differs_by_default(case, here):
    found, expected = differing(case, merge(case, here)), DIFFERENT[case]
    assert found <= expected and len(found) > len(expected) / 2 if case in ELECTED else found == expected
