"""Manual pages as a grid: what is read of them, and what each task asks for."""

import dataclasses
import gzip
import json
import lzma
from collections import Counter

import numpy as np
import pytest

from experiments.compositional.manuals import LANGUAGES, OTHER, SECTIONS, made_manuals, read_manuals
from experiments.compositional.presets import PRESETS
from experiments.compositional.roff import passages_of, plain
from experiments.compositional.texts import SECOND, text_cells
from experiments.strings import STRINGS

TASK = next(task for task in PRESETS["test"].tasks if task.setting == "text")
PAGE = r""".\" a comment
.TH SOME 1 "2020"
.SH NAME
some \- a name
.SH BESCHREIBUNG
Die \fBerste\fP Seite ist \(:ubersetzt, und sie nennt
.BR other (8)
in einem Absatz aus mehr als einer Zeile.
.PP
.nf
an example that is no running text, and long enough to be a passage of its own
.fi
.TP
.B \-\-option
Eine zweite Stelle, die lang genug ist, um eine Stelle zu sein; \(Fowie hier\(Fc.
"""


def written(folder, language, section, name, text, *, packed=True):
    path = folder / ("" if language == "en" else language) / f"man{section}" / f"{name}.{section}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        path = path.with_name(path.name + ".gz")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_a_page_is_read_as_its_running_text(tmp_path, packed):
    found = passages_of(written(tmp_path, "de", "1", "some", PAGE, packed=packed))
    assert found == [
        "Die erste Seite ist übersetzt, und sie nennt other in einem Absatz aus mehr als einer Zeile.",
        "--option Eine zweite Stelle, die lang genug ist, um eine Stelle zu sein; «wie hier».",
    ]


def test_glyphs_by_their_names():
    line = r"\[:o]\('e\(^e\,\(,c \m[blue]x\m[] \*(Aqq\*(Aq a\eb \fIi\fR\s+1j\s0 \(ss\[u2014]"
    assert plain(line) == r"öéêç x 'q' a\b ij ß"


@pytest.fixture
def folder(tmp_path):
    """Two pages in each section and language, one in English alone, and a passage that is said twice."""
    for language in LANGUAGES:
        for section in SECTIONS:
            for name in ("a", "b"):
                own = f"This is the text of page {name} of section {section} in the language {language}, long enough."
                text = f".PP\n{own}\n.PP\nAnother one after it: {own}\n.PP\n{'Said on every page, by everyone. ' * 3}\n"
                written(tmp_path, language, section, name, text)
    written(tmp_path, "en", "1", "alone", ".PP\n" + "What nobody has translated. " * 5)
    path = tmp_path / STRINGS.with_suffix("")
    path.parent.mkdir()
    path.write_text("".join(json.dumps({name: f"{name} {k}" for name in (*LANGUAGES, "tr")}) + "\n" for k in range(5)))
    (tmp_path / STRINGS).write_bytes(lzma.compress(path.read_bytes()))
    return tmp_path


def test_pages_are_those_that_are_translated(folder):
    corpus = read_manuals(str(folder))
    assert corpus.pages == 6 and len(corpus.strings) == 5
    for language in LANGUAGES:
        found = corpus.passages[language]
        assert found.pages.tolist() == np.repeat(np.arange(6), 2).tolist() and not any("Said on" in x for x in found.texts)
        assert Counter(found.sections.tolist()) == {0: 4, 1: 4, 2: 4}
        assert [f"section {SECTIONS[k]}" in text for text, k in zip(found.texts, found.sections, strict=True)] == [True] * 12


def test_a_language_without_pages(folder):
    for path in (folder / "ru" / "man5").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"Russian of all sections 1, 5, 7.*manpages-ru"):
        read_manuals(str(folder))


def test_questions_have_the_answers_that_are_said():
    corpus = made_manuals()
    for language in LANGUAGES:
        rng = np.random.default_rng(3)

        def asked(category, language=language, rng=rng):
            rows = np.arange(len(corpus.groups(category, language)))
            return rows, corpus.question(category, language, rows, rng)

        rows, question = asked(0)
        assert [f"s{label}w" in text for text, label in zip(question.first, question.labels, strict=True)] == [True] * len(rows)
        assert len(set(Counter(question.labels.tolist()).values())) == 1
        _, question = asked(1)
        other = OTHER.get(language, language)
        assert all(text.startswith("en ") for text in question.first)
        assert [b == other + a[2:] for a, b in zip(question.first, question.second, strict=True)] == question.labels.tolist()
        rows, question = asked(2)
        pages = dict(zip(corpus.passages[language].texts, corpus.passages[language].pages, strict=True))
        same = [pages[a] == pages[b] for a, b in zip(question.first, question.second, strict=True)]
        assert same == question.labels.tolist() and set(same) == {True, False}
        _, question = asked(3)
        texts = corpus.passages[language].texts
        assert [a != b for a, b in zip(question.first, texts, strict=True)] == question.labels.tolist()
        sort = sorted if language == "ja" else lambda x: sorted(x.split())
        assert list(map(sort, question.first)) == list(map(sort, texts))


def test_passages_of_a_page_and_strings_say_the_same():
    corpus = made_manuals()
    said = [dict(x) for x in corpus.same(np.array([3, corpus.pages + 4]))]
    assert len(said) == 1 + 3 and said[0] == {name: f"{name} string 4" for name in LANGUAGES if name != "en"}
    for k, texts in enumerate(said[1:]):
        assert texts == {name: corpus.passages[name].texts[3 * 3 + k] for name in LANGUAGES}


def test_passages_of_pages_that_are_cut_otherwise_do_not():
    corpus = made_manuals()
    german = corpus.passages["de"]
    fewer = type(german)(german.texts[1:], german.pages[1:], german.sections[1:])  # page 0 has a passage less
    said = list(dataclasses.replace(corpus, passages={**corpus.passages, "de": fewer}).same(np.array([0])))
    assert [set(texts) for texts in said] == [{"de"}] * 2 + [set(LANGUAGES) - {"de"}] * 3


def test_no_page_and_no_string_is_in_two_parts():
    corpus = made_manuals()
    cells = text_cells(dataclasses.replace(TASK, length=64), corpus, 0)
    assert len(cells.test) == 20 and cells.grid.domains == ("German", "Spanish", "French", "Japanese", "Russian")
    for cell, parts in cells.held_in.items():
        if cell.category < 2:  # of pairs of strings the English one is the same for all languages
            seen = [
                {bytes(x[: np.argmax(x == SECOND) or None]) for x in part.inputs["x"]} for part in (*parts, cells.test[cell])
            ]
            assert all(seen) and not any(a & b for k, a in enumerate(seen) for b in seen[:k])
