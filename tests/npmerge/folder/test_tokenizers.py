"""Unions of tokenizers of each kind, as the package `tokenizers` reads and uses them."""

import json

import pytest
import tokenizers

from npmerge.folder.tokenizers import check_loads, cut_to, read_tokenizer
from npmerge.folder.union import union, with_tokens
from tests.npmerge.folder.folders import SPECIAL, added, tokenizer, words

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def bpe(merges, *special, **parts):
    """Letters, what the merges make of them, and special tokens that are not of the model."""
    letters = dict.fromkeys(letter for merge in merges for letter in "".join(merge.split()))
    tokens = [*letters, *dict.fromkeys(merge.replace(" ", "") for merge in merges)]
    tail = [added(token, len(tokens) + k) for k, token in enumerate(special)]
    model = {"type": "BPE", "vocab": {token: k for k, token in enumerate(tokens)}, "merges": merges}
    return tokenizer(model, added_tokens=tail, **{"pre_tokenizer": BYTES, "decoder": BYTES} | parts)


def pieces(prefix, *tokens):
    model = {"type": "WordPiece", "vocab": {token: k for k, token in enumerate(tokens)}, "unk_token": tokens[0]}
    model |= {"continuing_subword_prefix": prefix, "max_input_chars_per_word": 100}
    return tokenizer(model, added_tokens=[added(tokens[0], 0)], pre_tokenizer={"type": "Whitespace"})


def unigram(*scored, special=()):
    tail = [added(token, len(scored) + k) for k, token in enumerate(special)]
    model = {"type": "Unigram", "vocab": [list(one) for one in scored], "unk_id": 0, "byte_fallback": False}
    return tokenizer(model, added_tokens=tail)


@pytest.fixture
def read(tmp_path):
    def write(content):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(content))
        return read_tokenizer(folder)

    return write


def tokens_of(made, text):
    return tokenizers.Tokenizer.from_str(json.dumps(made.content)).encode(text).tokens


def test_of_whole_words(read):
    made, notes = union(read(words(["?", "red", "blue"])), [read(words(["?", "green", "red"]))])
    check_loads(made)
    assert made.ids == {"?": 0, "red": 1, "blue": 2, "green": 3} and not notes and not made.as_stored
    assert tokens_of(made, "green red pink") == ["green", "red", "?"]


def test_of_byte_pairs_has_the_merges_of_both_and_keeps_numbers(read):
    base, other = read(bpe(["t h", "th e"], "<end>")), read(bpe(["a n", "an d", "t h"], "<start>"))
    made, notes = union(base, [other])
    check_loads(made)
    assert {token: made.ids[token] for token in base.ids} == dict(base.ids) and not notes
    assert set(made.ids) == {*base.ids, *other.ids} and sorted(made.ids.values()) == list(range(len(made.ids)))
    assert tokens_of(made, "theand<end><start>thn") == ["the", "and", "<end>", "<start>", "th", "n"]
    assert made.content["model"]["merges"] == ["t h", "th e", "a n", "an d"]
    assert tokens_of(base, "the") == ["the"]


def test_merges_with_spaces_in_them_are_written_as_pairs(read):
    spaced = bpe(["a b"])
    spaced["model"] |= {"vocab": {"x y": 0, "z": 1, "x yz": 2}, "merges": [["x y", "z"]]}
    made, _ = union(read(bpe(["a b"])), [read(spaced)])
    check_loads(made)
    assert made.content["model"]["merges"] == [["a", "b"], ["x y", "z"]]


def test_byte_pairs_of_text_cut_otherwise_are_found_literally_and_said(read):
    other = read(bpe(["a n"], pre_tokenizer={"type": "Whitespace"}))
    made, notes = union(read(bpe(["t h"])), [other])
    check_loads(made)
    assert len(notes) == 1 and "3 tokens of" in notes[0] and "only found literally" in notes[0]
    assert tokens_of(made, "than") == ["th", "an"] and made.content["model"]["merges"] == ["t h"]
    assert not made.added["an"]["special"]


def test_of_word_pieces(read):
    made, notes = union(read(pieces("##", "?", "red", "##ish")), [read(pieces("##", "?", "blue", "##y"))])
    check_loads(made)
    assert not notes and tokens_of(made, "redy blueish") == ["red", "##y", "blue", "##ish"]


def test_of_unigrams_keeps_scores_and_the_places_of_added_tokens(read):
    base = read(unigram(("?", 0.0), ("a", -1.0), ("b", -2.0), special=("<end>",)))
    other = read(unigram(("?", 0.0), ("ab", -0.5), ("c", -3.0)))
    made, _ = union(base, [other])
    check_loads(made)
    assert made.ids == {"?": 0, "a": 1, "b": 2, "<end>": 3, "ab": 4, "c": 5}
    assert made.content["model"]["vocab"][3:] == [["<end>", -2.0], ["ab", -0.5], ["c", -3.0]]
    assert tokens_of(made, "abc<end>") == ["ab", "c", "<end>"]


def test_of_unigrams_with_gaps_is_refused(read):
    gap = unigram(("?", 0.0), ("a", -1.0))
    gap["added_tokens"] = [added("<end>", 7)]
    with pytest.raises(ValueError, match="numbers 3 tokens up to 7: tokens cannot be added to a Unigram"):
        union(read(gap), [read(unigram(("?", 0.0), ("b", -1.0)))])


def test_of_different_kinds(read):
    made, notes = union(read(words(["?", "red"])), [read(unigram(("?", 0.0), ("blue", -1.0)))])
    check_loads(made)
    assert "Unigram" in notes[0] and tokens_of(made, "red blue")[-1] == "blue"


def test_of_the_same_tokens_is_the_base(read):
    base = read(words(["?", "red"]))
    assert union(base, [read(words(["?", "red"]))]) == (base, []) and with_tokens(base, {"red": None}) is base


def test_added_tokens_keep_their_first_settings(read):
    base, other = read(bpe(["t h"])), bpe(["t h"], "<end>")
    stripped = json.loads(json.dumps(other))
    stripped["added_tokens"][0]["lstrip"] = True
    made, _ = union(base, [read(other), read(stripped)])
    assert made.added["<end>"] == {"id": 3, "content": "<end>", **SPECIAL}


def test_tokens_with_gaps_are_added_after_the_last(read):
    gap = words(["?", "red"])
    gap["model"]["vocab"]["blue"] = 9
    made = with_tokens(read(gap), {"new": None})
    check_loads(made)
    assert made.ids["new"] == 10 and tokens_of(made, "new blue") == ["new", "blue"]


def test_cut_to_the_rows_of_a_table(read):
    cut = cut_to(read(bpe(["t h", "th e"], "<end>")), 4)  # t h e th | the <end>
    check_loads(cut)
    assert list(cut.ids) == ["t", "h", "e", "th"] and tokens_of(cut, "the") == ["th", "e"]
    assert list(cut_to(read(unigram(("?", 0.0), ("a", -1.0), ("b", -2.0))), 2).ids) == ["?", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no tokenizer: it has no model"),
        ('{"model": {"type": "Strange", "vocab": {}}}', "of type 'Strange', expected one of BPE, WordPiece"),
        ('{"model": {"type": "BPE"}}', "is a damaged tokenizer"),
    ],
)
def test_files_that_are_no_tokenizers(tmp_path, text, message):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_tokenizer(tmp_path)
    assert "tokenizer.json" in str(error.value)


def test_what_the_package_cannot_load_or_numbers_otherwise(read):
    broken = bpe(["t h"])
    broken["model"]["merges"] = ["q x"]
    with pytest.raises(ValueError, match="cannot be loaded"):
        check_loads(read(broken))
    shifted = words(["?", "red"])
    shifted["added_tokens"].append(added("<end>", 5))  # readers give it the next number
    with pytest.raises(ValueError, match="'<end>' is 5 in the file, 2 when it is loaded"):
        check_loads(read(shifted))
