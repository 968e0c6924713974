"""What is wrong in a recipe is refused with its line and the nearest name, before any model is opened."""

import pytest

from tests.npmerge.recipe.headers import MODELS, message

REFUSED = {
    "a misspelt key": (
        "merge_metod: linear\n" + MODELS,
        "recipe.yml:1: merge_metod: unknown key 'merge_metod': the nearest is 'merge_method'",
    ),
    "a misspelt method": (
        "merge_method: linaer\n" + MODELS,
        "recipe.yml:1: merge_method: unknown method 'linaer': the nearest is 'linear'",
    ),
    "a misspelt parameter": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    wieght: 1\n",
        "recipe.yml:5: models[0].parameters.wieght: unknown parameter of linear 'wieght': the nearest is 'weight'",
    ),
    "a misspelt key of a model": (
        "merge_method: linear\nmodels:\n- modle: a\n",
        "recipe.yml:3: models[0].modle: unknown key 'modle': the nearest is 'model'",
    ),
    "a parameter of another method": (
        MODELS + "merge_method: linear\nparameters:\n  density: 0.5\n",
        "recipe.yml:8: parameters.density: unknown parameter of linear",
    ),
    "no method": (MODELS, "recipe.yml:1: merge_method: is missing"),
    "a method that is not implemented": (
        "merge_method: ram\n" + MODELS,
        "recipe.yml:1: merge_method: 'ram' is not implemented",
    ),
    "a mixture of experts": (
        "merge_method: linear\nexperts: []\n" + MODELS,
        "recipe.yml:2: experts: 'experts' is not supported: mixtures of experts",
    ),
    "an evolutionary merge": ("genome: {}\n" + MODELS, "recipe.yml:1: genome: 'genome' is not supported: evolutionary merges"),
    "density above one": (
        "merge_method: ties\nbase_model: base\nmodels:\n- model: a\n  parameters:\n    weight: 1\n    density:\n"
        "    - filter: mlp\n      value: [0.5, 1.5]\n    - value: 1\n",
        "recipe.yml:9: models[0].parameters.density[0].value[1]: 'density' of ties must be from 0 to 1, got 1.5",
    ),
    "a weight that is no number": (
        MODELS.replace("2", ".nan") + "merge_method: linear\n",
        "recipe.yml:5: models[1].parameters.weight: 'weight' of linear must be a finite number, got nan",
    ),
    "a weight that is a flag": (MODELS.replace("2", "yes") + "merge_method: linear\n", "must be a number, got True"),
    "a flag that is a number": (
        MODELS + "merge_method: linear\nparameters: {normalize: 0.5}\n",
        "must be true or false, got 0.5",
    ),
    "t above one": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 1.2}\n",
        "recipe.yml:4: parameters.t: 't' of slerp must be from 0 to 1, got 1.2",
    ),
    "no weight": (
        "merge_method: linear\nmodels:\n- model: a\n- {model: b, parameters: {weight: 1}}\n",
        "recipe.yml:3: models[0].model: linear needs the parameter 'weight' of 'a': got none",
    ),
    "no t": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\n",
        "recipe.yml:1: merge_method: slerp needs the parameter 't': got none",
    ),
    "no base": ("merge_method: ties\n" + MODELS, "recipe.yml:1: merge_method: ties needs a base"),
    "one model that is the base": (
        "merge_method: ties\nbase_model: a\nmodels: [{model: a}]\n",
        "recipe.yml:3: models: ties merges 1 or more models besides the base, got none",
    ),
    "three models for slerp": (
        "merge_method: slerp\nbase_model: base\nparameters: {t: 0.5}\n"
        + MODELS.replace("weight: 1", "").replace("weight: 2", ""),
        "slerp merges 2 models, the base included, got 'base', 'a', 'b'",
    ),
    "two models for model_stock": (
        "merge_method: model_stock\nbase_model: base\nmodels: [{model: a}]\n",
        "model_stock merges 2 or more models besides the base, got 'a'",
    ),
    "a shared parameter of a model": (
        "merge_method: slerp\nbase_model: a\nmodels: [{model: b, parameters: {t: 0.5}}]\n",
        "'t' is one for all models",
    ),
    "a model twice": (
        MODELS.replace("model: b", "model: ./a/") + "merge_method: linear\n",
        "recipe.yml:4: models[1].model: 'a' stands there twice",
    ),
    "models and slices": (
        MODELS + "slices: [{sources: [{model: a, layer_range: [0, 1]}]}]\nmerge_method: linear\n",
        "expected exactly one of models, slices, modules, got models and slices",
    ),
    "neither models nor slices": ("merge_method: linear\n", "expected exactly one of models, slices, modules, got none"),
    "no models": ("merge_method: linear\nmodels: []\n", "recipe.yml:2: models: expected a list of one or more, got []"),
    "models that are no list": (
        "merge_method: linear\nmodels: a\n",
        "recipe.yml:2: models: expected a list of one or more, got 'a'",
    ),
    "slices of different lengths": (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [0, 5]}\n",
        "recipe.yml:6: slices[0].sources[1].layer_range: expected 4 layers as of the first source, got 5",
    ),
    "an empty range": (
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [4, 4]}\n",
        "recipe.yml:4: slices[0].sources[0].layer_range: expected [first, last + 1]",
    ),
    "half a range": (
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [4]}\n",
        "recipe.yml:4: slices[0].sources[0].layer_range: expected [first, last + 1] with 0 <= first <= last, got [4]",
    ),
    "a range of flags": (
        "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [false, true]}\n",
        "recipe.yml:4: slices[0].sources[0].layer_range: expected [first, last + 1]",
    ),
    "a slice without its base": (
        "merge_method: ties\nbase_model: base\nparameters: {weight: 1}\nslices:\n- sources:\n"
        "  - {model: a, layer_range: [0, 4]}\n  - {model: b, layer_range: [1, 5]}\n",
        "recipe.yml:5: slices[0].sources: which layers of the base 'base' is open",
    ),
    "two tokenizers": (
        MODELS + "merge_method: linear\ntokenizer_source: union\ntokenizer: {source: base}\n",
        "recipe.yml:7: tokenizer_source: tokenizer and tokenizer_source exclude each other",
    ),
    "a misspelt key of the tokenizer": (
        MODELS + "merge_method: linear\ntokenizer: {sources: base}\n",
        "tokenizer.sources: unknown key 'sources': the nearest is 'source'",
    ),
    "a token of a misspelt kind": (
        MODELS + "merge_method: linear\ntokenizer:\n  tokens:\n    x:\n      source: {kind: zro}\n",
        "recipe.yml:10: tokenizer.tokens.x.source.kind: expected 'model_token' or 'zero', got 'zro'",
    ),
    "a token without a number": (
        MODELS + "merge_method: linear\ntokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
        "expected a model and one of token_id and token",
    ),
    "a dtype that is none": (
        MODELS + "merge_method: linear\ndtype: bfloat61\n",
        "recipe.yml:7: dtype: unknown dtype 'bfloat61': the nearest is 'bfloat16'",
    ),
    "a seed that is none": (
        MODELS + "merge_method: linear\nseed: -1\n",
        "recipe.yml:7: seed: expected greater than or equal to 0, got -1",
    ),
    "a pattern that is none": (
        MODELS + "merge_method: linear\ninclude: ['re:(']\n",
        "recipe.yml:7: include[0]: 're:(' is no regular expression",
    ),
    "an alignment that is none": (
        MODELS + "merge_method: linear\nalign: {method: weight_maching}\n",
        "recipe.yml:7: align.method: unknown alignment 'weight_maching': the nearest is 'weight_matching'",
    ),
    "a key of learning and of aligning, a level too high": (
        MODELS + "merge_method: linear\narchitecture: Mlp\n",
        "recipe.yml:7: architecture: the key 'architecture' belongs under learn: or align:",
    ),
    "a key of learning, a level too high": (
        MODELS + "merge_method: linear\nobjective: entropy\n",
        "recipe.yml:7: objective: the key 'objective' belongs under learn:",
    ),
    "a misspelt key of learning": (
        MODELS + "merge_method: linear\nlearn: {architecture: x, data: y, step: 3}\n",
        "recipe.yml:7: learn.step: unknown key 'step': the nearest is 'steps'",
    ),
    "a name of a hub": (
        MODELS.replace("model: b", "model: mistralai/Mistral-7B") + "merge_method: linear\n",
        "recipe.yml:4: models[1].model: 'mistralai/Mistral-7B' is no path on this machine: download the model first "
        "(hf download mistralai/Mistral-7B --local-dir Mistral-7B) and give its path",
    ),
    "a name of a hub without its owner": (
        MODELS.replace("model: b", "model: gpt2") + "merge_method: linear\n",
        "; a model of the hub is downloaded first: hf download gpt2 --local-dir gpt2",
    ),
    "a revision of a hub": (
        MODELS.replace("model: b", "model: org/name@main") + "merge_method: linear\n",
        "asks for the revision 'main'",
    ),
    "an adapter": (
        MODELS.replace("model: b", "model: b+lora") + "merge_method: linear\n",
        "recipe.yml:4: models[1].model: 'b+lora' asks for 'b' with the adapter 'lora': expected a folder on this machine",
    ),
    "a misspelt path": (
        MODELS.replace("model: b", "model: models/lama-7b") + "merge_method: linear\n",
        "unknown model 'models/lama-7b': the nearest is 'models/llama-7b'",
    ),
    "a GGUF file": (MODELS.replace("model: b", "model: b.gguf") + "merge_method: linear\n", "'b.gguf' is a GGUF file"),
    "a tokenizer that is not there": (
        MODELS + "merge_method: linear\ntokenizer_source: unoin\n",
        "recipe.yml:7: tokenizer_source: unknown model 'unoin': the nearest is 'union', expected 'union', 'base' or",
    ),
    "a learning rate outside the optimizer": (
        MODELS + "merge_method: linear\nlearn: {data: x.npz, learning_rate: 0.1}\n",
        "recipe.yml:7: learn.learning_rate: 'learning_rate' is not supported: give it as optimizer: {name: adam, arguments: {",
    ),
    "a line that is indented otherwise": (
        "models:\n - model: a\n   parameters: {}\n  - model: b\n",
        "recipe.yml:4: no valid YAML: this line is indented otherwise than what began in line 2",
    ),
    "a model with an adapter as a mapping": (
        MODELS.replace("model: b", "model: {model: {path: b}, lora: {path: c}}") + "merge_method: linear\n",
        "recipe.yml:4: models[1].model: expected the path of a model, base+adapter, or a mapping with path alone",
    ),
    "a key twice": (
        MODELS + "merge_method: linear\nmerge_method: ties\n",
        "recipe.yml:7: the key 'merge_method' stands twice, first in line 6",
    ),
    "a key twice in one line": (
        "merge_method: linear\nmodels: [{model: a, model: b}]\n",
        "recipe.yml:2: the key 'model' stands twice",
    ),
    "text that is no YAML": ("merge_method: [", "recipe.yml:1: no valid YAML"),
    "parameters without any": (
        "merge_method: linear\nparameters:\nmodels: []\n",
        "recipe.yml:2: parameters: is empty: give a value, or leave the key out",
    ),
    "a block without keys": (
        "merge_method: linear\nlearn:\nmodels: []\n",
        "recipe.yml:2: learn: is empty: ",
    ),
    "text that is no mapping": ("- 1\n", "recipe.yml:1: expected a mapping with name, merge_method"),
    "an empty file": ("", "recipe.yml: expected a recipe, got an empty file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_with_its_line(case):
    text, words = REFUSED[case]
    assert words in message(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("merge_method: !!python/object:os.system x\n", "recipe.yml:1: no valid YAML: could not determine a constructor"),
        ("name: 2020-99-99\n", "recipe.yml: no valid YAML: month must be in 1..12"),
        ("merge_method: \x00\n", "recipe.yml: no valid YAML: special characters are not allowed"),
        ("merge_method: " + "[" * 5000, "recipe.yml: no valid YAML: nested too deeply"),
        ("merge_method: &a [*a]\n", "recipe.yml:1: merge_method: expected a valid string, got [[[[...]]]]"),
        ("name: ../up\nmerge_method: linear\n" + MODELS, "recipe.yml:1: name: expected a name without slashes, got '../up'"),
        ("merge_method: linear\nmodels: [{model: " + "x" * 5000 + ", parameters: {weight: 1}}]\n", "no such file or folder"),
    ],
)
def test_files_of_strangers_end_in_one_line(text, words):
    assert words in message(text)


def test_a_short_file_that_aliases_make_endless_is_refused_in_a_short_line():
    lines = [f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]" for i in range(1, 12)]
    text = "l0: &l0 [x, x]\n" + "\n".join(lines) + "\nmerge_method: *l11\n"
    assert len(message(text)) < 4000
