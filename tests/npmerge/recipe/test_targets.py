"""Slices and modules: which tensors a plan has, and from which layers."""

from npmerge.recipe import Source
from tests.npmerge.recipe.headers import Headers, language_model, planned, refusal, steps


def test_layers_are_stacked_and_numbered_anew():
    text = """
merge_method: passthrough
slices:
- sources: [{model: a, layer_range: [0, 2]}]
- sources: [{model: b, layer_range: [1, 3]}]
"""
    plan = planned(text)
    made = [(step.name, step.sources[0]) for step in plan.steps if "mlp" in step.name]
    origins = [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert made == [
        (f"model.layers.{i}.mlp.weight", Source(model, f"model.layers.{k}.mlp.weight")) for i, (model, k) in enumerate(origins)
    ]
    assert steps(plan)["model.embed_tokens.weight"].sources == (Source(0, "model.embed_tokens.weight"),)
    assert steps(plan)["lm_head.weight"].sources == (Source(1, "lm_head.weight"),)
    assert {step.action for step in plan.steps} == {"copy"}
    assert {(skipped.model, skipped.name) for skipped in plan.skipped} > {
        (0, "model.layers.2.mlp.weight"),
        (0, "lm_head.weight"),
    }


def test_slices_merge_layers_of_different_numbers_and_filters_see_the_inputs_names():
    text = """
merge_method: linear
slices:
- sources:
  - {model: a, layer_range: [1, 3], parameters: {weight: [{filter: layers.2., value: 5}, {value: 1}]}}
  - {model: b, layer_range: [0, 2], parameters: {weight: 1}}
"""
    step = steps(planned(text))["model.layers.1.mlp.weight"]
    assert step.sources == (Source(0, "model.layers.2.mlp.weight"), Source(1, "model.layers.1.mlp.weight"))
    assert step.parameters["weight"] == (5.0, 1.0)


def test_lists_run_over_the_layers_of_their_slice():
    text = """
merge_method: slerp
base_model: a
slices:
- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
  parameters: {t: [0, 1]}
- sources: [{model: a, layer_range: [2, 3]}, {model: b, layer_range: [2, 3]}]
parameters: {t: [0.25, 0.75]}
"""
    at = {name: step.parameters["t"] for name, step in steps(planned(text)).items()}
    assert [at[f"model.layers.{i}.norm.weight"] for i in range(3)] == [0.0, 1.0, 0.75]
    assert (at["model.embed_tokens.weight"], at["lm_head.weight"]) == (0.0, 0.75)


def test_layers_that_a_model_does_not_have_are_refused():
    text = "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [2, 5]}\n"
    assert "recipe.yml:4: slices[0].sources[0].layer_range: 'a' has 3 layers model.layers.*, got [2, 5]" in refusal(text)


def test_two_stacks_of_layers_need_modules():
    names = {f"{side}.layers.{i}.weight": (2, 2) for side in ("encoder", "decoder") for i in range(2)}
    models = {"a": Headers("a", names)}
    slices = "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\n"
    assert "slices need one stack of layers, got encoder.layers.*, decoder.layers.*" in refusal(
        "merge_method: passthrough\n" + slices, models
    )
    text = f"merge_method: passthrough\nmodules: {{encoder: {{{slices.strip()}}}, decoder: {{models: [{{model: a}}]}}}}\n"
    plan = planned(text, models)
    assert [step.name for step in plan.steps] == [
        "encoder.layers.0.weight",
        "decoder.layers.0.weight",
        "decoder.layers.1.weight",
    ]


def test_a_module_is_a_part_of_names_and_what_is_of_none_is_copied():
    modules = "modules: {layers: {models: [{model: a}, {model: b}]}}\n"
    found = steps(planned("merge_method: linear\nparameters: {weight: 1}\n" + modules))
    assert list(found) == list(language_model())
    assert found["model.layers.0.mlp.weight"].action == "merge"
    assert (found["lm_head.weight"].action, found["lm_head.weight"].note) == ("copy", "is of no module of the recipe")
    text = "merge_method: linear\nparameters: {weight: 1}\n" + modules.replace("layers", "modle")
    assert "modules.modle: unknown module 'modle': the nearest is 'model'" in refusal(text)
