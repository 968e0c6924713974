"""`npmerge merge-lora` and `npmerge extract-lora`: sums and differences come back, errors are those of an SVD."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from npmerge.checkpoint.adapted import open_reference
from npmerge.checkpoint.adapter import open_adapter
from npmerge.checkpoint.factors import cut, extracted, joined
from npmerge.checkpoint.sharded import open_model
from npmerge.cli import app
from npmerge.commands.adapters import Request, extract_adapter, merge_adapters

FIXTURES = Path(__file__).parents[2] / "fixtures" / "adapters"
BASE = FIXTURES / "base"
RNG = np.random.default_rng(0)


def adapted(folder):
    return open_reference(f"{BASE}+{folder}")


@pytest.mark.parametrize("names", [("plain", "rslora"), ("patterns", "plain", "rslora"), ("kernels", "kernels")])
def test_merged_adapters_are_the_sum(tmp_path, names):
    weights = [0.5, -2.0, 0.25][: len(names)]
    merge_adapters([FIXTURES / name for name in names], weights, Request(tmp_path / "out"))
    merged, base = adapted(tmp_path / "out"), open_model(BASE)
    for key in base.entries:
        start = base.read(key).astype(np.float64)
        expected = start + sum(w * (adapted(FIXTURES / n).read(key) - start) for n, w in zip(names, weights, strict=True))
        np.testing.assert_allclose(merged.read(key), expected, rtol=1e-5, atol=1e-5)


def test_exact_ranks_add_up_and_cut_ones_are_told(tmp_path):
    paths = [str(FIXTURES / "plain"), str(FIXTURES / "patterns")]
    result = CliRunner().invoke(app, ["merge-lora", *paths, "-o", str(tmp_path / "exact")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "exact" / "npmerge.json").read_text())["errors"]["layers.1.q"] == {"rank": 5, "error": 0.0}
    result = CliRunner().invoke(app, ["merge-lora", *paths, "-o", str(tmp_path / "cut"), "--rank", "2"])
    assert result.exit_code == 0, result.output
    exact, small = open_adapter(tmp_path / "exact"), open_adapter(tmp_path / "cut")
    found = json.loads((tmp_path / "cut" / "npmerge.json").read_text())["errors"]
    for module in exact.pairs:
        whole, part = ((B @ A).astype(np.float64) for A, B in (exact.factors(module), small.factors(module)))
        s = np.linalg.svd(whole, compute_uv=False)
        error = np.linalg.norm(whole - part) / np.linalg.norm(whole)
        assert found[module]["error"] == pytest.approx(np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2)), abs=1e-5)
        assert error == pytest.approx(found[module]["error"], abs=1e-5)
        assert re.search(rf"{re.escape(module)} .*{found[module]['error']:.3g}", result.output)


def test_cutting_factors_equals_the_svd_of_their_product():
    update = joined([(RNG.standard_normal((3, 9)), RNG.standard_normal((4, 3))) for _ in range(3)], [1.0, 0.5, -1.0])
    product = update.B @ update.A
    for rank in (1, 3, 4, 8):
        U, s, V = np.linalg.svd(product)
        best = (U[:, : len(s)][:, :rank] * s[:rank]) @ V[: len(s)][:rank]
        got = cut(update, rank)
        np.testing.assert_allclose(got.B @ got.A, best, rtol=1e-5, atol=1e-5)
        assert got.A.shape[0] == min(rank, 4)


def test_max_error_takes_the_smallest_rank_that_is_enough():
    matrix = np.diag([3.0, 2.0, 1.0, 0.0])
    assert [extracted(matrix, 4, error).A.shape[0] for error in (0.0, 0.3, 0.7, 0.9)] == [3, 2, 1, 1]
    assert extracted(matrix, 2, 0.0).error == pytest.approx(1 / np.sqrt(14))
    assert np.all(extracted(np.zeros((2, 3)), 1).A == 0)


@pytest.mark.parametrize("name", ["plain", "kernels", "embedding"])
def test_an_extracted_adapter_gives_the_model_back(tmp_path, name):
    model = FIXTURES / name / "merged.safetensors"
    result = CliRunner().invoke(app, ["extract-lora", str(model), str(BASE), str(tmp_path / "out"), "--rank", "4"])
    assert result.exit_code == 0, result.output
    expected, found = load_file(model), adapted(tmp_path / "out")
    for key, array in expected.items():
        np.testing.assert_allclose(found.read(key).reshape(array.shape), array, rtol=1e-5, atol=1e-5)
    if name == "embedding":  # as PEFT names them: other names it would pass over with a warning
        assert found.adapter.pairs["embed"].embedding


def tuned_model(folder, **more):
    """The base with a weight, its bias, a bias alone, and what more is given."""
    rng = np.random.default_rng(3)
    base = load_file(BASE / "model.safetensors")
    names = ("layers.0.q.weight", "layers.0.q.bias", "layers.1.up.bias", *more)
    changed = {name: base[name] + rng.standard_normal(base[name].shape, np.float32) for name in names}
    save_file(base | changed, folder / "tuned.safetensors")
    return base | changed


def test_biases_lie_beside_the_factors(tmp_path, capsys):
    tuned = tuned_model(tmp_path)
    page = extract_adapter(str(tmp_path / "tuned.safetensors"), str(BASE), Request(tmp_path / "out", 4, quiet=True))
    assert "biases as they are (bias): layers.0.q.bias\nbiases as they are (bias): layers.1.up.bias\n" in page
    assert "modules_to_save" not in page and capsys.readouterr().err == ""
    found = adapted(tmp_path / "out")
    for name, array in tuned.items():
        np.testing.assert_allclose(found.read(name).reshape(array.shape), array, rtol=1e-5, atol=1e-5)
    names = sorted(load_file(tmp_path / "out" / "adapter_model.safetensors"))
    q, up = "base_model.model.layers.0.q", "base_model.model.layers.1.up"
    assert names == [f"{q}.base_layer.bias", f"{q}.lora_A.weight", f"{q}.lora_B.weight", f"{up}.bias"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["bias"], config["modules_to_save"]) == ("all", None)


def test_modules_whose_vectors_differ_are_stored_whole(tmp_path, capsys):
    base = load_file(BASE / "model.safetensors") | {"norm.weight": np.ones(4, np.float32), "norm.bias": np.zeros(4, np.float32)}
    save_file(base, tmp_path / "base.safetensors")
    save_file(base | {"norm.weight": base["norm.weight"] + 1}, tmp_path / "tuned.safetensors")
    paths = str(tmp_path / "tuned.safetensors"), str(tmp_path / "base.safetensors")
    page = extract_adapter(*paths, Request(tmp_path / "out", 1))
    assert capsys.readouterr().err == "stored whole, not as factors: 1 of 1 changed module\n"
    assert "stored whole (modules_to_save): norm, whose weight changed, no matrix for LoRA" in page
    assert re.search(r"the adapter takes 32 B, 2% of the 1.3. kB .*; 32 B of it are modules stored whole\nwarning: most", page)
    found = open_reference(f"{paths[1]}+{tmp_path / 'out'}")
    np.testing.assert_array_equal(found.read("norm.weight"), base["norm.weight"] + 1)


def test_merged_adapters_add_up_what_they_hold_as_it_is(tmp_path):
    tuned_model(tmp_path)
    extract_adapter(str(tmp_path / "tuned.safetensors"), str(BASE), Request(tmp_path / "first", 4))
    paths, weights = [tmp_path / "first", FIXTURES / "bias"], [0.5, 2.0]
    merge_adapters(paths, weights, Request(tmp_path / "out"))
    merged, base = adapted(tmp_path / "out"), open_model(BASE)
    for key in base.entries:
        start = base.read(key).astype(np.float64)
        expected = start + sum(w * (adapted(n).read(key) - start) for n, w in zip(paths, weights, strict=True))
        np.testing.assert_allclose(merged.read(key), expected, rtol=1e-5, atol=1e-5)
    merge_adapters([FIXTURES / "bias"] * 2, [0.5, 0.5], Request(tmp_path / "mean"))  # needs no base: 0.5 + 0.5 is 1
    np.testing.assert_allclose(adapted(tmp_path / "mean").read("layers.1.q.bias"), adapted(paths[1]).read("layers.1.q.bias"))
    with pytest.raises(ValueError, match="needs the base; base_model_name_or_path is '', no file or folder here"):
        merge_adapters([FIXTURES / "bias"], [0.5], Request(tmp_path / "half"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "hold the same values"),
        ({"head.bias": np.zeros(4, np.float32)}, "'head.bias' differs: (4,)"),
        ({"other": np.zeros(4, np.float32)}, "'other' differs: (4,)"),
        ({"head.weight": np.full((3, 6), np.nan, np.float32)}, "'head.weight' has NaN"),
    ],
)
def test_models_that_do_not_fit(tmp_path, change, says):
    save_file(load_file(BASE / "model.safetensors") | change, tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError, match=re.escape(says)):
        extract_adapter(str(tmp_path / "tuned.safetensors"), str(BASE), Request(tmp_path / "out", 1))
    assert not (tmp_path / "out").exists()


def test_bad_requests(tmp_path):
    plain = FIXTURES / "plain"
    for options, says in (({"rank": 0}, "--rank must be"), ({"max_error": 1.0}, "--max-error is a part")):
        with pytest.raises(ValueError, match=says):
            Request(tmp_path / "out", **options)
    with pytest.raises(ValueError, match="one finite --weight for each of 2 adapters"):
        merge_adapters([plain, plain], [1.0], Request(tmp_path / "out"))
    whole = shutil.copytree(FIXTURES / "embedding", tmp_path / "whole")
    tensors = load_file(whole / "adapter_model.safetensors")
    save_file(
        tensors | {"base_model.model.layers.0.up.weight": np.zeros((6, 4), np.float32)}, whole / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match=r"'layers.0.up.weight' is stored whole, and as factors in .*plain: merge models"):
        merge_adapters([plain, whole], [], Request(tmp_path / "out"))
    with pytest.raises(ValueError, match="plain is an adapter, expected a model"):
        extract_adapter(str(plain), str(BASE), Request(tmp_path / "out", 1))
    with pytest.raises(ValueError, match="is an input"):
        merge_adapters([shutil.copytree(plain, tmp_path / "in")], [], Request(tmp_path / "in", force=True))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ValueError, match="pass --force"):
        merge_adapters([plain], [], Request(tmp_path / "full"))
