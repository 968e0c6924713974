"""Recipes as files: what is read, and in which order documents are."""

import re

import pytest

import alignment
import npmerge
from npmerge.recipe import METHODS, blocks, load_recipe, parse_recipe, terms
from tests.npmerge.recipe.headers import MODELS, message


def test_all_that_pydantic_finds_is_told_at_once():
    assert message("merge_method: linear\nmodels: 3\ndtype: int4\nseed: x\n").count("\n") == 2


def test_paths_with_a_plus_or_an_at_are_paths_where_they_exist():
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a+b}, {model: a+b+c}, {model: a@main}]\n"
    (recipe,) = parse_recipe(text)
    assert [model.model for model in recipe.models] == ["a+b", "a+b+c", "a@main"]


def test_flags_may_be_0_and_1_and_dtypes_those_of_torch():
    (recipe,) = parse_recipe(MODELS + "merge_method: linear\nparameters: {normalize: 0}\ndtype: torch.bfloat16\n")
    assert recipe.dtype == "bfloat16"


def test_what_stands_beside_the_merge_is_kept():
    block = "learn: {architecture: resnet, data: images, steps: 3, optimizer: {name: adam, arguments: {learning_rate: 0.1}}}\n"
    more = "align: {method: cca}\nchat_template: auto\nseed: 3\ntokenizer: {source: base}\nexclude: norm\n"
    (recipe,) = parse_recipe(MODELS + "merge_method: linear\n" + block + more)
    assert (recipe.align.method, recipe.learn.steps, recipe.learn.optimizer.name) == ("cca", 3, "adam")
    assert (recipe.chat_template, recipe.seed, recipe.tokenizer.source) == ("auto", 3, "base")
    assert [pattern.text for pattern in recipe.exclude] == ["norm"]


def test_anchors_and_merge_keys_are_followed():
    text = "models:\n- &first\n  model: a\n  parameters: {weight: 1}\n- <<: *first\n  model: b\nmerge_method: linear\n"
    (recipe,) = parse_recipe(text)
    assert [model.model for model in recipe.models] == ["a", "b"]
    assert recipe.models[1].parameters == recipe.models[0].parameters


def document(name, *models, **more):
    head = f"name: {name}\n" if name else ""
    return head + f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{', '.join(f'{{model: {m}}}' for m in models)}]\n"


def test_documents_come_after_those_that_they_use_and_the_one_without_a_name_last():
    text = "---\n".join([document("", "one", "two"), document("one", "two", "a"), document("two", "a", "b")])
    assert [recipe.name for recipe in parse_recipe(text)] == ["two", "one", None]


def test_a_name_wins_over_a_path():
    text = "---\n".join([document("a", "base", "b"), document("", "a", "b")])
    assert [recipe.name for recipe in parse_recipe(text)] == ["a", None]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ([document("x", "y", "a"), document("y", "x", "a"), document("", "x", "a")], "a cycle"),
        (
            [document("x", "x", "a"), document("", "a", "b")],
            "recipe.yml:4: models[0].model: uses the result 'x', which is made from this one",
        ),
        ([document("x", "a", "b"), document("x", "a", "b")], "the name 'x' is that of an earlier document"),
        ([document("", "a", "b"), document("", "a", "b")], "a second document without a name"),
        ([document("half", "a", "b"), document("", "hlaf", "b")], "unknown model 'hlaf': the nearest is 'half'"),
        ([document("x", "a", "b"), document("", "a", "b")], "the result 'x' is used by no document"),
    ],
)
def test_documents_that_do_not_fit_together_are_refused(documents, words):
    assert words in message("---\n".join(documents))


def test_a_recipe_that_cannot_be_read_is_named(folder):
    with pytest.raises(ValueError, match=r"missing\.yml: no such recipe$"):
        load_recipe(folder / "missing.yml")
    (folder / "linear.yml").write_text("")
    with pytest.raises(ValueError, match=r"linear\.yaml: no such recipe: the nearest is '.*linear\.yml'$"):
        load_recipe(folder / "linear.yaml")
    (folder / "bytes.yml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bytes\.yml: the recipe cannot be read"):
        load_recipe(folder / "bytes.yml")


def test_a_file_is_read_as_its_text_is(folder):
    (folder / "recipe.yml").write_text(MODELS + "merge_method: linear\n")
    (of_file,), (of_text,) = load_recipe(folder / "recipe.yml"), parse_recipe(MODELS + "merge_method: linear\n")
    assert repr(of_file) == repr(of_text)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_accepted_with_what_it_needs(name):
    method = METHODS[name]
    needed = {parameter.name: 0.5 for parameter in method.parameters if parameter.default is None}
    models = ["a", "b"] if method.most != 1 else ["a"]
    base = {"base_model": "a" if method.base == "first" else "base"} if method.needs_base else {}
    text = f"merge_method: {name}\nparameters: {needed}\nmodels: {[{'model': model} for model in models]}\n"
    (recipe,) = parse_recipe(text + "".join(f"{key}: {value}\n" for key, value in base.items()))
    assert recipe.merge_method == name


def snake(name):
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def test_names_of_blocks_are_those_of_classes():
    assert [snake(cls.__name__) for cls in alignment.ALIGNMENTS] == list(blocks.ALIGNMENTS)
    classes = {snake(name) for name in npmerge.__all__}
    assert classes.issuperset({*terms.TERMS, *terms.ELSEWHERE, *blocks.GRANULARITIES, *blocks.CONSTRAINTS})


def test_a_model_may_be_written_as_mergekit_writes_it(folder):
    (recipe,) = parse_recipe("merge_method: passthrough\nmodels: [{model: {model: {path: models/llama-7b}}}]\n")
    assert recipe.models[0].model == "models/llama-7b"


def test_files_that_are_no_recipes(folder):
    (folder / "bytes.yml").write_bytes(b"merge\xff")
    for name, said in (("models", "is a folder, expected a recipe"), ("bytes.yml", "byte 5 is no UTF-8")):
        with pytest.raises(ValueError, match=said):
            load_recipe(folder / name)


def test_a_link_to_nothing_is_no_model_and_is_not_proposed(folder):
    (folder / "models" / "linked").symlink_to("nowhere")
    text = "merge_method: linear\nmodels: [{model: models/linked, parameters: {weight: 1}}]\n"
    with pytest.raises(ValueError, match=r"'models/linked': expected a path \(no such file or folder: /.*/models/linked\)$"):
        parse_recipe(text)


def test_paths_that_were_meant_from_the_recipes_folder_say_so(folder, monkeypatch):
    (folder / "recipe.yml").write_text("merge_method: linear\nmodels: [{model: models/llama-7b, parameters: {weight: 1}}]\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    told = r"'models/llama-7b' is no path from here, where the command runs, but .*: give \.\./models/llama-7b$"
    with pytest.raises(ValueError, match=told):
        load_recipe("../recipe.yml")


def test_only_what_may_be_a_model_is_proposed(folder):
    (folder / "models" / "tuned").mkdir()
    (folder / "models" / "tune.txt").touch()
    text = "merge_method: linear\nmodels: [{model: models/tune, parameters: {weight: 1}}]\n"
    with pytest.raises(ValueError, match="unknown model 'models/tune': expected a path"):
        parse_recipe(text)
    (folder / "models" / "tuned" / "model.safetensors").touch()
    with pytest.raises(ValueError, match="unknown model 'models/tune': the nearest is 'models/tuned', expected a path"):
        parse_recipe(text)
