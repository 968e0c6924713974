"""The experiment on a MiniLM in its smallest form, on a BERT of one layer and texts made here: parts, heads, folders, page."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from experiments.minilm_folders import compared_with_transformers
from experiments.minilm_heads import Heads, own_task_loss
from experiments.minilm_settings import METHODS, OWN, PARAMETERS, PRESETS, TENSORS
from experiments.minilm_twice import Experiment, main
from experiments.run import Preset
from experiments.sentences import Sources, genres, load_text_tasks, parted, translations
from npmerge.checkpoint import to_named
from npmerge.models import Bert, abstract
from npmerge.reports.style import Drawn

WORDS = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lnrst"]
COMMON = " ".join(WORDS[::40])  # in many texts of both tasks
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT = Bert(vocabulary=len(SPECIAL) + len(WORDS), width=16, layers=1, heads=2, hidden=16, length=16)
CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "vocab_size": BERT.vocabulary, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 16,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "position_embedding_type": "absolute", "type_vocab_size": 2,
    "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    root = tmp_path_factory.mktemp("texts")
    rng = np.random.default_rng(0)
    for part in ("dev", "test"):
        rows = ["genre\tlabel\tsentence1_en\tsentence2_en\tsentence1_my\tsentence2_my"]
        for k in range(60):
            genre = k % 3
            premise = said(rng, genre)
            hypotheses = [said(rng, genre), said(rng, genre) if k % 10 else COMMON]
            rows += [f"genre{genre}\tneutral\t{premise}\t{hypothesis}\tx\ty" for hypothesis in hypotheses]
        (root / f"my.genre.{part}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    texts = [{language: said(rng, k % 3) for k, language in enumerate(["en", "tr", "ru", "de"])} for _ in range(100)]
    for text in texts[::10]:
        text["en"] = COMMON
    (root / "strings.jsonl").write_text("".join(json.dumps(x) + "\n" for x in texts), encoding="utf-8")
    bert_folder(root / "model")
    return Sources(root / "model", root, root / "strings.jsonl.xz")


def said(rng, who):
    """Six words, most of them of a third of the vocabulary."""
    return " ".join(WORDS[rng.integers(len(WORDS)) if rng.random() < 0.3 else rng.integers(60) + 45 * who] for _ in range(6))


def bert_folder(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(2)
    tensors = to_named(BERT, jax.tree.map(lambda x: np.float32(0.5 * rng.standard_normal(x.shape)), abstract(BERT).variables))
    pooler = {"pooler.dense.weight": np.eye(16, dtype=np.float32), "pooler.dense.bias": np.ones(16, np.float32)}
    save_file({**tensors, **pooler}, folder / "model.safetensors", {"format": "pt"})
    vocabulary = {token: k for k, token in enumerate([*SPECIAL, *WORDS])}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    made.add_special_tokens(SPECIAL)
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="module")
def out(sources, tmp_path_factory):
    path = tmp_path_factory.mktemp("minilm_twice")
    with pytest.MonkeyPatch.context() as patch:  # figures have tests of their own, and take seconds
        patch.setattr("npmerge.reports.folder.drawn", lambda figure: Drawn(figure.name.encode(), "<svg/>"))
        run(path, sources)
    return path


def run(path, sources, preset=Preset.test):
    main(preset=preset, out=path, seed=0, seeds=1, model=sources.model, xnli=sources.xnli, strings=sources.strings)


@pytest.fixture(scope="module")
def rows(out):
    return json.loads((out / "summary.json").read_text())["rows"]


def test_no_sentence_is_in_two_parts_and_the_test_part_is_that_of_every_seed(sources):
    sizes = PRESETS[Preset.test].sizes._replace(train=10**6, learning=10**6, selection=10**6, test=10**6)
    tasks = [load_text_tasks(sources, sizes, seed=seed) for seed in (0, 1)]
    everything = [x.tobytes() for task in tasks[0] for part in task[3:] for x in part.tokens]
    assert len(set(everything)) == len(everything) > 500
    for task, other in zip(*tasks, strict=True):
        parts = [{x.tobytes() for x in part.tokens} for part in (task.train, task.learning, task.selection, task.test)]
        assert all(parts) and len(set.union(*parts)) == sum(map(len, parts))
        np.testing.assert_array_equal(task.test.tokens, other.test.tokens)
        assert parts[0] != {x.tobytes() for x in other.train.tokens}
        assert set(task.train.labels) == {task.first, task.first + 1, task.first + 2}
    assert tasks[0][1].classes == ("de", "en", "tr")


def test_premises_and_translations_stay_together(sources):
    found = genres(sources.xnli)
    assert found.groups[:3] == [found.sentences[0]] * 3 and found.groups[3] == found.sentences[3] != found.groups[0]
    assert len(found.sentences) == 2 * 60 * 3 and len(set(found.groups)) == 2 * 60
    found = translations(sources.strings)
    assert found.labels[:6] == ["en", "tr", "de"] * 2 and found.groups[:6] == ["0"] * 3 + ["1"] * 3
    groups = np.array(found.groups)
    parts = [set(groups[places]) for places in parted(groups, 0)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 100


def test_the_loss_is_the_cross_entropy_among_the_classes_of_the_own_task():
    rng = np.random.default_rng(1)
    features, tokens = rng.standard_normal((4, 3, 5)), np.array([[5, 6, 0], [7, 0, 0], [8, 9, 10], [11, 12, 0]])
    labels, tasks = np.array([0, 4, 2, 3]), np.array([0, 0, 0, 1, 1])
    weights, biases = rng.standard_normal((5, 5)), rng.standard_normal(5)
    heads = Heads(weights.astype(np.float32), biases.astype(np.float32), tasks)
    got = own_task_loss(heads, lambda variables, x: jnp.float32(features), {}, None, (tokens, labels))
    losses = []
    for x, row, label in zip(features, tokens, labels, strict=True):
        own = np.flatnonzero(tasks == tasks[label])
        logits = (x[row != 0].mean(0) @ weights + biases)[own]
        losses.append(np.log(np.exp(logits).sum()) - logits[own == label][0])
    assert float(got) == pytest.approx(np.mean(losses), rel=1e-5)


def test_fine_tunes_are_folders_with_the_tensors_of_the_model(out, sources):
    base = load_file(sources.model / "model.safetensors")
    for task in ("genre", "language"):
        folder = out / "parents" / "seed_0" / task
        tuned = load_file(folder / "model.safetensors")
        assert list(tuned) == list(base)
        changed = {name for name, x in tuned.items() if not np.array_equal(x, base[name])}
        assert {"embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"} <= changed
        assert changed.isdisjoint({"pooler.dense.weight", "pooler.dense.bias"})
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            assert json.loads((folder / name).read_text()) == json.loads((sources.model / name).read_text())


def test_every_row_is_there_and_merges_lie_between_the_fine_tunes(out, rows):
    assert [row["method"] for row in rows] == list(METHODS)
    by_name = {row["method"]: row for row in rows}
    assert by_name[OWN]["genre"] == by_name["fine-tuned on genre"]["genre"]
    assert by_name[OWN]["accuracy"] == pytest.approx((by_name[OWN]["genre"] + by_name[OWN]["language"]) / 2)
    folder = out / "parents" / "seed_0"
    genre, language = (load_file(folder / x / "model.safetensors") for x in ("genre", "language"))
    for method, name in ((PARAMETERS, "per_parameter-1"), (TENSORS, "per_tensor-1")):
        assert by_name[method]["rate"] == 1
        merged = load_file(folder / name / "model.safetensors")
        low = high = 0.5
        for key, x in merged.items():
            apart = np.abs(language[key] - genre[key]) > 1e-4
            share = ((x - genre[key]) / np.where(apart, language[key] - genre[key], 1))[apart]
            assert ((share > -0.01) & (share < 1.01)).all()
            low, high = min([low, *share]), max([high, *share])
        assert low < 0.45 and high > 0.55  # something was learned


def test_the_page_shows_the_rows_and_nothing_is_done_twice(out, rows, sources, monkeypatch):
    page = (out / "README.md").read_text()
    for row in rows:
        assert f"| {row['method']} | {row['genre']:.3f} | {row['language']:.3f} |" in page
    assert (out / "shares.png").read_bytes() == b"shares"
    monkeypatch.setattr(Experiment, "prepare", lambda _: pytest.fail("every row is there"))
    run(out, sources)
    assert json.loads((out / "summary.json").read_text())["rows"] == rows
    with pytest.raises(ValueError, match="made with other settings"):
        run(out, sources, Preset.cpu)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason='needs pip install torch "npmerge[minilm]"')
def test_transformers_loads_the_merge_and_agrees(out):
    pytest.importorskip("transformers")
    found = compared_with_transformers(out / "parents" / "seed_0" / "per_tensor-1", [" ".join(WORDS[3:9]), WORDS[11]])
    assert found["same_tokens"] and not found["missing"] and not found["unexpected"]
    assert found["max_abs_difference"] < 1e-5 * max(1, found["largest"])
