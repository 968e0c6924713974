"""`npmerge report`: what it measures against NumPy and SciPy, what it leaves out and why, and that both pages say the same."""

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from scipy.stats import binomtest, norm, sem

from npmerge.checkpoint import load_network, save_network
from npmerge.checkpoint.held import HeldModel
from npmerge.commands.report_headlines import _compared, headlines, lead
from npmerge.commands.report_judged import Judged, interval, judged, rows_of
from npmerge.commands.report_networks import some
from npmerge.commands.report_projection import projected
from npmerge.learning.data import Examples
from npmerge.models import Mlp, Vgg, build
from npmerge.reports.intervals import Interval
from npmerge.reports.style import Drawn
from tests.npmerge.learning.digits import run
from tests.pages import both_pages

CONFIG = Mlp(inputs=6, hidden=(8, 5), classes=3)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
SHAPES = {"embed.weight": (7, 3), **{f"layers.{k}.{x}": (4, 3) for k in (0, 10, 2) for x in ("w.weight", "v.weight")}}


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch):
    """They have tests of their own, and take seconds."""
    monkeypatch.setattr(
        "npmerge.reports.folder.drawn", lambda figure: Drawn(b"png", f"<svg><title>{figure.name}</title></svg>")
    )


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Two networks with examples, and three checkpoints of no network, of which one is a base."""
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate("ab"):
        save_network(tmp_path / f"{name}.safetensors", CONFIG, build(CONFIG, seed=k).variables)
    labels = np.asarray(build(CONFIG).apply(build(CONFIG).variables, X)).argmax(1)
    labels[:9] = (labels[:9] + 1) % 3  # or the first would be right everywhere
    np.savez(tmp_path / "data.npz", inputs=X, labels=labels)
    for k, name in enumerate(("base", "one", "two")):
        rng = np.random.default_rng(k)
        save_file({x: rng.standard_normal(s).astype(np.float32) for x, s in SHAPES.items()}, tmp_path / f"{name}.safetensors")
    return tmp_path


def merge(out: str, method: str, models: dict[str, float], *flags: str, **keys: object) -> Path:
    given = [{"model": f"{name}.safetensors", "parameters": {"weight": weight}} for name, weight in models.items()]
    Path("recipe.yml").write_text(yaml.safe_dump({"merge_method": method, "models": given, **keys}))
    run("merge", "recipe.yml", out, "-q", *flags)
    return Path(out)


def content_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    return {x: v.astype(np.float64) for x, v in load_file(name).items()}


def test_a_merge_of_task_vectors(here):
    out = merge("out", "task_arithmetic", {"one": 0.5, "two": 0.25}, "--report", base_model="base.safetensors")
    content, (rows, words) = content_of(out), both_pages(out)
    merged, base, one, two = (
        arrays(x) for x in (out / "model.safetensors", "base.safetensors", "one.safetensors", "two.safetensors")
    )
    assert [(x["name"], x["role"]) for x in content["merge"]["models"]] == [
        ("base.safetensors", "base, reference"),
        ("one.safetensors", "model"),
        ("two.safetensors", "model"),
    ]
    assert content["contributions"]["models"] == ["one.safetensors", "two.safetensors"]
    layers = ["outside the layers", "layers.0", "layers.2", "layers.10"]
    assert list(content["contributions"]["modules"]) == layers
    np.testing.assert_allclose([*content["contributions"]["modules"].values()], [[0.5, 0.25]] * 4)
    near = content["nearness"]["rows"][1]
    assert near["models"] == ["two.safetensors"] and list(near["layers"]) == layers

    def joined(tensors: dict, layer: str) -> np.ndarray:
        inside = "embed" if layer.startswith("outside") else f"{layer}."
        return np.concatenate([v.ravel() for x, v in sorted(tensors.items()) if x.startswith(inside)])

    for layer in layers:
        m, t, b, o = (joined(x, layer) for x in (merged, two, base, one))
        assert near["layers"][layer]["distance"] == pytest.approx(np.linalg.norm(t - m) / np.linalg.norm(m))
        (pair,) = content["pairs"]["rows"]
        assert pair["layers"][layer]["sign_conflict"] == pytest.approx(np.mean((o - b) * (t - b) < 0))
        cosine = (o - b) @ (t - b) / np.linalg.norm(o - b) / np.linalg.norm(t - b)
        assert pair["layers"][layer]["task_cosine"] == pytest.approx(cosine)
        assert ["one.safetensors and two.safetensors", layer] == next(x[:2] for x in rows if layer in x and " and " in x[0])
    assert ["layers.10", "0.5000", "0.2500"] in rows
    cost = content["cost"]
    assert cost["read"] == 3 * cost["written"] == 3 * sum(4 * v.size for v in merged.values())
    assert cost["seconds"] > 0 and cost["memory"] > 10**7 and cost["predicted"]["seconds"] > 0
    assert content["evaluation"] is content["alignment"] is content["statistics"] is None
    assert content["left_out"]["evaluation"].startswith("give examples with labels, `npmerge report out --data FILE`")
    assert "alignment" not in content["left_out"]  # models of one base have their units in one order
    assert "npmerge merge out/npmerge.json out-again" in words
    assert "Accuracy and loss; Loss between the models: give examples with labels" in words
    told = run("report", "out", "--data", "data.npz")
    assert re.search(r"the models are no network that can be run here \(.*no known architecture has tensors such as", told)


def test_numbers_on_examples_are_those_of_scipy(here):
    out = merge("out", "linear", {"a": 3, "b": 1})
    run("report", "out", "--data", "data.npz", "-q")
    found = content_of(out)["evaluation"]
    with np.load("data.npz") as data:
        labels = data["labels"]
    models = [load_network(f"{x}.safetensors")[1] for x in "ab"]
    average = jax.tree.map(lambda *x: (x[0] + x[1]) / 2, *models)
    networks = {"a.safetensors": models[0], "b.safetensors": models[1], "plain average": average}
    networks["merged"] = load_network(out / "model.safetensors")[1]
    assert list(found["rows"]) == list(networks) and (found["examples"], found["held_out"]) == (60, False)
    logits = {x: np.asarray(build(CONFIG).apply(v, X), np.float64) for x, v in networks.items()}
    right = {x: (v.argmax(1) == labels).astype(float) for x, v in logits.items()}
    for name, row in found["rows"].items():
        expected = binomtest(int(right[name].sum()), 60).proportion_ci(0.95, "wilson")
        assert row["accuracy"] == pytest.approx({"value": right[name].mean(), "low": expected.low, "high": expected.high})
        losses = -log_softmax(logits[name], axis=1)[np.arange(60), labels]
        half = norm.ppf(0.975) * sem(losses)
        assert row["loss"] == pytest.approx(
            {"value": losses.mean(), "low": losses.mean() - half, "high": losses.mean() + half}, rel=1e-5
        )
        if name != "merged":
            gain = right["merged"] - right[name]
            half = norm.ppf(0.975) * sem(gain)
            assert row["gain"] == pytest.approx({"value": gain.mean(), "low": gain.mean() - half, "high": gain.mean() + half})
    rows, words = both_pages(out)
    assert "the recipe does not align; `align" in json.dumps(content_of(out)["left_out"])
    best = max("ab", key=lambda x: right[f"{x}.safetensors"].mean())
    accuracy = found["rows"]["merged"]["accuracy"]
    assert f"{100 * right[f'{best}.safetensors'].mean():.1f} → {100 * accuracy['value']:.1f} %" in words
    cells = ["merged", f"{accuracy['value']:.4f}", f"{accuracy['low']:.4f} to {accuracy['high']:.4f}"]
    assert cells in [row[:3] for row in rows]
    path = content_of(out)["paths"]["networks"][0]
    assert path["file"] == "b.safetensors" and len(path["path"]["loss"]) == 11
    assert path["path"]["loss"][-1] == pytest.approx(found["rows"]["b.safetensors"]["loss"]["value"], rel=1e-5)


def test_a_learned_merge_is_measured_on_what_it_holds_out(here, monkeypatch):
    before = 5 * 10**12  # as `npmerge plan`, asked before the merge
    monkeypatch.setattr("npmerge.commands.plan_page.peak_memory", lambda: 0 if Path("out").exists() else before)
    blocks = {
        "learn": {"data": "data.npz", "held_out": 0.5, "steps": 2, "batch_size": 8},
        "align": {"method": "weight_matching"},
    }
    out = merge("out", "linear", {"a": 1, "b": 1}, "--report", **blocks)
    content, history = content_of(out), json.loads((out / "history.json").read_text())
    assert content["cost"]["predicted"]["memory"] == before > content["cost"]["memory"]
    assert ", and what aligning takes" in both_pages(out)[1]
    rows, kept = content["evaluation"]["rows"], history["evaluation"]["networks"]
    pairs = {"a.safetensors": "a.safetensors", "b.safetensors": "b.safetensors", "plain average": "start", "merged": "learned"}
    for name, other in pairs.items():
        assert rows[name]["accuracy"]["value"] == pytest.approx(kept[other]["accuracy"])
        assert rows[name]["loss"]["value"] == pytest.approx(kept[other]["loss"], rel=1e-5)
    assert content["evaluation"]["held_out"] and "average without alignment" in rows
    assert content["contributions"]["modules"] == history["shares"]["modules"]
    (network,) = content["alignment"]["networks"]
    assert network["squared_distance"]["after"] < network["squared_distance"]["before"] and network["outputs_moved_by"] < 1e-5
    assert content["alignment"]["verify"] < 1e-5 and "paths" not in content["left_out"]
    cells, words = both_pages(out)
    change = network["matched_correlation"].values()
    before, after = (np.mean([x[when] for x in change]) for when in ("before", "after"))
    assert f"{before:.3f} -> {after:.3f}" in next(x for x in cells if x[:1] == ["b.safetensors"] and "->" in x[1])
    assert "chosen on these same examples, of 2 that were judged" in words
    assert "30 held-out examples of data.npz" in words and "with learned coefficients" in words
    assert "No data" not in words and list(content["left_out"]) == ["control"]
    assert "fine-tuned on the same data for as many steps: a recipe trains none" in words
    run("report", "out", "--data", "data.npz", "-q")  # half of which was learned from
    assert "chosen on these same examples" not in both_pages(out)[1]
    assert "30 of these examples are among those that coefficients were learned from" in both_pages(out)[1]
    (here / "data.npz").unlink()
    (out / "report.json").unlink()
    run("report", "out", "-q")
    words = both_pages(out)[1]
    assert "the models are aligned by examples that are not there" in words and "Accuracy and loss" not in words
    assert f"{kept['learned']['accuracy']:.4f}" in both_pages(out)[1]  # which history.json keeps


def test_a_network_of_the_user_with_a_base(here, monkeypatch):
    monkeypatch.syspath_prepend(str(here))
    code = "import jax.numpy as jnp\ndef net():\n    return lambda v, x: jnp.maximum(x @ v['w'], 0) @ v['u']\n"
    Path("net_of_mine.py").write_text(code)
    for name in ("base", "one", "two"):
        save_file(
            {x: RNG.standard_normal(s).astype(np.float32) for x, s in {"w": (6, 5), "u": (5, 3)}.items()}, f"{name}.safetensors"
        )
    align = {"method": "activation_matching", "data": "data.npz", "architecture": "net_of_mine:net"}
    models = {"one": 0.5, "two": 0.5}
    out = merge("out", "task_arithmetic", models, "--report", base_model="base.safetensors", align=align)
    content, (rows, words) = content_of(out), both_pages(out)
    plain = merge("plain", "linear", models)
    run("report", "plain", "--data", "data.npz", "--architecture", "net_of_mine:net", "-q")
    assert content_of(plain)["evaluation"]["rows"]["one.safetensors"] != {} and not content_of(plain)["statistics"]
    with pytest.raises(ValueError, match="--architecture is for recipes that run no network"):
        run("report", "out", "--architecture", "net_of_mine:net")
    with pytest.raises(ValueError, match=r"--architecture net_of_mine:nett: .*net"):
        run("report", "plain", "--data", "data.npz", "--architecture", "net_of_mine:nett")
    assert list(content["evaluation"]["rows"]) == [
        "base",
        "one.safetensors",
        "two.safetensors",
        "average without alignment",
        "plain average",
        "merged",
    ]
    assert [x["file"] for x in content["alignment"]["networks"]] == ["one.safetensors", "two.safetensors"]
    assert content["alignment"]["reference"] == "base" and not content["left_out"]
    gain = content["evaluation"]["rows"]["plain average"]["gain"]
    assert gain["value"] == 0  # base + 1/2 (one - base) + 1/2 (two - base)
    assert "It is exactly as accurate as their plain average, and" in words
    assert "these are the examples that the models were aligned by" in words
    assert content["pairs"]["base"] == "base.safetensors" and ["one.safetensors and two.safetensors", "w"] in [
        x[:2] for x in rows
    ]


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        ((0, -0.1, 0.1), "exactly as accurate as x"),
        ((0.05, 0.01, 0.09), "5.0 points (1.0 to 9.0) more accurate than x"),
        ((-0.05, -0.09, -0.01), "5.0 points (1.0 to 9.0) less accurate than x"),
        ((0.05, -0.01, 0.11), "5.0 points more accurate than x, which may be chance"),
        ((-0.05, -0.11, 0), "5.0 points less accurate than x, which may be chance"),
    ],
)
def test_differences_in_words(gain, said):
    assert _compared(Interval(*gain), "x") == said


def test_a_base_that_is_better_than_all_models_is_told():
    right = {"base": [1, 1, 1, 0], "one": [1, 1, 0, 0], "plain average": [1, 0, 0, 0], "merged": [1, 1, 0, 0]}
    rows = rows_of([(x, Judged(np.array(v, np.float64), np.ones(4))) for x, v in right.items()], "merged")
    found = {"rows": rows, "models": ["one"], "examples": 4, "predictions": 8, "held_out": False}
    merged = {"models": [{"name": "one"}], "method": "linear", "aligned_by": None, "learned": False}
    content = {"evaluation": found, "merge": merged}
    assert "25.0 points less accurate than base, the most accurate input" in lead(content)
    first = headlines(content, None)[0]
    assert first.value == "75.0 → 50.0 %" and "on 4 examples (8 predictions)" in first.note
    rows["one"] = rows["base"]
    assert "one, the most accurate input" in lead(content)  # of equals the base is no better


def test_examples_of_several_predictions_count_once():
    right, loss = np.array([0.5, 1.0, 0.25]), np.array([1.0, 0.5, 3.0])
    other = Judged(np.zeros(3), loss + 1)
    rows = rows_of([("other", other), ("merged", Judged(right, loss))], "merged")
    half = norm.ppf(0.975) * sem(right)
    assert rows["merged"]["accuracy"] == pytest.approx(
        {"value": right.mean(), "low": right.mean() - half, "high": right.mean() + half}
    )
    assert rows["other"]["loss_gain"] == pytest.approx({"value": -1, "low": -1, "high": -1})
    assert rows["other"]["gain"]["value"] == pytest.approx(right.mean()) and "gain" not in rows["merged"]
    assert interval({"value": 1.0, "low": None, "high": None}) == (1, -np.inf, np.inf)
    labels = np.array([[0, 1], [1, 1]])
    logits = np.array([[[9, 0], [9, 0]], [[0, 9], [0, 9]]], np.float32)
    found = judged(lambda v, x: v[x], logits, Examples("x", np.arange(2), labels), 1)
    np.testing.assert_array_equal(found.right, [0.5, 1])
    expected = -log_softmax(logits.astype(np.float64), -1)
    np.testing.assert_allclose(
        found.loss, np.take_along_axis(expected, labels[..., None], -1)[..., 0].mean(1), rtol=1e-5, atol=1e-6
    )


def test_paths_are_measured_on_a_thousand_examples_at_most():
    few, many = Examples("few", np.arange(1_000), None), Examples("many", np.arange(2_500), np.arange(2_500))
    assert some(few) is few
    found = some(many)
    assert len(set(found.inputs)) == len(found.targets) == 1_000 and (np.diff(found.inputs) > 0).all()
    assert found.inputs.max() > 2_400 and np.array_equal(found.inputs, found.targets)


def test_statistics_of_batch_norm(here):
    config = Vgg(stages=((3,),), dense=(), classes=2, side=2, channels=1, norm="batch")
    x = RNG.standard_normal((32, 2, 2, 1)).astype(np.float32)
    for k, name in enumerate("ab"):
        variables = build(config, seed=k).variables
        save_network(here / f"{name}.safetensors", config, variables, overwrite=True)
    np.savez("images.npz", inputs=x, labels=np.arange(32) % 2)
    out = merge("out", "linear", {"a": 1, "b": 1})
    told = run("report", "out")
    assert "Statistics of BatchNorm: give examples to estimate them from" in told
    run("report", "out", "--data", "images.npz", "-q")
    content = content_of(out)
    merged = load_network(out / "model.safetensors")[1]
    (layer, found), *_ = content["statistics"]["layers"].items()
    kernel = next(v for p, v in jax.tree_util.tree_leaves_with_path(merged["params"]) if "kernel" in str(p) and v.ndim == 4)
    features = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    ratio = (np.asarray(features, np.float64).var((0, 1, 2)) + 1e-5) / (1 + 1e-5)  # of statistics that were never moved
    assert found["ratio"] == pytest.approx(np.exp(np.log(ratio).mean()), rel=1e-3)
    assert "merged, statistics anew" in content["evaluation"]["rows"]
    assert [layer, f"{found['shift']:.3f}", f"{found['ratio']:.3f}"] in both_pages(out)[0]


def test_what_is_measured_stays_when_the_inputs_are_gone(here):
    out = merge("out", "linear", {"one": 1, "two": 1}, "--report")
    before = content_of(out)
    (here / "one.safetensors").unlink()
    told = run("report", "out")
    after = content_of(out)
    for part in ("nearness", "pairs", "contributions", "cost"):
        assert after[part] == before[part]
    assert set(after["earlier"]) >= {"nearness", "pairs", "contributions", "cost"}
    assert "warning: the input one.safetensors is not there" in told
    assert both_pages(out)[1].count("Measured when the report was first made") == 3
    (out / "report.json").unlink()
    told = run("report", "out")
    assert re.search(r"How near the result is to each model; How the models agree: .*one.safetensors.*; run the command", told)
    assert content_of(out)["merge"]["models"] == [{"name": "one.safetensors"}, {"name": "two.safetensors"}]
    both_pages(out)


def test_inputs_that_have_changed_are_told_and_not_measured(here):
    out = merge("out", "linear", {"one": 1, "two": 1})
    shutil.copy("base.safetensors", "two.safetensors")
    told = run("report", "out")
    assert "warning: the input two.safetensors has changed" in told
    assert content_of(out)["nearness"] is None
    assert "two.safetensors has changed; run the command in the folder where the merge ran" in told
    assert [x["state"] for x in content_of(out)["merge"]["inputs"]] == ["as recorded", "changed"]


def test_tensors_that_a_model_lacks_are_told(here):
    tensors = load_file("one.safetensors")
    save_file({**tensors, "extra": np.ones(2, np.float32)}, "one.safetensors")
    out = merge("out", "linear", {"one": 1, "two": 1}, "--report")
    assert content_of(out)["nearness"]["not_compared"] == ["extra"]
    assert "Not compared, since no tensor of each model is merged there: extra." in both_pages(out)[1]


def test_where_values_decide_coefficients_are_those_of_least_squares(here, monkeypatch):
    monkeypatch.setattr("npmerge.commands.values.BLOCK", 5)  # tensors are several blocks
    out = merge("out", "ties", {"one": 1, "two": 1}, "--report", base_model="base.safetensors", parameters={"density": 0.5})
    found = content_of(out)["contributions"]
    merged, base, one, two = (
        arrays(x) for x in (out / "model.safetensors", *(f"{n}.safetensors" for n in ("base", "one", "two")))
    )
    for layer in ("layers.0", "layers.2", "layers.10"):
        names = [x for x in merged if x.startswith(f"{layer}.")]
        m, b, a, t = (np.concatenate([x[n].ravel() for n in names]) for x in (merged, base, one, two))
        deltas = np.stack([a - b, t - b], 1)
        expected, (left,), *_ = np.linalg.lstsq(deltas, m - b)
        np.testing.assert_allclose(found["modules"][layer], expected, rtol=1e-9)
        assert found["explained"][layer] == pytest.approx(1 - left / ((m - b) ** 2).sum())
    assert "ties decides from the values" in both_pages(out)[1] and "contributions" not in content_of(out)["left_out"]


def test_coefficients_of_a_sum_are_found_again():
    rng = np.random.default_rng(0)
    one, two, base = ({"w": rng.standard_normal(20), "v": np.zeros(3)} for _ in range(3))
    models = {x: HeldModel(x, t, {}) for x, t in {"one": one, "two": two, "base": base}.items()}
    total = HeldModel("sum", {x: base[x] + 0.25 * (one[x] - base[x]) - 2 * (two[x] - base[x]) for x in base}, {})
    found = projected(total, {x: models[x] for x in ("one", "two")}, models["base"])
    np.testing.assert_allclose(found["modules"]["w"], [0.25, -2])
    assert found["explained"] == pytest.approx({"w": 1, "v": 1}) and np.isnan(found["modules"]["v"]).all()
    assert projected(models["one"], {"one": models["one"]}, None)["modules"]["w"] == pytest.approx([1])


def test_recipes_of_several_documents_say_what_is_not_kept(here):
    first = {"name": "half", "merge_method": "linear", "models": [{"model": "one.safetensors", "parameters": {"weight": 1}}]}
    last = {
        "merge_method": "linear",
        "models": [{"model": x, "parameters": {"weight": 1}} for x in ("half", "two.safetensors")],
    }
    Path("recipe.yml").write_text(yaml.safe_dump_all([first, last]))
    run("merge", "recipe.yml", "out", "--report", "-q")
    assert "the recipe has 2 documents" in content_of(Path("out"))["left_out"]["nearness"]
    both_pages(Path("out"))


def test_a_base_of_the_command_line(here):
    out = merge("out", "linear", {"one": 1, "two": 1})
    run("report", "out", "--base", "base.safetensors", "--out", "elsewhere", "-q")
    found = content_of(Path("elsewhere"))["pairs"]
    assert found["base"] == "base.safetensors" and found["rows"][0]["whole"]["sign_conflict"] > 0
    assert not (out / "report.html").exists()
    assert "npmerge report out --base base.safetensors --out elsewhere" in both_pages(Path("elsewhere"))[1]


def test_the_same_report_twice(here):
    out = merge("out", "linear", {"one": 1, "two": 1})
    files = []
    for _ in range(2):
        run("report", "out", "-q")
        files.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert files[0] == files[1]


def test_reports_of_align_and_compare_are_built_again(here):
    run("compare", "one.safetensors", "two.safetensors", "--base", "base.safetensors", "--out", "compared")
    run("align", "a.safetensors", "b.safetensors", "--data", "data.npz", "--points", "3", "--out", "aligned")
    fuse = ("--data", "data.npz", "--method")
    run("align", "a.safetensors", "b.safetensors", *fuse, "zipit", "--out", "fused")
    run("align", "a.safetensors", "b.safetensors", *fuse, "pleas", "--budget", "1.5", "--points", "2", "--out", "sized")
    for name in ("compared", "aligned", "fused", "sized"):
        folder = here / name
        pages = [(folder / x).read_bytes() for x in ("report.md", "report.html")]
        drawn = {path.name for path in folder.glob("*.png")}
        both_pages(folder)
        for path in (*folder.glob("*.png"), folder / "report.md", folder / "report.html"):
            path.unlink()
        assert run("report", name) == f"written to {name}: report.md, report.html\n"
        assert [(folder / x).read_bytes() for x in ("report.md", "report.html")] == pages
        assert {path.name for path in folder.glob("*.png")} == drawn
    with pytest.raises(ValueError, match=r"--data: the report of aligned is built from its summary.json, nothing is measured"):
        run("report", "aligned", "--data", "data.npz")
    (here / "aligned" / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"summary.json is not of npmerge align or compare, or is damaged"):
        run("report", "aligned")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "^nowhere: no such folder$"),
        (("one.safetensors",), "^one.safetensors is a file: expected the folder of a merge$"),
        (("empty",), "^empty holds neither the npmerge.json of a merge nor the summary.json of npmerge align or compare$"),
        (("out", "--data", "nothing.npz"), "^nothing.npz: no such file or folder$"),
        (("out", "--base", "nothing"), "^nothing: no such file or folder$"),
        (("networks", "--data", "bad.npz"), r"bad.npz: inputs must have the shape \(examples, 6\), got \(3, 2\)"),
    ],
)
def test_what_cannot_be_reported(here, arguments, message):
    (here / "empty").mkdir()
    np.savez("bad.npz", inputs=np.zeros((3, 2), np.float32), labels=np.zeros(3, int))
    merge(
        "networks" if arguments[0] == "networks" else "out",
        "linear",
        {"a": 1, "b": 1} if "bad.npz" in arguments else {"one": 1, "two": 1},
    )
    with pytest.raises(ValueError, match=message):
        run("report", *arguments)


def test_examples_without_labels_are_told(here):
    out = merge("out", "linear", {"a": 1, "b": 1})
    np.savez("bare.npz", inputs=X)
    assert "bare.npz has no labels of what the networks predict" in run("report", "out", "--data", "bare.npz")
    assert content_of(out)["evaluation"] is None


def test_a_report_is_not_carried_over_to_what_is_merged_from_its_folder(here):
    tensors = load_file("one.safetensors")
    for name in ("first", "second"):
        (here / name).mkdir()
        save_file(tensors, here / name / "model.safetensors")
        (here / name / "config.json").write_text('{"model_type": "none"}')
    for file in ("report.html", "report.json", "history.json", "shares.png", "notes.txt"):
        (here / "first" / file).write_text("{}")
    models = [{"model": x, "parameters": {"weight": 1}} for x in ("first", "second")]
    Path("recipe.yml").write_text(yaml.safe_dump({"merge_method": "linear", "models": models}))
    run("merge", "recipe.yml", "out", "-q")
    assert {x.name for x in Path("out").iterdir()} == {
        "config.json",
        "README.md",
        "npmerge.json",
        "model.safetensors",
        "notes.txt",
    }
