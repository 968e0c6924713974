"""The experiment on width in its smallest form: every row, what the rows must agree on, the page, resuming."""

import json

import pytest

from experiments.data import load_images
from experiments.run import Preset, Rows
from experiments.width import ENSEMBLE, METHODS, PARTIAL, PRESETS, SEQUENTIAL, ZIPPED, Experiment, made_with, main


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("width")
    main(preset=Preset.test, out=path, seed=0, seeds=1, data="digits")
    return path


@pytest.fixture(scope="module")
def rows(out):
    return Rows(out / "rows.csv", ("seed", "method", "budget"), made_with(PRESETS[Preset.test], load_images())).all


def test_every_method_has_its_rows(rows):
    settings = PRESETS[Preset.test]
    assert {row["method"] for row in rows} == set(METHODS)
    for name in (PARTIAL, SEQUENTIAL):
        assert tuple(row["budget"] for row in rows if row["method"] == name) == settings.budgets
    assert [row["budget"] for row in rows if row["method"] == ZIPPED] == list(settings.stages)


def test_sizes_keep_to_their_budgets(rows):
    for row in rows:
        if row["method"] in (PARTIAL, SEQUENTIAL):
            assert row["flops"] <= min(row["budget"], row["dense"]) + 1e-6
    (zipped,) = [row["flops"] for row in rows if row["method"] == ZIPPED]
    assert 1 < zipped < next(row["flops"] for row in rows if row["method"] == ENSEMBLE) == 2


def test_the_page_shows_the_rows_and_nothing_is_done_twice(out, rows, monkeypatch):
    page = (out / "README.md").read_text()
    for row in rows:
        assert f"| {row['method']} | {row['flops']:.2f} | {row['dense']:.2f} |" in page
        assert f"{row['accuracy']:.3f}" in page
    assert (out / "size.png").stat().st_size > 10_000
    assert json.loads((out / "summary.json").read_text())["rows"] == rows
    monkeypatch.setattr(Experiment, "parent", lambda *_: pytest.fail("every row is there"))
    main(preset=Preset.test, out=out, seed=0, seeds=1, data="digits")
    with pytest.raises(ValueError, match="made with other settings: width is 2 there, 12 here"):
        main(preset=Preset.cpu, out=out, seed=0, seeds=1, data="digits")
