"""Some sixty inputs that people get wrong, and the whole message each one gives: what was got, what was expected, what to do.

Expectations are written by hand: a message that changes is to be read again by a person.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

import npmerge as nm
from alignment import ActivationMatching, WeightMatching, align, permutation, trace, transport, verify
from npmerge.cli import main
from tests.npmerge.toys import array

WIDE = {"hidden": {"kernel": jnp.ones((4, 8))}, "out": {"kernel": jnp.ones((8, 3))}}
X, Y = array(0, 8, 4), np.arange(8) % 3


def network(seed):
    return {"hidden": {"kernel": array(seed, 4, 6)}, "out": {"kernel": array(seed + 1, 6, 3)}}


def apply(variables, x):
    return jnp.maximum(x @ variables["hidden"]["kernel"], 0) @ variables["out"]["kernel"]


A, B = network(10), network(20)
STACK, TUNED = nm.stack_models([A, B]), nm.stack_models([A, B], base=network(30))
NP, ONE_EACH = nm.np_merge(), nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
LOSS, THETA, SGD = nm.weight_space(NP, apply, nm.CrossEntropy()), NP.init(STACK), optax.sgd(0.1)
ENDLESS = nm.shuffled(X, Y, 4, seed=0)


@pytest.fixture(scope="module")
def graph():
    return trace(apply, A, X)


def fit(batches=((X, Y),), optimizer=SGD, **given):
    return nm.fit(THETA, LOSS, STACK, batches, optimizer, **{"steps": 1} | given)


def with_nan(model):
    return model | {"out": {"kernel": model["out"]["kernel"].at[0, 0].set(jnp.nan)}}


PYTHON = {
    "no models": (lambda g: nm.stack_models([]), "nothing to merge: got an empty list of models"),
    "models of other widths": (
        lambda g: nm.stack_models([A, WIDE]),
        "model 1 differs from model 0 at 'hidden/kernel': got float32[4, 8], expected float32[4, 6]",
    ),
    "models of other layers": (
        lambda g: nm.stack_models([A, {"hidden": A["hidden"]}]),
        "model 1 differs from model 0 at 'out/kernel': got no such leaf, expected float32[6, 3]",
    ),
    "a list for a stack": (
        lambda g: nm.Average()([A, B]),
        "a merge needs the stack of models it merges: got list, use stack_models(models)",
    ),
    "a model for a stack": (
        lambda g: nm.Average()(A),
        "a merge needs the stack of models it merges: got dict, use stack_models(models)",
    ),
    "a result for its theta": (
        lambda g: NP.apply(nm.FitResult(THETA, None, "finished"), STACK),
        "Learned.apply takes (theta, stack): got FitResult, pass its .theta",
    ),
    "theta and stack swapped": (lambda g: NP.apply(STACK, THETA), "Learned.apply takes (theta, stack), got (Stack, dict)"),
    "theta of another granularity": (
        lambda g: NP.apply(ONE_EACH.init(STACK), STACK),
        "theta is not of PerParameter() of these models: at 'hidden/kernel' got () for each model, expected (4, 6)",
    ),
    "no base": (lambda g: nm.Ties()(STACK), "Ties needs a base: got none, use stack_models(models, base=...)"),
    "three models for slerp": (
        lambda g: nm.Slerp()(nm.stack_models([A, B, A])),
        "Slerp merges exactly two models, got 3",
    ),
    "three weights for two models": (
        lambda g: nm.WeightedAverage((1, 2, 3))(STACK),
        "WeightedAverage needs one weight per model: got 3 weights for 2 models",
    ),
    "a density above one": (lambda g: nm.Ties(density=1.5), "density must be a number above 0 and at most 1, got 1.5"),
    "a choice that there is not": (lambda g: nm.Ties(scope="layer"), "scope must be one of 'tensor', 'model', got 'layer'"),
    "a name with a letter too few": (
        lambda g: nm.Averag,
        "module 'npmerge' has no attribute 'Averag': the nearest is 'Average'",
    ),
    "a name of the other package": (
        lambda g: nm.WeightMatching,
        "module 'npmerge' has no attribute 'WeightMatching': it is alignment.WeightMatching",
    ),
    "a name in another case": (
        lambda g: nm.NPMerge,
        "module 'npmerge' has no attribute 'NPMerge': the nearest is 'np_merge'",
    ),
    "a name of a package inside": (
        lambda g: nm.load,
        "module 'npmerge' has no attribute 'load': it is npmerge.checkpoint.load",
    ),
    "a start without coefficients": (
        lambda g: nm.Learned(nm.TsvM(), nm.PerTensor(), nm.Simplex()),
        "Learned starts from a linear merge (one with coefficients), got TsvM",
    ),
    "a class for a value": (
        lambda g: nm.Learned(nm.Average, nm.PerTensor(), nm.Simplex()),
        "Learned starts from a linear merge (one with coefficients), got the class Average",
    ),
    "a start outside its constraint": (
        lambda g: nm.Learned(nm.TaskArithmetic(0.3), nm.PerTensor(), nm.Simplex()).init(TUNED),
        "the start has coefficients outside the simplex: over the models they sum to 0.6; choose another constraint",
    ),
    "a pattern that is none": (
        lambda g: nm.PerLayer("("),
        "PerLayer pattern '(' is not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    "a function for an objective": (
        lambda g: nm.weight_space(NP, apply, np.mean),
        "weight_space takes (merge, apply, objective), PerExample(function) is an objective, got (Learned, function, "
        "_ArrayFunctionDispatcher)",
    ),
    "theta and loss swapped": (
        lambda g: nm.fit(LOSS, THETA, STACK, [(X, Y)], SGD, steps=1),
        "fit takes (theta, loss, stack, batches, optimizer), got (WeightSpaceLoss, dict, Stack, list, "
        "GradientTransformationExtraArgs)",
    ),
    "steps below zero": (lambda g: fit(steps=-1), "steps must be an integer of 0 or more, got -1"),
    "a rate for an optimizer": (
        lambda g: fit(optimizer=0.1),
        "optimizer must be an Optax transformation such as optax.adam(1e-2), got float",
    ),
    "no batches": (lambda g: fit(batches=[]), "the data ended after 0 batches, 1 steps were asked for"),
    "one batch for batches": (
        lambda g: fit(batches=(X, Y)),
        "each batch must be a tuple (inputs, targets): got an array of shape (8, 4); one batch alone is [(inputs, targets)]",
    ),
    "labels from one": (lambda g: fit(batches=[(X, Y + 1)]), "labels out of range: got 1 to 3, expected 0 to 2"),
    "labels that are no integers": (
        lambda g: fit(batches=[(X, Y.astype(np.float32))]),
        "labels must be integers, got floating-point numbers",
    ),
    "one-hot labels": (
        lambda g: fit(batches=[(X, np.eye(3, dtype=np.int32)[Y])]),
        "labels must be one per prediction, of shape (8,): got (8, 3); one-hot labels are numbers of classes by "
        "labels.argmax(-1)",
    ),
    "more devices than there are": (lambda g: fit(devices=64), "devices must be from 1 to the 8 that JAX finds here, got 64"),
    "a way to run that there is not": (
        lambda g: fit(parallel="pjit"),
        "unknown parallel 'pjit': the nearest is 'jit', expected one of jit, pmap",
    ),
    "a model with NaN": (
        lambda g: nm.stack_models([A, with_nan(B)]),
        "model 1 has 1 non-finite values of 18 in 'out/kernel'",
    ),
    "statistics that were not given": (
        lambda g: nm.Fisher()(STACK),
        "Fisher needs stats: pass npmerge.collect(apply, graph, models, batches, [DiagonalFisher()])",
    ),
    "nothing to collect from": (
        lambda g: nm.collect(apply, g, [A, B], [], [nm.NodeMoments()]),
        "collect needs data: got no batches",
    ),
    "batches that never end": (
        lambda g: nm.collect(apply, g, [A, B], ENDLESS, [nm.NodeMoments()]),
        "measuring needs batches that end: got shuffled(...), use in_order(...) or a list",
    ),
    "network and variables swapped": (
        lambda g: nm.evaluate(A, apply, [(X, Y)]),
        "evaluate takes (apply, variables, batches), got (dict, function, list)",
    ),
    "arguments of trace swapped": (
        lambda g: trace(A, apply, X),
        "trace takes (apply, variables, *inputs), got (dict, function)",
    ),
    "a number for a key": (
        lambda g: verify(apply, g, A, X, key=0),
        "key must be jax.random.key(...) or None, got 0",
    ),
    "graph and alignment swapped": (
        lambda g: align(g, WeightMatching(), [A, B]),
        "align takes (alignment, graph, models), got (Graph, WeightMatching, list)",
    ),
    "one model for models": (lambda g: align(WeightMatching(), g, A), "expected a list of models, got dict"),
    "a graph for each model": (
        lambda g: align(WeightMatching(), [g, dataclasses.replace(g)], [A, B]),
        "WeightMatching needs networks of one width: got several graphs",
    ),
    "activations that were not given": (
        lambda g: align(ActivationMatching(), g, [A, B]),
        "ActivationMatching needs activations: pass stats=npmerge.collect(apply, graph, models, batches, [NodeMoments()])",
    ),
    "an index that is no permutation": (lambda g: permutation([0, 0, 1]), "not a permutation of 3 units: [0, 0, 1]"),
    "a node that there is not": (
        lambda g: transport(g, {"hiden": permutation(range(6))}, A),
        "unknown node 'hiden': the nearest is 'hidden', expected one of hidden",
    ),
    "a map of another size": (
        lambda g: transport(g, {"hidden": permutation([0, 1, 2])}, A),
        "the map of 'hidden' takes 3 units, the node has 6",
    ),
    "a file that there is not": (lambda g: nm.checkpoint.load("nope.safetensors"), "nope.safetensors: no such file"),
    "path and variables swapped": (
        lambda g: nm.checkpoint.save(A, "a.safetensors"),
        "save takes (path, variables, record), got (dict, str, NoneType)",
    ),
    "a folder that there is not": (
        lambda g: nm.checkpoint.save("no/where/a.safetensors", A),
        "cannot write no/where/a.safetensors: there is no folder no/where",
    ),
    "inputs and targets of other lengths": (
        lambda g: nm.shuffled(X, Y[:5], 4, seed=0),
        "inputs and targets must have one equal, positive length: got 8 and 5",
    ),
}


@pytest.mark.parametrize("case", PYTHON)
def test_what_python_is_told(case, graph, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, message = PYTHON[case]
    with pytest.raises((ValueError, AttributeError)) as error:
        jax.block_until_ready(call(graph))
    assert str(error.value) == message


def recipe(method="linear", second="b.safetensors", rest="parameters:\n  weight: 1\n"):
    return f"merge_method: {method}\nmodels:\n- model: a.safetensors\n- model: {second}\n{rest}"


COMMANDS = {
    "a method with a letter too many": (
        recipe("linnear"),
        "recipe.yml:1: merge_method: unknown method 'linnear': the nearest is 'linear', expected one of linear, passthrough, "
        "slerp, nuslerp, multislerp, karcher, nearswap, arcee_fusion, model_stock, task_arithmetic, ties, dare_linear, "
        "dare_ties, breadcrumbs, breadcrumbs_ties, della, della_linear, sce, mlerp, pcb, consensus_ta, iso_c, iso_cts, tsv_m, "
        "wudi",
    ),
    "a base that is missing": (recipe("ties"), "recipe.yml:1: merge_method: ties needs a base: give its path as base_model"),
    "a weight that is missing": (
        recipe(rest=""),
        "recipe.yml:3: models[0].model: linear needs the parameter 'weight' of 'a.safetensors': got none",
    ),
    "a parameter with a letter too few": (
        recipe(rest="parameters:\n  weigt: 0.5\n"),
        "recipe.yml:6: parameters.weigt: unknown parameter of linear 'weigt': the nearest is 'weight', expected one of weight, "
        "normalize",
    ),
    "a key with a letter too few": (
        recipe(rest="dtyp: float16\n"),
        "recipe.yml:5: dtyp: unknown key 'dtyp': the nearest is 'dtype', expected one of name, merge_method, models, slices, "
        "modules, base_model, parameters, dtype, out_dtype, tokenizer_source, tokenizer, chat_template, include, exclude, "
        "seed, align, learn",
    ),
    "a word for a number": (
        recipe(rest="parameters:\n  weight: half\n"),
        "recipe.yml:6: parameters.weight: expected a number, true or false, got 'half'",
    ),
    "a number that is too large": (
        recipe("ties", rest="base_model: a.safetensors\nparameters:\n  density: 1.5\n"),
        "recipe.yml:7: parameters.density: 'density' of ties must be from 0 to 1, got 1.5",
    ),
    "a dtype that there is not": (
        recipe(rest="dtype: float17\n"),
        "recipe.yml:5: dtype: unknown dtype 'float17': the nearest is 'float16', expected one of float32, float16, bfloat16, "
        "float64",
    ),
    "a filter that matches nothing": (
        recipe(rest="parameters:\n  weight:\n  - filter: mlpp\n    value: 0.5\n  - value: 1\n"),
        "recipe.yml:7: parameters.weight[0].filter: 'mlpp' matches no tensor that is merged, such as layers.0.weight",
    ),
    "no models in a recipe": (
        "merge_method: linear\n",
        "recipe.yml:1: expected exactly one of models, slices, modules, got none",
    ),
    "an empty recipe": ("", "recipe.yml: expected a recipe, got an empty file"),
    "a line that stands too far right": (
        "merge_method: linear\nmodels:\n- model: a.safetensors\n  - model: b.safetensors\n",
        "recipe.yml:4: no valid YAML: this line is indented otherwise than what began in line 3",
    ),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_what_the_command_line_is_told(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        save_file({"layers.0.weight": np.ones((2, 2), np.float32)}, f"{name}.safetensors")
    text, message = COMMANDS[case]
    (tmp_path / "recipe.yml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["npmerge", "merge", "recipe.yml", "out"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"npmerge: {message}\n"
    assert not (tmp_path / "out").exists()
