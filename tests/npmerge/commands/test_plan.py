"""`npmerge plan`: what a recipe would do, in few lines, in JSON, and what it is predicted to take."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from npmerge.checkpoint.sharded import open_model
from npmerge.cli import app, main
from npmerge.commands.plan import Request, plan_json, plan_page
from npmerge.commands.plan_page import coefficients, letter
from npmerge.commands.prediction import COSTS, LIBRARIES, START, is_whole, predicted
from npmerge.recipe import METHODS, Plan, Step, make_plan, open_models, parse_recipe
from npmerge.stream.engine import Options, block_bytes, whole_bytes
from npmerge.stream.kernels import kernel_of

SHAPES = {"model.embed.weight": (6, 4), **{f"model.layers.{k}.{n}.weight": (4, 4) for k in range(6) for n in ("attn", "mlp")}}
SHAPES |= {"model.norm.weight": (4,), "lm_head.weight": (6, 4)}
MODELS = "models: [{model: m0, parameters: {weight: 1}}, {model: m1, parameters: {weight: 3}}]"


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("m0", "m1", "base")):
        rng = np.random.default_rng(k)
        tensors = {key: rng.standard_normal(shape).astype(ml_dtypes.bfloat16) for key, shape in SHAPES.items()}
        (tmp_path / name).mkdir()
        save_file({**tensors, "ids": np.arange(3)}, tmp_path / name / "model.safetensors")


def plan_of(text: str, **options: int) -> Plan:
    (recipe,) = parse_recipe(text)
    return make_plan(recipe, open_models(recipe, open_model), **options)


def page(text: str, **options: bool) -> list[str]:
    Path("recipe.yml").write_text(text, encoding="utf-8")
    return plan_page(Request(Path("recipe.yml"), **options)).splitlines()


def row(lines: list[str], name: str) -> list[str]:
    (found,) = [line for line in lines if line.startswith(f"{name} ")]
    return found.split()


def test_tensors_that_are_made_alike_share_a_line():
    lines = page(f"merge_method: linear\n{MODELS}\n")
    assert lines[0] == "the merge: linear, seed 0"
    assert lines[2].split() == ["a", "=", "m0", "16", "tensors", "512", "B", "reference"]
    layers = [line.split()[0] for line in lines if line.startswith("model.layers.")]
    assert layers == ["model.layers.{0-5}.attn.weight", "model.layers.{0-5}.mlp.weight"]
    assert row(lines, "model.layers.{0-5}.mlp.weight")[1:] == [
        *("6", "4", "x", "4", "BF16", "linear", "a,", "b"),
        *("weight=1,3", "coefficients=0.25,0.75"),
    ]
    assert row(lines, "ids")[1:7] == ["1", "3", "I64", "copy", "a", "is"]
    assert "everywhere: normalize=true" in lines
    assert any(
        line.startswith("15 tensors merged, 1 copied, 0 of the inputs left out; 1 kB read, 512 B written") for line in lines
    )


def test_every_tensor_has_its_line_if_asked():
    lines = page(f"merge_method: linear\n{MODELS}\n", verbose=True)
    assert sum(line.startswith("model.layers.") for line in lines) == 12
    assert row(lines, "model.layers.3.mlp.weight")[-3:] == ["weight=1,3", "normalize=true", "coefficients=0.25,0.75"]


def test_values_over_depth():
    lines = page("merge_method: slerp\nbase_model: m0\nmodels: [{model: m0}, {model: m1}]\nparameters: {t: [0, 1]}\n")
    assert row(lines, "model.layers.{0-5}.mlp.weight")[-5:] == ["t=0", "to", "1", "(6", "values)"]
    waves = "t: [0, 0.5, 0.3, 0.7, 0.2, 1]"
    lines = page(f"merge_method: slerp\nbase_model: m0\nmodels: [{{model: m0}}, {{model: m1}}]\nparameters: {{{waves}}}\n")
    assert row(lines, "model.layers.{0-5}.mlp.weight")[-7:] == ["t=0", "0.5", "0.3", "0.7", "0.2", "1", "(0-5)"]
    filters = "t: [{filter: mlp, value: [0, 0, 1]}, {value: 0.5}]"
    lines = page(f"merge_method: slerp\nbase_model: m0\nmodels: [{{model: m0}}, {{model: m1}}]\nparameters: {{{filters}}}\n")
    assert row(lines, "model.layers.{0-5}.attn.weight")[-1] == "t=0.5"
    assert row(lines, "model.layers.{0-5}.mlp.weight")[-8:] == ["t=0", "(0-2)", "0.2", "(3)", "0.6", "(4)", "1", "(5)"]


def test_slices_show_the_layers_that_they_come_from():
    sources = "[{sources: [{model: m0, layer_range: [0, 4]}]}, {sources: [{model: m1, layer_range: [2, 6]}]}]"
    lines = page(f"merge_method: passthrough\nslices: {sources}\n")
    assert row(lines, "model.layers.{0-3}.mlp.weight")[-2:] == ["copy", "a"]
    assert row(lines, "model.layers.{4-7}.mlp.weight")[-2:] == ["copy", "b[2-5]"]


def test_task_vectors_name_their_base():
    lines = page(f"merge_method: ties\nbase_model: base\n{MODELS}\nparameters: {{density: 0.5}}\n")
    assert row(lines, "model.norm.weight")[1:] == ["1", "4", "BF16", "ties", "b,", "c", "-", "a", "weight=1,3"]
    assert "everywhere: lambda=1 normalize=true density=0.5 rescale=false" in lines


@pytest.mark.parametrize(
    ("method", "parameters", "wanted"),
    [
        ("linear", {"weight": (1.0, 3.0), "normalize": True}, (0.25, 0.75)),
        ("linear", {"weight": (1.0, 3.0), "normalize": False}, (1, 3)),
        ("task_arithmetic", {"weight": (1.0, 3.0), "normalize": True, "lambda": 2.0}, (0.5, 1.5)),
        ("dare_linear", {"weight": (1.0, 3.0), "normalize": False, "lambda": 0.5}, (0.5, 1.5)),
        ("passthrough", {"scale": (2.0,)}, (2,)),
        ("ties", {"weight": (1.0, 3.0), "normalize": True, "lambda": 1.0}, None),
        ("slerp", {"t": 0.5}, None),
    ],
)
def test_coefficients(method, parameters, wanted):
    assert coefficients(Step("w", (2,), "F32", "merge", (), None, method, parameters)) == wanted


def test_json_holds_the_whole_plan():
    Path("recipe.yml").write_text(f"merge_method: linear\n{MODELS}\ndtype: float32\n", encoding="utf-8")
    (document,) = json.loads(plan_json(Request(Path("recipe.yml"), seed=5)))["documents"]
    plan = plan_of(Path("recipe.yml").read_text(), seed=5)
    assert list(document["tensors"]) == [step.name for step in plan.steps]
    assert document["seed"] == 5
    assert document["bytes_in"] == 2 * 2 * 244 + 24 and document["bytes_out"] == 4 * 244 + 24
    tensor = document["tensors"]["model.layers.2.mlp.weight"]
    assert tensor["parameters"] == {"weight": [1, 3], "normalize": True}
    assert tensor["coefficients"] == [0.25, 0.75]
    assert [source["model"] for source in tensor["sources"]] == [0, 1]
    assert (tensor["shape"], tensor["dtype"], tensor["bytes_in"], tensor["bytes_out"]) == ([4, 4], "F32", 64, 64)
    assert document["predicted"]["seconds"] > START


def test_documents_that_use_each_other():
    text = f"name: first\nmerge_method: linear\n{MODELS}\n---\nmerge_method: linear\n"
    lines = page(text + "models: [{model: first, parameters: {weight: 1}}, {model: m1, parameters: {weight: 1}}]\n")
    assert [line for line in lines if line.endswith("linear, seed 0")] == [
        "document 'first': linear, seed 0",
        "the merge: linear, seed 0",
    ]
    assert any(line.startswith("a = first ") for line in lines)


def test_documents_that_wait_for_tokenizers_are_named():
    text = f"name: first\nmerge_method: linear\n{MODELS}\n---\nmerge_method: linear\ntokenizer_source: union\n"
    lines = page(text + "models: [{model: first, parameters: {weight: 1}}, {model: m1, parameters: {weight: 1}}]\n")
    assert lines[0] == "document 'first': linear, seed 0"
    assert lines[-1] == "the merge: takes tokenizers of results that are not made yet: it is planned when they are"


def recipe_of(method: str, extra: str = "") -> str:
    known = METHODS[method]
    base = "" if known.base == "input" else "base_model: base\n"
    models = ", ".join(f"{{model: m{k}}}" for k in range(min(2, known.most or 2) - (known.base == "first")))
    values = {"weight": 0.3, "density": 0.5, "t": 0.4}
    given = ", ".join([f"{p.name}: {values[p.name]}" for p in known.parameters if p.name in values] + [extra] * bool(extra))
    return f"merge_method: {method}\n{base}models: [{models}]\nparameters: {{{given}}}\ninclude: [mlp]\n"


@pytest.mark.parametrize(
    ("method", "extra"),
    [*((method, "") for method in METHODS), ("nuslerp", "nuslerp_flatten: false"), ("model_stock", "filter_wise: true")],
)
def test_predictions_know_which_methods_hold_whole_tensors(method, extra):
    plan = plan_of(recipe_of(method, extra))
    merged = [step for step in plan.steps if step.action == "merge"]
    assert [is_whole(step) for step in merged] == [not kernel_of(step).in_blocks for step in merged]
    assert set(COSTS) <= {"", *METHODS}


def test_predictions():
    plan = plan_of(f"merge_method: linear\n{MODELS}")
    found = predicted(plan, Options(threads=2), probe=1.0)
    assert found.memory == LIBRARIES + 2 * block_bytes(plan)
    assert found.seconds is not None
    assert found.seconds - START == pytest.approx((2 * 488e-9 * COSTS["linear"] + 24e-9 * COSTS[""]) / 2, rel=1e-6)
    assert predicted(plan, Options(2, budget=block_bytes(plan)), probe=1.0).threads == 1
    plan = plan_of(f"merge_method: ties\nbase_model: base\n{MODELS}")
    two = 3 * 2 * (24 + 24)  # bytes of head and embedding, which lie next to each other and are under way at once
    assert predicted(plan, Options(threads=1), probe=1.0).memory == LIBRARIES + block_bytes(plan) + two
    plan = plan_of(recipe_of("della"))
    merged = [step for step in plan.steps if step.action == "merge"]
    found = predicted(plan, Options(threads=1), probe=1.0)
    assert found.memory == LIBRARIES + block_bytes(plan) + max(whole_bytes(plan, step) for step in merged)


def test_times_that_were_not_measured_are_not_told(monkeypatch):
    monkeypatch.delitem(COSTS, "linear")
    assert any("time: not measured for linear" in line for line in page(f"merge_method: linear\n{MODELS}\n"))


def test_letters():
    assert [letter(k) for k in (0, 25, 26, 53)] == ["a", "z", "a1", "b2"]


def test_the_command_and_what_it_refuses(monkeypatch, capsys):
    Path("recipe.yml").write_text(f"merge_method: linaer\n{MODELS}\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["npmerge", "plan", "recipe.yml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "linear" in capsys.readouterr().err
    Path("recipe.yml").write_text(f"merge_method: linear\n{MODELS}\n", encoding="utf-8")
    ran = CliRunner().invoke(app, ["plan", "recipe.yml", "--json", "--seed", "3"])
    assert json.loads(ran.stdout)["documents"][0]["seed"] == 3
    before = sorted(Path().rglob("*"))
    assert CliRunner().invoke(app, ["plan", "recipe.yml"]).exit_code == 0
    assert sorted(Path().rglob("*")) == before
