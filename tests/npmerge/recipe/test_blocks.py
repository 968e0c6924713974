"""The `align:` and `learn:` of recipes, as they are written."""

import pytest

from npmerge.recipe import parse_recipe
from tests.npmerge.recipe.headers import MODELS, message

LINEAR = "merge_method: linear\n" + MODELS
NUMBERS = """\
learn:
  data: x.npz
  optimizer:
    name: adam
    arguments: {learning_rate: 1e-2, b1: .5e0, eps: '1', eps_root: 1.0e-8, mu_dtype: 1e, nesterov: e5}
    schedule: {name: polynomial_schedule, arguments: {init_value: 1E5, transition_steps: 10}}
  objective: {name: distillation, arguments: {temperature: +2.e+0, names: [1e1, e1]}}
"""


def test_numbers_that_yaml_1_1_takes_for_text_are_numbers():
    (found,) = parse_recipe(LINEAR + NUMBERS)
    adam = found.learn.optimizer
    same = {"learning_rate": 0.01, "b1": 0.5, "eps": "1", "eps_root": 1e-8, "mu_dtype": "1e", "nesterov": "e5"}
    assert adam.arguments == same
    assert adam.schedule.arguments == {"init_value": 1e5, "transition_steps": 10}
    assert type(adam.schedule.arguments["transition_steps"]) is int
    assert found.learn.objective[0].arguments == {"temperature": 2.0, "names": [10.0, "e1"]}


def test_names_are_read_with_hyphens_underscores_or_capitals():
    text = (
        "align: {method: weight-matching}\n"
        "learn: {data: x.npz, objective: [CrossEntropy, equal-shares], granularity: per-layer, constraint: Box}\n"
    )
    (found,) = parse_recipe(LINEAR + text)
    learn = found.learn
    assert (found.align.method, learn.granularity.name, learn.constraint.name) == ("weight_matching", "per_layer", "box")
    assert [term.name for term in learn.objective] == ["cross_entropy", "equal_shares"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "learn:\n  data: x\n  optimizer: {name: adam, learning_rate: 0.1}\n",
            "recipe.yml:9: learn.optimizer.learning_rate: unknown key 'learning_rate': expected one of name, arguments, "
            "schedule; what adam itself takes stands under arguments",
        ),
        ("learn:\n", "recipe.yml:7: learn: is empty: give at least data"),
        ("align:\n", "recipe.yml:7: align: is empty: give at least method"),
        (
            "learn:\n  data: [{path: x}, {path: y, weight: 0}]\n",
            "recipe.yml:8: learn.data[1].weight: expected greater than 0, got 0",
        ),
        (
            "learn:\n  data: x\n  objective:\n  - entropy\n  - name: proximity\n    weight: -1\n",
            "recipe.yml:12: learn.objective[1].weight: expected greater than 0, got -1",
        ),
    ],
)
def test_empty_blocks_and_weights_that_count_for_nothing_are_refused(text, said):
    assert said in message(LINEAR + text)


@pytest.mark.parametrize(
    ("method", "learn", "said"),
    [
        ("ties", "", r"recipe\.yml:9: learn: ties keeps other entries .* got per_tensor, the default: give granularity: per_p"),
        ("ties", ", granularity: per_channel", r"learn\.granularity: ties .* only per_parameter can .* got per_channel: give"),
        ("model_stock", "", r"filter_wise has a coefficient for each row .* only per_channel or per_parameter can start"),
    ],
)
def test_starts_that_differ_inside_a_tensor_need_coefficients_there(method, learn, said):
    models = MODELS if method == "ties" else "models: [{model: a}, {model: b}]\n"
    text = f"merge_method: {method}\nbase_model: base\n{models}"
    text += "parameters: {density: 0.5, weight: 1}\n" if method == "ties" else "parameters: {filter_wise: true}\n"
    with pytest.raises(ValueError, match=said):
        parse_recipe(text + f"learn: {{data: x.npz{learn}}}\n", "recipe.yml", there=False)
    for fine in ("per_parameter",) if method == "ties" else ("per_channel", "per_parameter"):
        parse_recipe(text + f"learn: {{data: x.npz, granularity: {fine}}}\n", there=False)
    if method == "model_stock":
        parse_recipe(text.replace("true", "false") + "learn: {data: x.npz}\n", there=False)
