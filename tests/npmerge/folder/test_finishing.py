"""What stands beside the weights: configuration, tokenizer, template, card, record."""

import json
import os
from dataclasses import replace

import jinja2
import numpy as np
import pytest
import yaml

from npmerge.checkpoint.sharded import open_model
from npmerge.commands.planning import planned
from npmerge.folder import Provenance, differences, finish, make_vocabulary, recipe_of_record, record
from npmerge.folder.card import card, name_of
from npmerge.folder.configs import changed_config
from npmerge.folder.record import hash_of_file
from npmerge.folder.templates import TEMPLATES, check_template, chosen_template
from npmerge.recipe.plan import Source, Step
from tests.npmerge.folder.folders import copying, of_words, recipe, tensors, words, write_model

WORDS = ["<unk>", "red", "blue"]
MADE = Provenance(
    "merge_method: linear\n", {"out_shard_size": "5GB"}, {"a/model.safetensors": "11" * 32}, {"model.safetensors": "22" * 32}
)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def read(path):
    return json.loads(path.read_text())


def finished(out, plan, text="", vocabulary=None):
    return finish(out, plan, recipe(text, [m.path for m in plan.models]), MADE, vocabulary=vocabulary, name="merged")


def test_what_is_no_weight_goes_along_and_nothing_else(tmp_path, out):
    extra = {"LICENSE": "free", "modeling__py": "raise SystemExit", "README__md": "old", "model2__onnx": "x", ".hidden": "x"}
    folder = of_words(tmp_path / "a", 0, WORDS, generation_config__json={"top_p": 0.5}, **extra)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text("x")
    notes = finished(out, copying(folder))
    files = {"LICENSE", "modeling.py", "generation_config.json", "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {p.name for p in out.iterdir()} == files | {"README.md", "npmerge.json", "1_Pooling"}
    assert (out / "1_Pooling" / "config.json").is_file() and "onnx/ was not carried over" in notes[0] and len(notes) == 1
    for name in files - {"config.json"}:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert read(out / "config.json") == read(folder / "config.json")


def test_what_is_no_plain_file_is_left_behind_and_said(tmp_path, out):
    folder = of_words(tmp_path / "a", 0, WORDS)
    (folder / "vocab.txt").symlink_to("nowhere")
    (folder / "up").symlink_to("..")
    os.mkfifo(folder / "pipe")
    (folder / "extra").mkdir()
    (folder / "extra" / "link").symlink_to("nowhere")
    notes = finished(out, copying(folder))
    assert [note.split(" was not carried over: ")[0] for note in notes] == ["extra/", "pipe", "up", "vocab.txt"]
    assert not {"extra", "pipe", "up", "vocab.txt"} & {path.name for path in out.iterdir()}


def test_a_configuration_that_is_no_object_is_refused_before_anything_is_made(tmp_path):
    folder = of_words(tmp_path / "a", 0, WORDS, tokenizer_config__json=[])
    model = open_model(folder)
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: expected a JSON object, got list"):
        make_vocabulary(recipe("chat_template: chatml", [folder]), {str(folder): model})


def test_a_single_file_without_configuration_has_nothing_beside_it(tmp_path, out):
    folder = write_model(tmp_path / "a", tensors(0, 3), secrets__txt="x")
    finished(out, copying(folder / "model.safetensors"))
    assert {p.name for p in out.iterdir()} == {"README.md", "npmerge.json"}


def test_configuration_follows_dtype_layers_and_rows_where_it_has_such_keys(tmp_path):
    text = {"vocab_size": 3, "num_hidden_layers": 2, "layer_types": ["full", "sliding"], "dtype": "float32", "layers": "x"}
    config = {"text_config": text, "hidden_size": 3, "torch_dtype": "float32", "num_heads": 2}
    a = write_model(tmp_path / "a", tensors(0, 3), config)
    b = write_model(tmp_path / "b", tensors(1, 3), {"text_config": {**text, "layer_types": ["chunked", "linear"]}})
    stacked = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1)}
    changed = changed_config(copying(a, b, dtype="BF16", layers=stacked), old_rows=3, new_rows=8)
    expected = {"vocab_size": 8, "num_hidden_layers": 4, "dtype": "bfloat16", "layers": "x"}
    expected["layer_types"] = ["full", "sliding", "chunked", "linear"]
    assert changed == {"text_config": expected, "hidden_size": 3, "torch_dtype": "bfloat16", "num_heads": 2}
    assert changed_config(copying(a, b)) == config


def test_layers_in_another_order_take_their_own_entries_of_lists(tmp_path):
    folder = write_model(tmp_path / "a", tensors(0, 3), {"num_hidden_layers": 2, "layer_types": ["full", "sliding"]})
    assert changed_config(copying(folder, layers={0: (0, 1), 1: (0, 0)}))["layer_types"] == ["sliding", "full"]


STACKED = {0: (0, 0)}


@pytest.mark.parametrize(
    ("stack", "config", "changed"),
    [
        ("vision.blocks", {"vision_config": {"depth": 2}, "text_config": {"num_hidden_layers": 2}}, "text_config"),
        ("encoder.layers", {"num_layers": 2, "encoder_layers": 2}, "num_layers"),
        ("h", {"n_layer": 2, "num_heads": 2, "depth": 3, "use_layers": True}, ""),  # two stacks as high, and nothing tells
    ],
)
def test_a_stack_that_stays_keeps_its_number_of_layers(tmp_path, stack, config, changed):
    arrays = tensors(0, 3) | {f"{stack}.{k}.weight": np.zeros(2, np.float32) for k in range(2)}
    plan = copying(write_model(tmp_path / "a", arrays, config), layers=STACKED)
    result = changed_config(plan)
    assert {key for key in config if result[key] != config[key]} == ({changed} if changed else set())
    assert changed != "num_layers" or result["num_layers"] == 1


def union_of(tmp_path, text, **files):
    a = of_words(tmp_path / "a", 0, WORDS, vocab__txt="\n".join(WORDS), **files)
    b = of_words(tmp_path / "b", 1, ["<unk>", "<end>", "red"], config__json={"vocab_size": 3, "bos_token_id": 2})
    opened = {str(path): open_model(path) for path in (a, b)}
    return a, b, make_vocabulary(recipe(text.replace("B", str(b)), [a, b], a), opened)


def test_a_union_is_written_as_one_tokenizer_and_what_it_contradicts_is_left_out(tmp_path, out):
    settings = {"added_tokens_decoder": {}, "unk_token": "<unk>"}
    a, b, vocabulary = union_of(tmp_path, "tokenizer_source: union", tokenizer_config__json=settings)
    finished(out, copying(a, b), vocabulary=vocabulary)
    assert read(out / "tokenizer.json")["model"]["vocab"] == {"<unk>": 0, "red": 1, "blue": 2, "<end>": 3}
    assert read(out / "config.json")["vocab_size"] == 4 and read(out / "config.json")["bos_token_id"] == 1
    assert not (out / "vocab.txt").exists()
    decoder = read(out / "tokenizer_config.json")["added_tokens_decoder"]
    assert decoder["0"]["content"] == "<unk>" and decoder["0"]["special"] is True


def test_another_models_tokenizer_brings_its_files_and_numbers(tmp_path, out):
    generation = {"eos_token_id": [1, 2], "pad_token_id": None, "top_k": 1}
    a, b, vocabulary = union_of(tmp_path, "tokenizer_source: B", generation_config__json=generation)
    finished(out, copying(a, b), vocabulary=vocabulary)
    assert (out / "tokenizer.json").read_bytes() == (b / "tokenizer.json").read_bytes() and not (out / "vocab.txt").exists()
    assert read(out / "config.json")["bos_token_id"] == 2  # as b says
    assert read(out / "generation_config.json") == {"eos_token_id": [2, 2], "pad_token_id": None, "top_k": 1}  # red is 2 in b


def test_the_bases_tokenizer_stays_as_it_is(tmp_path, out):
    a, b, vocabulary = union_of(tmp_path, "tokenizer_source: base")
    finished(out, copying(a, b), vocabulary=vocabulary)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        assert (out / name).read_bytes() == (a / name).read_bytes()


def test_tokenizers_that_do_not_agree_are_told_with_the_plan_where_the_recipe_is_silent(tmp_path):
    a, b = of_words(tmp_path / "a", 0, WORDS), of_words(tmp_path / "b", 1, ["<unk>", "blue", "red"])
    c = of_words(tmp_path / "c", 2, WORDS, tokenizer__json=words(WORDS, decoder=None))
    (note,) = planned(recipe("", [a, b, c]), {}).plan.warnings
    assert str(b) in note and "numbers 2 tokens otherwise" in note and "tokenizer_source" in note
    assert not planned(recipe("tokenizer_source: union", [a, b, c]), {}).plan.warnings


@pytest.mark.parametrize("own", [True, False])
def test_a_template_is_set_where_readers_look(tmp_path, out, own):
    settings = {"tokenizer_config__json": {"chat_template": "old"}} | ({"chat_template__jinja": "old"} if own else {})
    finished(out, copying(of_words(tmp_path / "a", 0, WORDS, **settings)), "chat_template: chatml")
    assert read(out / "tokenizer_config.json")["chat_template"] == TEMPLATES["chatml"]
    assert (out / "chat_template.jinja").is_file() == own
    assert not own or (out / "chat_template.jinja").read_text() == TEMPLATES["chatml"]


def test_auto_takes_the_template_of_most_models(tmp_path, out):
    named = [{"name": "tool", "template": "x"}, {"name": "default", "template": "{{ b }}\n"}]
    a = of_words(tmp_path / "a", 0, WORDS, tokenizer_config__json={"chat_template": "{{ a }}"})
    b = of_words(tmp_path / "b", 1, WORDS, tokenizer_config__json={"chat_template": named})
    c = of_words(tmp_path / "c", 2, WORDS, chat_template__jinja="{{ b }}")
    assert chosen_template("auto", [a, b, c]) == "{{ b }}" and chosen_template("auto", [a, b]) == "{{ a }}"
    assert chosen_template("{{ mine }}", [a]) == "{{ mine }}"
    finished(out, copying(a, b, c), "chat_template: auto")
    assert read(out / "tokenizer_config.json")["chat_template"] == "{{ b }}"
    assert "found none" in finished(out, copying(of_words(tmp_path / "d", 0, WORDS)), "chat_template: auto")[-1]


def test_a_template_of_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="unknown chat template 'chat_ml': the nearest is 'chatml'"):
        check_template("chat_ml")


TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}, {"role": "user", "content": "Why?"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("chatml", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"),
        ("mistral", "<s>[INST] Hi [/INST] Yes</s>[INST] Why? [/INST]"),
        ("alpaca", "### Instruction:\nHi\n\n### Response:\nYes\n\n### Instruction:\nWhy?\n\n"),
        (
            "llama3",
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes"
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>",
        ),
    ],
)
def test_named_templates_write_turns_as_published(name, text):
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATES[name])
    assert template.render(messages=TURNS, bos_token="<s>", eos_token="</s>") == text
    asked = template.render(messages=TURNS[:1], bos_token="<s>", eos_token="</s>", add_generation_prompt=True)
    assert name == "mistral" or "ssistant" in asked.split("Hi")[1] or asked.endswith("### Response:\n")


def test_the_card_holds_front_matter_models_and_recipe(tmp_path):
    plan = copying(of_words(tmp_path / "a", 0, WORDS), of_words(tmp_path / "b", 1, WORDS))
    text = card(plan, Provenance("merge_method: linear # ```\n"), "merged")
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["merge", "npmerge"]}
    hub = card(plan, Provenance("", models=("org/net-7b", "../genre", "made/a.safetensors")), "merged")
    assert yaml.safe_load(hub.split("---\n", 2)[1])["base_model"] == ["org/net-7b"] and "A merge of 3 models" in hub
    assert body.startswith("# merged\n") and "| copied bit for bit | 5 tensors |" in body
    assert "````yaml\nmerge_method: linear # ```\n````\n" in body


def test_the_card_says_what_averaged_statistics_need(tmp_path):
    plan = copying(of_words(tmp_path / "a", 0, WORDS))
    name = "bn.running_mean"
    merged = Step(name, (3,), "F32", "merge", (Source(0, name), Source(1, name)), method="linear")
    said = card(replace(plan, steps=(*plan.steps, merged)), MADE, "merged")
    assert "\n\nRunning statistics are averaged (bn.running_mean): " in said and "`npmerge.reset_statistics`" in said
    assert "statistics" not in card(plan, MADE, "merged")


def test_the_card_says_what_learning_gained(tmp_path):
    rows = {"a": (0.5, 2.0), "b": (0.7, 1.5), "start": (0.25, 3.0), "learned": (0.75, None)}
    networks = {name: {"accuracy": a, "loss": b, "examples": 1200} for name, (a, b) in rows.items()}
    history = {"evaluation": {"held_out": True, "count": 1200, "networks": networks}, "held_out_loss": [1.0, None, 0.5]}
    plan = copying(of_words(tmp_path / "a", 0, WORDS))
    said = card(plan, MADE, "merged", None, history)
    gained = "accuracy 0.7500, loss not finite; the start 0.2500, 3.0000; `b`, the most accurate input, 0.7000, 1.5000"
    assert f"| 1,200 held-out examples | {gained} |" in said
    history["evaluation"]["count"] = 30
    assert f"| 30 held-out examples (1,200 predictions) | {gained} |" in card(plan, MADE, "merged", None, history)
    networks["base"] = networks["b"] | {"accuracy": 0.8}
    assert "`base`, the most accurate input, 0.8000" in card(plan, MADE, "merged", None, history)
    history["evaluation"]["networks"] = {}
    assert "held-out" not in card(plan, MADE, "merged", None, history)
    judged = {"genre": 0.9, "language": None, "start": 1.0, "learned": 0.5}
    history["evaluation"]["objective"] = judged
    row = "| objective on what is held out | 0.5000; the start 1.0000; `genre`, the best input, 0.9000 |"
    assert row in card(plan, MADE, "merged", None, history)
    history["evaluation"]["held_out"] = False
    assert "held-out" not in card(plan, MADE, "merged", None, history)


def test_a_model_is_named_as_strangers_know_it():
    assert name_of("/home/me/models--org--net-7b/snapshots/0f") == "org/net-7b"
    assert (name_of("/home/me/net"), name_of("../net")) == ("net", "../net")


def test_the_record_says_what_makes_the_same_bytes_again(tmp_path, out):
    finished(out, copying(of_words(tmp_path / "a", 0, WORDS)))
    replay = recipe_of_record(out / "npmerge.json")
    assert replay.provenance == MADE and replay.seed == 7 and not replay.mergekit_semantics
    assert {"npmerge", "numpy", "jax"} == set(replay.versions) and all(replay.versions.values())
    first = (out / "npmerge.json").read_bytes()
    finished(out, copying(tmp_path / "a"))
    assert (out / "npmerge.json").read_bytes() == first


def test_changed_inputs_and_outputs_are_told_by_name(tmp_path, out):
    finished(out, copying(of_words(tmp_path / "a", 0, WORDS)))
    replay = recipe_of_record(out / "npmerge.json")
    assert differences(replay, MADE) == [] == differences(replay, Provenance(MADE.recipe))
    file = tmp_path / "a" / "model.safetensors"
    again = Provenance(MADE.recipe, MADE.options, {str(file): hash_of_file(file)}, MADE.outputs)
    found = differences(replay, again)
    assert len(found) == 2 and "recorded was 111111111111" in found[-1] + found[0]


def test_a_hash_is_that_of_the_whole_file_and_of_the_standard(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"IETF")
    assert hash_of_file(file) == "blake3:83a2de1ee6f4e6ab686889248f4ec0cf4cc5709446a682ffd1cbb4d6165181e2"
    file.write_bytes(np.random.default_rng(0).bytes(200_000))  # no piece is like another
    whole = hash_of_file(file)
    monkeypatch.setattr(record, "CHUNK", 2**16)
    assert hash_of_file(file) == whole
    file.write_bytes(b"")
    assert hash_of_file(file) == "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    with pytest.raises(ValueError, match=r"cannot read .*: No such file"):
        hash_of_file(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no record"),
        ('{"format": 9}', "format 9, expected 1"),
        ('{"format": 1}', "has no 'recipe'"),
    ],
)
def test_files_that_are_no_records(tmp_path, text, message):
    (tmp_path / "npmerge.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipe_of_record(tmp_path / "npmerge.json")


def test_the_hash_of_a_folder_is_that_of_its_files_and_their_names(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "a").mkdir(parents=True)
        (tmp_path / folder / "a" / "x").write_bytes(b"1")
    assert record.hash_of_path(tmp_path / "one") == record.hash_of_path(tmp_path / "two")
    (tmp_path / "two" / "a" / "x").rename(tmp_path / "two" / "a" / "y")
    assert record.hash_of_path(tmp_path / "one") != record.hash_of_path(tmp_path / "two")
