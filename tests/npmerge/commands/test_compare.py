"""`npmerge compare` against NumPy in float64: measures, what is left out, and what it writes."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from npmerge.cli import app, main
from npmerge.commands import values
from npmerge.commands.compare import OUTSIDE, compared, layer_of
from npmerge.commands.compare_page import grid, heatmap, told, worst
from npmerge.commands.report_weights import groups_of

BF16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = {"embed.weight": (7, 3), "layers.0.w": (5, 4), "layers.0.b": (4,), "layers.1.w": (5, 4), "layers.1.b": (4,)}


def tensors_of(seed: int, dtype: np.dtype = BF16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in SHAPES.items()}


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_file(tensors, path)
    return path


def expected(a: np.ndarray, x: np.ndarray, base: np.ndarray) -> dict[str, float]:
    a, x, base = (np.asarray(v).astype(np.float64).ravel() for v in (a, x, base))
    ours, theirs = a - base, x - base
    norm = np.linalg.norm
    both = (ours != 0) & (theirs != 0)
    return {
        "cosine": a @ x / norm(a) / norm(x),
        "norm_change": norm(x) / norm(a) - 1,
        "distance": norm(x - a) / norm(a),
        "differ": np.mean(a != x),
        "broken": 0,
        "broken_reference": 0,
        "task_cosine": ours @ theirs / norm(ours) / norm(theirs),
        "sign_conflict": np.mean((ours > 0) != (theirs > 0), where=both),
    }


def test_where_numbers_count_few_tensors_modules_stand_for_layers():
    few = ["stem.weight", "bn.weight", "bn.bias", "block/conv/kernel", "scale", "head.1.weight", "head.4.weight"]
    modules = ["stem", "bn", "bn", "block/conv", "scale", "head.1", "head.4"]
    assert list(layer_of(few).values()) == modules and list(groups_of(few)) == [*few]
    assert set(layer_of([*few[-3:], "head.4.bias"]).values()) == {OUTSIDE, "head.1", "head.4"}


@pytest.mark.parametrize("dtypes", [(BF16, BF16, BF16), (np.float32, BF16, np.float64)])
def test_measures_of_tensors_layers_and_the_whole(tmp_path, monkeypatch, dtypes):
    monkeypatch.setattr(values, "BLOCK", 6)  # so that tensors are several blocks, the last one smaller
    a, x, base = (tensors_of(k, np.dtype(dtype)) for k, dtype in enumerate(dtypes))
    x["layers.1.b"] = a["layers.1.b"].astype(dtypes[1])
    paths = [write(tmp_path / f"{k}.safetensors", t) for k, t in enumerate((a, x, base))]
    (model,) = compared(paths[:2], paths[2])["models"]
    for name in SHAPES:
        assert model["tensors"][name] == pytest.approx(expected(a[name], x[name], base[name]), rel=1e-12, abs=1e-12)
    layers = {"layers.0": ["layers.0.w", "layers.0.b"], "layers.1": ["layers.1.w", "layers.1.b"], OUTSIDE: ["embed.weight"]}
    joined = [{n: np.asarray(t[n]).astype(np.float64).ravel() for n in SHAPES} for t in (a, x, base)]
    for layer, names in layers.items():
        parts = [np.concatenate([t[name] for name in names]) for t in joined]
        assert model["layers"][layer] == pytest.approx(expected(*parts), rel=1e-12)
    parts = [np.concatenate([t[name] for name in SHAPES]) for t in joined]
    assert model["whole"] == pytest.approx(expected(*parts), rel=1e-12)


def test_a_model_and_itself(tmp_path):
    path = write(tmp_path / "a.safetensors", {"w": np.float32([0, 0]), "v": np.float32([1, np.nan])})
    (model,) = compared([path, path])["models"]
    same = {"cosine": 1, "norm_change": 0, "distance": 0, "differ": 0, "task_cosine": None, "sign_conflict": None}
    assert model["tensors"]["w"] == {**same, "broken": 0, "broken_reference": 0}
    assert model["tensors"]["v"] == {**same, "broken": 1, "broken_reference": 1}


def test_zeros_against_something(tmp_path):
    a = write(tmp_path / "a.safetensors", {"w": np.float32([0, 0]), "v": np.float32([3, 4])})
    x = write(tmp_path / "x.safetensors", {"w": np.float32([1, 2]), "v": np.float32([0, 0])})
    (model,) = compared([a, x])["models"]
    w, v = (model["tensors"][name] for name in "wv")
    assert (w["cosine"], w["distance"], w["norm_change"]) == (0, None, None)
    assert (v["cosine"], v["distance"], v["norm_change"]) == (0, 1, -1)
    json.dumps(model, allow_nan=False)


def test_values_that_are_not_finite_are_counted_and_left_out(tmp_path):
    a = np.float32([1, 2, 3, 4, np.inf])
    x = np.float32([1, np.nan, 5, -np.inf, 7])
    paths = [write(tmp_path / f"{k}.safetensors", {"w": v}) for k, v in enumerate((a, x, np.zeros(5, np.float32)))]
    (model,) = compared(paths[:2], paths[2])["models"]
    found = model["tensors"]["w"]
    kept = [0, 2]
    wanted = expected(a[kept], x[kept], np.zeros(2))
    assert {key: found[key] for key in ("cosine", "distance", "norm_change", "sign_conflict")} == pytest.approx(
        {key: wanted[key] for key in ("cosine", "distance", "norm_change", "sign_conflict")}
    )
    assert (found["broken"], found["broken_reference"], found["differ"]) == (2, 1, 4 / 5)


def test_whole_numbers_and_flags(tmp_path):
    a = write(tmp_path / "a.safetensors", {"n": np.int64([1, 2, 3]), "f": np.array([True, False])})
    x = write(tmp_path / "x.safetensors", {"n": np.int64([1, 2, 4]), "f": np.array([True, False])})
    (model,) = compared([a, x])["models"]
    assert model["tensors"]["n"]["differ"] == pytest.approx(1 / 3)
    assert model["tensors"]["f"]["distance"] == 0


def test_what_is_not_compared_is_told_by_its_reason(tmp_path):
    one = np.ones(1, np.float32)
    a = write(tmp_path / "a.safetensors", {"w": one, **{f"a{k}": one for k in range(5)}})
    x = write(tmp_path / "x.safetensors", {"w": one, "b": one})
    content = compared([a, x])
    assert told(content)[-2:] == [
        f"not compared: 5 tensors, such as a0, a1, a2: each is not in {x}",
        f"not compared: b is only in {x}",
    ]
    assert len([line for line in told(content, verbose=True) if line.startswith("not compared: ")]) == 6


def test_tensors_that_are_missing_or_have_other_shapes_are_listed(tmp_path):
    one, three = np.ones(1, np.float32), np.ones(3, np.float32)
    a = write(tmp_path / "a.safetensors", {"w": three, "v": np.ones(2, np.float32), "u": one})
    x = write(tmp_path / "x.safetensors", {"w": three, "v": np.ones(4, np.float32), "t": one})
    y = write(tmp_path / "y.safetensors", {"w": 0 * three, "u": one})
    content = compared([a, x], y)
    assert set(content["models"][0]["tensors"]) == {"w"}
    assert content["left_out"] == [
        f"u is not in {x}",
        f"t is only in {x}",
        f"v has the shape 2 in {a}, 4 in {x}",
        f"v is not in {y}",
    ]
    content = compared([a, a], y)  # what the base lacks has no task vector
    found = content["models"][0]["tensors"]
    assert found["v"]["cosine"] == pytest.approx(1)
    assert found["v"]["task_cosine"] is None and found["v"]["sign_conflict"] is None
    assert found["w"]["task_cosine"] == pytest.approx(1)


def test_several_models_each_against_the_first(tmp_path):
    paths = [write(tmp_path / f"{k}.safetensors", tensors_of(k)) for k in range(3)]
    both = compared(paths)["models"]
    assert [model["path"] for model in both] == [str(path) for path in paths[1:]]
    for k in (1, 2):
        assert both[k - 1] == compared([paths[0], paths[k]])["models"][0]


def test_the_worst_come_first():
    measures = {
        "near": {"distance": 0.1, "broken": 0},
        "from nothing": {"distance": None, "broken": 0},
        "broken": {"distance": 0.0, "broken": 2},
        "far": {"distance": 0.5, "broken": 0},
    }
    assert [name for name, _ in worst(measures, None)] == ["broken", "from nothing", "far", "near"]
    assert [name for name, _ in worst(measures, 1)] == ["broken"]


def test_the_grid_of_a_heat_map():
    measures = {"model.layers.0.w.weight": 1.0, "model.layers.1.w.weight": 2.0, "model.layers.1.b": None, "head.weight": 5.0}
    values, rows, kinds = grid({name: {"distance": value} for name, value in measures.items()}, "distance")
    assert (rows, kinds) == (["model.layers.0", "model.layers.1"], ["w", "b"])
    np.testing.assert_array_equal(values, [[1, np.nan], [2, np.nan]])
    values, rows, kinds = grid({"head": {"distance": 1.0}, "body": {"distance": 2.0}}, "distance")
    assert (rows, kinds, values.tolist()) == (["head", "body"], ["distance"], [[1], [2]])


def test_heat_maps_have_room_for_long_names(tmp_path):
    names = [f"a_very_long_name_of_a_module_in_some_network.another_long_name_{'x' * k}.weight" for k in range(3)]
    measures = {name: {"distance": 0.1, "cosine": 1.0, "sign_conflict": 0.5} for name in names}
    model = {"path": "m", "tensors": measures}
    heatmap({"base": "b", "models": [model]}).savefig(tmp_path / "h.png", dpi=20)  # warns where axes find no room


def test_the_folder_and_the_words(tmp_path):
    paths = [write(tmp_path / f"{k}.safetensors", tensors_of(k)) for k in range(3)]
    out = tmp_path / "out"
    ran = CliRunner().invoke(app, ["compare", str(paths[0]), str(paths[1]), "--base", str(paths[2]), "--out", str(out)])
    assert ran.exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["heatmap.png", "report.html", "report.md", "summary.json"]
    assert (out / "heatmap.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((out / "summary.json").read_text())
    wanted = compared(paths[:2], paths[2])
    assert {key: summary[key] for key in wanted} == wanted
    page = (out / "report.md").read_text()
    assert summary["command"] in page
    for name in SHAPES:
        assert name in page and name in ran.stdout
    again = CliRunner().invoke(app, ["compare", str(paths[0]), str(paths[1]), "--json"])
    assert json.loads(again.stdout)["models"][0]["path"] == str(paths[1])


def test_few_tensors_are_shown_unless_all_are_asked_for(tmp_path):
    many = {f"t{k}": np.full(2, k + 1, np.float32) for k in range(25)}
    paths = [write(tmp_path / f"{s}.safetensors", {n: s * v for n, v in many.items()}) for s in (1, 2)]
    content = compared(paths)
    assert sum(line.startswith("t") for line in told(content)) == 20
    assert sum(line.startswith("t") for line in told(content, verbose=True)) == 25


@pytest.mark.parametrize(
    ("others", "told"),
    [
        ([], "compare needs two models or more, got 1"),
        (["gpt2"], "gpt2: no such file or folder; a model of the hub is downloaded first: hf download gpt2 --local-dir gpt2"),
        (["other.safetensors"], "have no tensor of one name and shape, the first are 'embed.weight' (7 x 3) and 'x' (3)"),
    ],
)
def test_refused(tmp_path, monkeypatch, capsys, others, told):
    monkeypatch.chdir(tmp_path)
    write(Path("a.safetensors"), tensors_of(0))
    write(Path("other.safetensors"), {"x": np.ones(3, np.float32)})
    monkeypatch.setattr("sys.argv", ["npmerge", "compare", "a.safetensors", *others, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_models_without_entries_are_the_same(tmp_path):
    a, b = (write(tmp_path / f"{name}.safetensors", {"w": np.zeros((0, 3), np.float32)}) for name in "ab")
    result = CliRunner().invoke(app, ["compare", str(a), str(b)], catch_exceptions=False)
    assert result.exit_code == 0 and "1.00000" in result.output


def test_a_model_of_zeros_has_lost_all_of_its_norm(tmp_path):
    a, b = (write(tmp_path / f"{x}.safetensors", {"w": np.full(3, x, np.float32)}) for x in (1, 0))
    assert " -100 % " in CliRunner().invoke(app, ["compare", str(a), str(b)], catch_exceptions=False).output
