"""What is wrong with a block is told with the file, the line and the nearest valid name; nothing is written."""

import numpy as np
import pytest

from tests.npmerge.learning.digits import learn, merge, recipe

ADAM = {"name": "adam", "arguments": {"learning_rate": 0.1}}

FAULTS = {
    "an objective": (
        learn(objective="cross_entrpy"),
        "learn.objective: unknown objective 'cross_entrpy': the nearest is 'cross_e",
    ),
    "its argument": (
        learn(objective={"name": "distillation", "arguments": {"temprature": 2}}),
        "learn.objective: unknown argument of distillation 'temprature': the nearest is 'temperature'",
    ),
    "a granularity": (learn(granularity="per_paramter"), "the nearest is 'per_parameter'"),
    "a granularity that is a pattern": (
        learn(granularity="per_block"),
        r"per_parameter; one for each block of layers is {name: per_layer, arguments: {pattern: 'blocks/\d+'}}",
    ),
    "a pattern that finds nothing": (
        learn(granularity={"name": "per_layer", "arguments": {"pattern": "block"}}),
        "learn.granularity: PerLayer pattern 'block' matches none of 6 paths, such as",
    ),
    "a constraint": (learn(constraint={"name": "box", "arguments": {"low": 1, "high": 0}}), "Box needs low < high"),
    "an optimiser": (learn(optimizer="adm"), "unknown optimizer 'adm': the nearest is 'adam'"),
    "an optimiser's argument": (
        learn(optimizer={"name": "adam", "arguments": {"learning_rat": 0.1}}),
        "unknown argument of adam 'learning_rat': the nearest is 'learning_rate'",
    ),
    "a missing argument": (learn(optimizer="adam"), "learn.optimizer: adam needs learning_rate"),
    "an optimiser of another kind": (
        learn(optimizer={"name": "lbfgs", "arguments": {"learning_rate": 0.1}}),
        "lbfgs does not work from gradients alone",
    ),
    "a schedule": (
        learn(optimizer={"name": "adam", "schedule": {"name": "cosine_schedule", "arguments": {"init_value": 0.1}}}),
        "learn.optimizer.schedule: unknown schedule 'cosine_schedule': the nearest is",
    ),
    "a schedule and a rate": (
        learn(optimizer={**ADAM, "schedule": {"name": "constant_schedule", "arguments": {"value": 0.1}}}),
        "learning_rate and schedule exclude each other",
    ),
    "an architecture": (learn(architecture="Mpl"), "learn.architecture: unknown architecture 'Mpl': the nearest is 'Mlp'"),
    "its field": (
        learn(architecture={"name": "Mlp", "arguments": {"widht": 3}}),
        "learn.architecture: unknown argument of Mlp 'widht'",
    ),
    "another architecture": (
        learn(architecture={"name": "Mlp", "arguments": {"hidden": [16, 17]}}),
        "'params/layers/1/kernel': got (16, 16), expected (16, 17)",
    ),
    "a module": (learn(architecture="no_such_module:network"), "'no_such_module:network' cannot be imported"),
    "data that are not there": (learn(data="trian.npz"), "learn.data: trian.npz: no such file or folder of data"),
    "an array": (learn(data={"path": "train.npz", "inputs": "input"}), "unknown array 'input': the nearest is 'inputs'"),
    "no labels": (
        learn(data={"path": "train.npz", "labels": "classes"}),
        "cross_entropy needs labels: train.npz has no 'classes'",
    ),
    "labels out of range": (learn(data="many.npz"), "labels out of range: got 0 to 10, expected 0 to 9"),
    "inputs of another shape": (learn(data="flat.npz"), "inputs must have the shape (examples, 64), got (4, 63)"),
    "integers": (learn(data="bytes.npz"), "inputs must be floating-point, got uint8"),
    "text": (learn(data="words.npz"), "learn.data: words.npz: inputs must be numbers, got <U3"),
    "inputs that are not finite": (
        learn(data="holes.npz"),
        "learn.data: holes.npz: inputs hold values that are not finite: 3, the first in example 1",
    ),
    "held-out inputs that are too large": (
        learn(held_out="large.npz"),
        "learn.held_out: large.npz: inputs hold values that are not finite: 1, the first in example 3",
    ),
    "too many labels": (learn(data="long.npz"), "long.npz has 4 inputs and 5 labels"),
    "held-out data that are learned from": (learn(held_out="part.npz"), "5 of its 5 inputs are in train.npz too"),
    "a fraction": (learn(held_out=1.5), "learn.held_out: expected a fraction from 0 to below 1"),
    "a fraction of nothing": (learn(data="flat64.npz", held_out=0.01), "leaves one part empty"),
    "patience without": (learn(held_out=0, patience=2), "patience needs held-out data"),
    "devices": (learn(devices=99), "devices must be from 1 to"),
    "path and dataset": (learn(data={"path": "x", "dataset": "y"}), "expected exactly one of path, dataset, got both"),
    "a dataset without its package": (learn(data={"dataset": "mnist"}), "pip install datasets"),
    "saving": (learn(checkpoints={}), "expected steps or minutes"),
}


@pytest.fixture
def data(here):
    x = np.linspace(0, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    y = np.arange(4)
    np.savez(here / "many.npz", inputs=np.repeat(x, 3, 0)[:11], labels=np.arange(11))
    np.savez(here / "flat.npz", inputs=x[:, 1:], labels=y)
    np.savez(here / "flat64.npz", inputs=x, labels=y)
    np.savez(here / "bytes.npz", inputs=x.astype(np.uint8), labels=y)
    np.savez(here / "words.npz", inputs=np.full(x.shape, "one"), labels=y)
    holes, large = x.copy(), x.astype(np.float64)
    holes[[1, 3, 3], [0, 5, 6]], large[3, 2] = (np.nan, np.inf, -np.inf), 1e300
    np.savez(here / "holes.npz", inputs=holes, labels=y)
    np.savez(here / "large.npz", inputs=large, labels=y)
    np.savez(here / "long.npz", inputs=x, labels=np.arange(5))
    with np.load(here / "train.npz") as train:
        np.savez(here / "part.npz", inputs=train["inputs"][3:8], labels=train["labels"][3:8])
    return here


@pytest.mark.parametrize("case", FAULTS)
def test_refused_with_the_line_and_what_was_expected(case, data):
    block, message = FAULTS[case]
    with pytest.raises(ValueError) as caught:
        merge(data, "out", recipe(learn=block))
    assert message in str(caught.value)
    assert str(caught.value).startswith("recipe.yml:")
    assert not (data / "out").exists()


KARCHER = """merge_method: karcher
models: [{model: a.safetensors}, {model: b.safetensors}]
learn: {data: train.npz}
"""


@pytest.mark.parametrize("case", ["an optimiser", "a schedule", "a constraint", "data that are not there"])
def test_what_the_recipe_tells_is_refused_before_a_model_is_opened(case, data, monkeypatch):
    monkeypatch.setattr("npmerge.commands.planning.open_models", lambda *_: pytest.fail("a model was opened"))
    block, message = FAULTS[case]
    with pytest.raises(ValueError) as caught:
        merge(data, "out", recipe(learn=block))
    assert message in str(caught.value)


OTHERS = {
    "a method without coefficients": (KARCHER, "learn: cannot start from karcher: expected one of linear, task_arithmetic"),
    "a start outside": (
        recipe(learn=learn()).replace("weight: 1", "weight: -1", 1).replace("weight: 1", "weight: 3"),
        "simplex",
    ),
    "an alignment": (recipe(align={"method": "weight_maching"}), "the nearest is 'weight_matching'"),
    "its argument": (
        recipe(align={"method": "weight_matching", "parameters": {"restart": 2}}),
        "align.parameters: unknown argument of weight_matching 'restart': the nearest is 'restarts'",
    ),
    "other widths": (
        recipe(align={"method": "zip_it", "data": "train.npz", "parameters": {"width": 0.75}}),
        "align.method: zip_it makes networks of other widths",
    ),
    "activations": (recipe(align={"method": "activation_matching"}), "activation_matching needs activations"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_methods_and_alignments(case, here):
    text, message = OTHERS[case]
    with pytest.raises(ValueError, match=r"recipe\.yml:\d+: ") as caught:
        merge(here, "out", text)
    assert message in str(caught.value)
