"""Plans from recipes and headers: which tensors, which sources, which numbers."""

import re
from pathlib import Path

import numpy as np
import pytest

from npmerge.recipe import PlannedModel, Source, make_plan, open_models, parse_recipe
from npmerge.recipe.plan import Rows
from tests.npmerge.recipe.headers import Headers, language_model, planned, refusal, steps

TIES = "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5, density: 0.2}\n"
LINEAR = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"


def test_a_task_vector_method_has_the_base_beside_its_sources():
    plan = planned(TIES)
    assert [str(model.path) for model in plan.models] == ["base", "a", "b"]
    assert [step.name for step in plan.steps] == list(language_model())
    for step in plan.steps:
        assert (step.action, step.method, step.base) == ("merge", "ties", Source(0, step.name))
        assert step.sources == (Source(1, step.name), Source(2, step.name))
        assert step.parameters["weight"] == (0.5, 0.5) and step.parameters["density"] == (0.2, 0.2)
        assert step.parameters["normalize"] is True and step.parameters["lambda"] == 1.0


def test_between_two_models_the_base_is_the_first_source():
    text = "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.3}\n"
    plan = planned(text)
    assert [str(model.path) for model in plan.models] == ["b", "a"]
    assert plan.steps[0].sources == (Source(0, "lm_head.weight"), Source(1, "lm_head.weight"))
    assert plan.steps[0].base is None


def test_a_base_that_is_no_origin_is_an_input_as_in_mergekit():
    plan = planned(LINEAR + "base_model: base\n")
    assert [source.model for source in plan.steps[0].sources] == [1, 2, 0]
    assert plan.steps[0].parameters["weight"] == (0.5, 0.5, 0.5)


def test_an_origin_may_be_left_out_where_the_method_does_without():
    text = "merge_method: nuslerp\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
    assert planned(text).steps[0].base is None
    assert planned(text + "base_model: base\n").steps[0].base == Source(0, "lm_head.weight")


def test_parameters_of_the_base_are_said_to_have_no_effect():
    text = TIES.replace("{model: a}", "{model: a}, {model: base, parameters: {weight: 0.9}}")
    plan = planned(text)
    assert len(plan.steps[0].sources) == 2
    assert plan.warnings == ("the parameters of base have no effect: it is the base",)


def test_the_most_specific_block_that_has_a_value_wins():
    text = """
merge_method: linear
modules:
  default:
    slices:
    - sources:
      - {model: a, layer_range: [0, 3], parameters: {weight: [{filter: norm, value: 1}]}}
      - {model: b, layer_range: [0, 3]}
      parameters: {weight: [{filter: mlp, value: 2}]}
    parameters: {weight: [{filter: lm_head, value: 3}]}
parameters: {weight: 4}
"""
    found = {name: step.parameters["weight"] for name, step in steps(planned(text)).items()}
    assert found["model.layers.1.norm.weight"] == (1.0, 4.0)
    assert found["model.layers.1.mlp.weight"] == (2.0, 2.0)
    assert found["lm_head.weight"] == (3.0, 3.0)
    assert found["model.embed_tokens.weight"] == (4.0, 4.0)


def test_lists_run_over_depth_with_embeddings_at_its_start_and_the_head_at_its_end():
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0.2, 0.6]}\n"
    at = {name: step.parameters["t"] for name, step in steps(planned(text)).items()}
    layers = [at[f"model.layers.{i}.mlp.weight"] for i in range(3)]
    np.testing.assert_allclose(layers, [0.2, 0.4, 0.6], rtol=1e-15)
    assert (at["model.embed_tokens.weight"], at["model.norm.weight"], at["lm_head.weight"]) == (0.2, 0.6, 0.6)
    theirs = {name: step.parameters["t"] for name, step in steps(planned(text, mergekit_semantics=True)).items()}
    assert (theirs["model.embed_tokens.weight"], theirs["model.norm.weight"], theirs["lm_head.weight"]) == (0.2, 0.2, 0.2)
    assert theirs["model.layers.2.mlp.weight"] == 0.6


def test_a_list_needs_layers():
    flat = {name: Headers(name, {"weight": (2, 2)}) for name in ("a", "b")}
    assert "recipe.yml:3: parameters.weight: is a list over depth" in refusal(LINEAR.replace("0.5", "[0, 1]"), flat)


@pytest.mark.parametrize("filter_", ["attention", "re:^mlp"])
def test_a_filter_that_matches_nothing_is_refused(filter_):
    text = LINEAR.replace("0.5}", f"[{{filter: '{filter_}', value: 1}}, {{value: 2}}]}}")
    assert f"parameters.weight[0].filter: '{filter_}' matches no tensor that is merged, such as " in refusal(text)


def test_a_filter_that_is_covered_by_another_has_matched():
    text = LINEAR.replace("0.5}", "[{filter: mlp, value: 1}, {filter: layers.0.mlp, value: 2}, {value: 3}]}")
    assert steps(planned(text))["model.layers.0.mlp.weight"].parameters["weight"] == (1.0, 1.0)


def test_a_tensor_without_a_value_is_refused():
    text = LINEAR.replace("0.5}", "[{filter: mlp, value: 1}]}")
    assert "no value for 'lm_head.weight': add an entry without a filter" in refusal(text)


def test_weights_that_sum_to_zero_are_refused_with_the_tensor():
    text = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n- {model: b, parameters: {weight: -1}}\n"
    assert "the weights of 'lm_head.weight' sum to zero" in refusal(text)
    assert planned(text + "parameters: {normalize: false}\n").steps[0].parameters["normalize"] is False


def test_probabilities_of_della_outside_of_one_are_refused():
    text = TIES.replace("ties", "della").replace("0.2}", "0.1}")
    assert "epsilon 0.15 and density 0.1 for 'lm_head.weight': expected epsilon < density" in refusal(text)


@pytest.mark.parametrize("key", ["include: [mlp]", "exclude: ['re:^(?!.*mlp)']"])
def test_what_is_not_included_is_a_copy_of_the_base(key):
    plan = planned(TIES + key + "\ndtype: bfloat16\n")
    for step in plan.steps:
        if "mlp" in step.name:
            assert (step.action, step.dtype) == ("merge", "BF16")
        else:
            assert (step.action, step.dtype, step.sources) == ("copy", "F32", (Source(0, step.name),))
            assert step.note in ("is not in include", "is in exclude")


def test_a_pattern_that_matches_nothing_is_refused():
    assert "recipe.yml:5: exclude[1]: 'nrom' matches no tensor of the merged model, such as model.norm.weight, " in refusal(
        TIES + "exclude: [norm, nrom]\n"
    )


def test_dtypes_are_those_asked_for_or_the_references():
    models = {"a": Headers("a", language_model(), "BF16")}
    assert {step.dtype for step in planned(LINEAR, models).steps} == {"BF16"}
    assert {step.dtype for step in planned(LINEAR + "dtype: float16\n", models).steps} == {"F16"}
    assert {step.dtype for step in planned(LINEAR + "dtype: float32\nout_dtype: float16\n", models).steps} == {"F16"}


def test_passthrough_copies_unless_it_scales_or_rounds():
    text = "merge_method: passthrough\nmodels: [{model: a}]\n"
    assert {step.action for step in planned(text).steps} == {"copy"}
    assert {step.action for step in planned(text + "dtype: bfloat16\n").steps} == {"merge"}
    assert planned(text + "parameters: {scale: 2}\n").steps[0].parameters == {"scale": (2.0,)}


def test_shapes_that_differ_are_refused_with_both():
    models = {"b": Headers("b", language_model(rows=8))}
    words = refusal(LINEAR, models)
    assert "models[1].model: 'lm_head.weight' has the shape (8, 4) in 'b', (7, 4) in 'a'; tokenizer_source tells how" in words
    wide = {"b": Headers("b", language_model() | {"model.norm.weight": (5,)})}
    assert refusal(LINEAR, wide).endswith("'model.norm.weight' has the shape (5,) in 'b', (4,) in 'a'")


def test_different_numbers_of_layers_are_refused():
    models = {"b": Headers("b", language_model(layers=4))}
    assert "recipe.yml:2: models[1].model: 'b' has 4 layers model.layers.*, 'a' has 3" in refusal(LINEAR, models)


def test_missing_extra_and_integer_tensors_are_copied_or_left_out_and_said():
    extra = language_model() | {"model.layers.0.bias": (4,), "position_ids": ((9,), "I64")}
    models = {"a": Headers("a", extra), "b": Headers("b", extra)}
    found = steps(planned(LINEAR, models))
    assert (found["position_ids"].action, found["position_ids"].note) == ("copy", "is of I64, which is not merged")
    assert planned(LINEAR, models).warnings == ()  # a count, the same in both
    models["b"] = Headers("b", language_model() | {"model.layers.1.bias": (4,)})
    plan = planned(LINEAR, models)
    assert steps(plan)["model.layers.0.bias"].note == "is missing in b"
    assert steps(plan)["model.layers.0.bias"].sources == (Source(0, "model.layers.0.bias"),)
    assert [(skipped.model, skipped.name) for skipped in plan.skipped] == [(1, "model.layers.1.bias")]
    assert plan.warnings == (
        "b lacks model.layers.0.bias: copied, not merged",
        "b has model.layers.1.bias, which the merged model has not: left out",
    )


def test_models_of_other_names_are_refused_with_names_of_both():
    other = {re.sub("layers|lm_head", "blocks", name): shape for name, shape in language_model(layers=9).items()}
    models = {"a": Headers("a", language_model(layers=9)), "b": Headers("b", other)}
    words = refusal(LINEAR, models)
    assert words.startswith("recipe.yml:2: models[1].model: 'b' lacks model.layers.0.mlp.weight, ")
    assert "; its own are model.blocks.0.mlp.weight, " in words
    assert "15 more" in words and "of the numbers would be merged and the rest copied; to merge a part only" in words
    small = language_model(layers=9, head=False) | {"model.embed_tokens.weight": (10_000, 4)}  # most of the numbers
    renamed = {name.replace("layers", "blocks"): shape for name, shape in small.items()}
    assert "of the tensors would be merged and the rest copied" in refusal(
        LINEAR, {"a": Headers("a", small), "b": Headers("b", renamed)}
    )
    chosen = planned(LINEAR + "include: [embed]\n", models).steps
    assert [step.name for step in chosen if step.action == "merge"] == ["model.embed_tokens.weight"]


def test_a_tied_head_is_the_embedding():
    models = {"b": Headers("b", language_model(head=False))}
    plan = planned(LINEAR, models)
    assert steps(plan)["lm_head.weight"].sources == (Source(0, "lm_head.weight"), Source(1, "model.embed_tokens.weight"))
    assert plan.warnings == ("b has tied tensors: lm_head.weight is its model.embed_tokens.weight",)


@pytest.mark.parametrize("prefixed", ["a", "b"])
def test_a_prefix_that_one_model_lacks_is_bridged(prefixed):
    shapes = language_model(head=False)
    bare = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    models = {name: Headers(name, shapes if name == prefixed else bare) for name in ("a", "b")}
    plan = planned(LINEAR, models)
    assert [step.name for step in plan.steps] == list(models["a"].entries)
    assert [step.sources[1].name for step in plan.steps] == list(models["b"].entries)
    assert plan.warnings == ("names of b and a are the same but for 'model.'",)
    assert plan.skipped == ()


def test_running_statistics_are_averaged_but_under_mergekits_conventions():
    shapes = {"bn.weight": (3,), "bn.running_mean": (3,), "bn.num_batches_tracked": ((), "I64"), "fc.weight": (2, 3)}
    shapes["bn.num_batches_tracked"] = ((1,), "I64")
    models = {name: Headers(name, shapes) for name in ("base", "a", "b")}
    step = steps(planned(TIES, models))["bn.running_mean"]
    assert (step.method, step.base, step.sources) == ("linear", None, (Source(1, step.name), Source(2, step.name)))
    assert step.parameters == {"weight": (1.0, 1.0), "normalize": True}
    assert step.note == "running statistics are averaged"
    assert steps(planned(TIES, models))["bn.num_batches_tracked"].action == "copy"
    assert steps(planned(TIES, models, mergekit_semantics=True))["bn.running_mean"].method == "ties"


def test_running_statistics_that_no_data_set_right_are_warned_of_and_counters_of_batches_are_not():
    shapes = {"bn.running_mean": (3,), "bn.num_batches_tracked": ((1,), "I64"), "fc.weight": (2, 3)}
    models = {name: Headers(name, shapes) for name in ("a", "b")}
    (said,) = planned(LINEAR, models).warnings
    assert said.startswith("running statistics: bn.running_mean: ") and "learn: {data: FILE, steps: 0}" in said
    assert planned(LINEAR + "learn: {data: x.npz, steps: 0}\n", models).warnings == ()
    assert planned(LINEAR + "exclude: running_mean\n", models).warnings == ()
    models["b"] = Headers("b", {name: x for name, x in shapes.items() if "batches" not in name})
    assert planned(LINEAR, models).warnings == (said,)
    assert planned(LINEAR + "base_model: b\n", models).warnings == (said,)


class Twice:
    """A vocabulary of ten tokens: each of the seven rows of the models, and three more."""

    rows = 10

    def holds(self, model, name):
        return name in ("lm_head.weight", "model.embed_tokens.weight")

    def resized(self, sources):
        table = np.minimum(np.arange(self.rows), 6)[:, None]
        return tuple(Source(s.model, s.name, Rows((s.model,), (s.name,), table)) for s in sources)


def test_tables_of_tokens_are_resized_with_the_base_and_so_are_copies():
    plan = planned(TIES + "exclude: lm_head\n", vocabulary=Twice())
    step = steps(plan)["model.embed_tokens.weight"]
    assert step.shape == (10, 4)
    assert all(source.rows is not None for source in (*step.sources, step.base))
    head = steps(plan)["lm_head.weight"]
    assert (head.action, head.method, head.shape, len(head.sources)) == ("merge", "linear", (10, 4), 1)
    assert steps(plan)["model.norm.weight"].shape == (4,)


def test_seeds_of_the_caller_win_over_the_recipes():
    assert planned(TIES).seed == 0
    assert planned(TIES + "seed: 3\n").seed == 3
    assert planned(TIES + "seed: 3\n", seed=0).seed == 0


def test_floats_of_8_bits_are_said_to_be_merged_without_their_scales():
    narrow = language_model() | {"model.layers.0.mlp.weight": ((4, 4), "F8_E4M3")}
    models = {name: Headers(name, narrow) for name in ("a", "b")}
    said = "floats of 8 bits: model.layers.0.mlp.weight: merged as they stand, scales that may belong to them are not applied"
    assert said in planned(LINEAR, models).warnings


def test_parameters_without_effect_are_said():
    plan = planned(TIES.replace("ties", "task_arithmetic"))
    assert plan.warnings == ("'density' has no effect on task_arithmetic: results are the same with it",)
    assert "density" not in plan.steps[0].parameters
    masks = planned(TIES.replace("{weight", "{int8_mask: true, weight"))
    assert masks.warnings == ("'int8_mask' has no effect on ties: results are the same with it",)
    assert masks.steps == planned(TIES).steps
    text = "merge_method: karcher\nmodels: [{model: a}, {model: b}]\nparameters: {max_iter: 3}\n"
    assert planned(text).warnings == ("'max_iter' has no effect on karcher: it counts with --mergekit-semantics",)
    assert planned(text, mergekit_semantics=True).warnings == ()


def test_results_of_earlier_documents_are_planned_from_their_plans():
    text = "name: first\n" + LINEAR + "---\n" + TIES.replace("model: b}", "model: first}")
    known = {name: Headers(name, language_model()) for name in ("base", "a", "b")}
    first, second = parse_recipe(text, "recipe.yml")
    result = PlannedModel("first", make_plan(first, open_models(first, known.__getitem__)))
    plan = make_plan(second, open_models(second, known.__getitem__, {"first": result}))
    assert plan.models[2] is result
    assert result.entries["lm_head.weight"].nbytes == 7 * 4 * 4
    assert result.folder == Path("first")  # not the one around, whose tokenizer is another's
    with pytest.raises(ValueError, match="first is planned and not made yet"):
        result.read("lm_head.weight")


def test_empty_tensors_are_copied():
    models = {name: Headers(name, {"weight": (2, 2), "empty": (0, 3)}) for name in ("a", "b")}
    assert (steps(planned(LINEAR, models))["empty"].action, steps(planned(LINEAR, models))["empty"].note) == (
        "copy",
        "is empty",
    )


def test_passthrough_does_not_scale_running_statistics():
    models = {"a": Headers("a", {"bn.running_var": (3,), "bn.weight": (3,)})}
    text = "merge_method: passthrough\nmodels: [{model: a}]\nparameters: {scale: 2}\n"
    assert [step.action for step in planned(text, models).steps] == ["copy", "merge"]
