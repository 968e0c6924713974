"""Which row a token gets, against the rule written out in Python, and what is refused."""

import numpy as np
import pytest

from npmerge.checkpoint.sharded import open_model
from npmerge.folder import make_vocabulary
from npmerge.recipe.plan import Rows, Source
from npmerge.stream.rows import dtype_of_rows, read_rows
from tests.npmerge.folder.folders import EMBEDDING, HEAD, HIDDEN, of_words, recipe, words, write_model

WORDS = {"a": ["<unk>", "red", "blue", "green"], "b": ["<unk>", "green", "red", "grey"], "c": ["<unk>", "grey", "pink"]}


@pytest.fixture
def folders(tmp_path):
    return {name: of_words(tmp_path / name, k, tokens) for k, (name, tokens) in enumerate(WORDS.items())}


def vocabulary(folders, text, names="abc", base="a"):
    models = [folders[name] for name in names]
    opened = {str(path): open_model(path) for path in models}
    made = make_vocabulary(recipe(text, models, folders[base] if base else None), opened)
    return made, list(opened.values())


def tables(made, opened, name=EMBEDDING):
    """What each model's table becomes, by token."""
    sources = made.resized([Source(k, name) for k in range(len(opened))])
    arrays = [read_rows(opened, s.rows) if s.rows else opened[s.model].read(name) for s in sources]
    assert all(x.dtype == np.float32 and x.size == made.rows * HIDDEN for x in arrays)
    return [{t: x.reshape(-1, HIDDEN)[k] for t, k in made.tokenizer.ids.items()} for x in arrays]


def rows_of(opened, name=EMBEDDING):
    return [dict(zip(WORDS[model.path.name], model.read(name).reshape(-1, HIDDEN), strict=True)) for model in opened]


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_union_gives_tokens_that_a_model_lacks_the_bases_row_or_the_mean(folders, name):
    made, opened = vocabulary(folders, "tokenizer_source: union")
    assert made.tokenizer.ids == {"<unk>": 0, "red": 1, "blue": 2, "green": 3, "grey": 4, "pink": 5}
    assert all(made.holds(k, name) for k in range(3)) and not made.holds(0, "model.norm.weight")
    own = rows_of(opened, name)
    for table, mine in zip(tables(made, opened, name), own, strict=True):
        for token, row in table.items():
            having = [rows[token] for rows in own if token in rows]
            expected = mine.get(token, own[0].get(token, np.mean(having, axis=0)))
            np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_without_a_base_tokens_that_some_models_lack_get_the_mean_of_the_others(folders):
    made, opened = vocabulary(folders, "tokenizer_source: union", base=None)
    own, table = rows_of(opened), tables(made, opened)[2]
    np.testing.assert_allclose(table["red"], (own[0]["red"] + own[1]["red"]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(table["blue"], own[0]["blue"])  # of one model: its bits


def test_base_keeps_its_table_and_others_follow_its_order(folders):
    made, opened = vocabulary(folders, "tokenizer_source: base")
    assert made.tokenizer.ids == {token: k for k, token in enumerate(WORDS["a"])} and made.folder == folders["a"]
    sources = made.resized([Source(0, EMBEDDING), Source(1, EMBEDDING)])
    assert sources[0].rows is None and sources[1].rows is not None
    own, (_, table, _) = rows_of(opened), tables(made, opened)
    np.testing.assert_array_equal(table["green"], own[1]["green"])
    np.testing.assert_array_equal(table["blue"], own[0]["blue"])


def test_the_tokens_of_a_model_or_of_a_folder_that_is_not_merged(folders, tmp_path):
    made, _ = vocabulary(folders, f"tokenizer_source: {folders['c']}")
    assert list(made.tokenizer.ids) == WORDS["c"] and made.folder == folders["c"]
    other = write_model(tmp_path / "other", {"x": np.zeros(1, np.float32)}, tokenizer__json=words(["<unk>", "red", "new"]))
    made, opened = vocabulary(folders, f"tokenizer_source: {other}", "ab")
    assert not any(table["new"].any() for table in tables(made, opened))  # no model has it


def test_tokens_that_the_recipe_names(folders):
    b, c = folders["b"], folders["c"]
    text = f"""
tokenizer:
  source: base
  pad_to_multiple_of: 4
  tokens:
    red: {{source: {b}, force: true}}
    green: {{source: {{kind: zero}}}}
    pink: {{source: {c}}}
    new: {{source: {{kind: model_token, model: {b}, token: grey}}}}
    newer: {{source: {{kind: model_token, model: {b}, token_id: 1}}}}
"""
    made, opened = vocabulary(folders, text)
    assert len(made.tokenizer.ids) == 7 and made.rows == 8 and made.folder is None
    own = rows_of(opened)
    for k, table in enumerate(tables(made, opened)):
        np.testing.assert_array_equal(table["red"], own[1]["red"])
        np.testing.assert_array_equal(table["green"], own[k].get("green", np.zeros(HIDDEN)))
        np.testing.assert_array_equal(table["pink"], own[2]["pink"])
        np.testing.assert_array_equal(table["new"], own[1]["grey"])
        np.testing.assert_array_equal(table["newer"], own[1]["green"])
    source = made.resized([Source(k, EMBEDDING) for k in range(3)])[0]
    full = read_rows(opened, source.rows).reshape(-1, HIDDEN)
    np.testing.assert_allclose(full[7], full[:7].mean(0), rtol=1e-6)


def test_an_added_token_is_special_if_it_is_in_the_model_that_it_comes_from(folders, tmp_path):
    chat = words([*WORDS["a"], "<end>"])
    chat["added_tokens"].append({**chat["added_tokens"][0], "id": 4, "content": "<end>"})
    folders["chat"] = of_words(tmp_path / "chat", 9, list(chat["model"]["vocab"]), tokenizer__json=chat)
    text = f"tokenizer: {{source: base, tokens: {{<end>: {{source: {folders['chat']}}}}}}}"
    made, _ = vocabulary(folders, text, ("a", "chat"))
    assert made.tokenizer.added["<end>"]["special"] and made.tokenizer.ids["<end>"] == 4


def test_a_model_without_a_tokenizer_is_taken_to_know_the_bases_tokens(folders):
    (folders["b"] / "tokenizer.json").unlink()
    made, _ = vocabulary(folders, "tokenizer_source: base", "ab")
    assert "b has no tokenizer.json" in made.notes[0]
    assert made.resized([Source(0, EMBEDDING), Source(1, EMBEDDING)])[1].rows is None


def test_tokens_without_rows_are_left_out_and_rows_without_tokens_too(tmp_path):
    folders = {
        "a": of_words(tmp_path / "a", 0, WORDS["a"], rows=3),
        "b": of_words(tmp_path / "b", 1, ["<unk>", "blue", "red"], rows=5),
    }
    made, opened = vocabulary(folders, "tokenizer_source: union", "ab")
    assert made.rows == 3 and made.tokenizer.ids == {"<unk>": 0, "red": 1, "blue": 2}
    assert "beyond the 3 rows" in made.notes[0]
    assert tables(made, opened)[1]["red"].tolist() == opened[1].read(EMBEDDING).reshape(-1, HIDDEN)[2].tolist()


def test_without_a_word_about_tokens_there_is_no_vocabulary(folders):
    assert vocabulary(folders, "")[0] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokenizer_source: P", r"tokenizer_source: unknown source of tokens .* \(no folder with a tokenizer\.json\)"),
        ("chat_template: chat_ml", r"recipe:\d+: chat_template: unknown chat template 'chat_ml': the nearest is 'chatml'"),
        ("tokenizer: {source: P}", r"tokenizer\.source: unknown source of tokens"),
        ("tokenizer: {tokens: {red: {force: true}}}", "tokenizer.tokens.red: force needs a source"),
        ("tokenizer: {tokens: {red: {source: nowhere}}}", "unknown model 'nowhere'"),
        ("tokenizer: {tokens: {x: {source: B}}}", "has no token 'x'"),
        ("tokenizer: {tokens: {x: {source: {kind: model_token, model: B, token_id: 4}}}}", "has 4 rows, got token_id 4"),
    ],
)
def test_what_a_recipe_says_of_tokens_is_refused(folders, text, message):
    with pytest.raises(ValueError, match=message) as error:
        vocabulary(folders, text.replace("B", str(folders["b"])).replace("P", str(folders["b"].parent)))
    assert str(error.value).startswith("recipe:")


def test_a_token_of_a_model_that_is_not_in_this_table_is_refused(folders):
    made, _ = vocabulary(
        folders, f"tokenizer: {{tokens: {{new: {{source: {{kind: zero}}}}, pink: {{source: {folders['c']}}}}}}}"
    )
    with pytest.raises(ValueError, match="takes the token 'pink' from a model that is not merged"):
        made.resized([Source(0, EMBEDDING), Source(1, EMBEDDING)])


def test_models_that_say_something_wrong_of_their_tables(folders, tmp_path):
    of_words(tmp_path / "wrong", 0, WORDS["a"], config__json={"vocab_size": 99})
    folders["wrong"] = tmp_path / "wrong"
    with pytest.raises(ValueError, match="has no table of 99 tokens"):
        vocabulary(folders, "tokenizer_source: base", ("a", "wrong"))
    (folders["a"] / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"a has no tokenizer\.json"):
        vocabulary(folders, "tokenizer_source: base")


def test_rows_are_the_same_in_pieces_and_keep_their_bits(folders):
    opened = [open_model(folders[name]) for name in "ab"]
    draw = np.random.default_rng(0)
    single = np.full((9, 2), -1, np.int32)
    single[np.arange(9), draw.integers(0, 2, 9)] = draw.integers(0, 4, 9)
    shared = np.where(draw.random((9, 2)) < 0.7, draw.integers(0, 4, (9, 2)), -1).astype(np.int32)
    for table, padding in ((single, 0), (shared, 0), (shared, 3)):
        rows = Rows((0, 1), (EMBEDDING, HEAD), table, padding)
        whole = read_rows(opened, rows)
        assert whole.size == (9 + padding) * HIDDEN
        for start, count in ((0, 1), (1, 5), (4, 14), (25, whole.size - 25), (whole.size - 1, 1), (3, 0)):
            np.testing.assert_array_equal(read_rows(opened, rows, start, count), whole[start : start + count])


def test_rows_of_one_model_stay_in_its_dtype_and_means_are_of_float32(tmp_path, folders):
    half = write_model(tmp_path / "half", {EMBEDDING: np.arange(6, dtype=np.float16).reshape(2, HIDDEN)})
    opened = [open_model(half), open_model(folders["a"])]
    swapped = Rows((0,), (EMBEDDING,), np.array([[1], [0], [-1]], np.int32))
    assert dtype_of_rows(opened, swapped) == np.float16
    np.testing.assert_array_equal(read_rows(opened, swapped), np.array([3, 4, 5, 0, 1, 2, 0, 0, 0], np.float16))
    mixed = Rows((0, 1), (EMBEDDING, EMBEDDING), np.array([[1, -1], [1, 1]], np.int32))
    assert read_rows(opened, mixed).dtype == np.float32 == dtype_of_rows(opened, mixed)
    np.testing.assert_array_equal(read_rows(opened, mixed)[:3], [3, 4, 5])
