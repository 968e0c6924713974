"""Sentences as a grid: files as they are published, and what each task asks for."""

import lzma

import jax
import numpy as np
import pytest

from experiments.compositional.presets import PRESETS
from experiments.compositional.texts import CORPORA, FIRST, HIDDEN, PAD, SECOND, SPECIAL, hidden, text_cells
from experiments.compositional.xnli import made_corpus, read_corpus

TASK = next(task for task in PRESETS["test"].tasks if task.setting == "text")


@pytest.fixture
def folder(tmp_path):
    """The form of akhtet/myXNLI, a row for each part."""
    for language, text in {"my": "one\ttwo\tတစ်\tနှစ်", "sw": "moja\tmbili", "ur": "ایک\tدو"}.items():
        header = "genre\tlabel\tsentence1\tsentence2"
        for part, label in (("dev", "neutral"), ("test", "contradiction")):
            content = f"{header}\nslate\t{label}\t{text}\n"
            (tmp_path / f"{language}.genre.{part}.tsv.xz").write_bytes(lzma.compress(content.encode()))
    return tmp_path


def test_files_are_read_row_by_row(folder):
    corpus = read_corpus(folder)
    assert corpus.premises == {"en": ["one"] * 2, "my": ["တစ်"] * 2, "sw": ["moja"] * 2, "ur": ["ایک"] * 2}
    assert corpus.hypotheses["sw"] == ["mbili"] * 2
    assert corpus.labels.tolist() == [1, 0] and corpus.premise.tolist() == corpus.genres.tolist() == [0, 0]


def test_rows_that_are_not_the_same(folder):
    (folder / "sw.genre.dev.tsv.xz").write_bytes(lzma.compress(b"genre\tlabel\ta\tb\nslate\tentailment\tx\ty\n"))
    with pytest.raises(ValueError, match="rows in sw"):
        read_corpus(folder)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"my\.genre\.dev"):
        CORPORA["xnli"](str(tmp_path))


def test_cells_ask_for_their_classes():
    corpus = made_corpus()
    cells = text_cells(TASK, corpus, 0)
    assert len(cells.test) == 12 and cells.grid.domains == ("Swahili", "Urdu", "Burmese")
    ends = np.cumsum((0, *corpus.classes))
    for cell, part in cells.test.items():
        tokens, categories = part.inputs["x"], part.inputs["category"]
        assert (categories == cell.category).all() and (tokens[:, 0] == FIRST).all() and tokens.max() < TASK.vocabulary
        assert (part.targets >= ends[cell.category]).all() and (part.targets < ends[cell.category + 1]).all()
        assert (tokens == SECOND).any(1).all() == (cell.category == 0) and (tokens == PAD).any()
    assert set(cells.base.inputs["category"]) == set(range(5))


def test_a_share_of_the_tokens_is_hidden():
    tokens = np.array(text_cells(TASK, made_corpus(), 0).base.inputs["x"])
    (changed, _) = hidden(jax.random.key(0), {"x": tokens, "category": 0}, 0)
    now = np.asarray(changed["x"])
    words, different = tokens >= SPECIAL, now != tokens
    assert not different[~words].any() and (now[different] == HIDDEN).all()
    assert 0.14 < different[words].mean() < 0.16


def test_no_premise_is_in_two_parts():
    corpus = made_corpus()
    cells = text_cells(TASK, corpus, 1)
    cell = next(cell for cell in cells.held_in if cell.category == 2)  # premises or hypotheses, as they are
    premises = [{bytes(x) for x, y in zip(part.inputs["x"], part.targets, strict=True) if y % 2 == 0} for part in
                (*cells.held_in[cell], cells.test[cell])]  # fmt: skip
    assert all(premises) and not any(a & b for k, a in enumerate(premises) for b in premises[:k])
