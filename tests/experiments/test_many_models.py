"""The experiment on many models in its smallest form: every row, the shares in them, the page, resuming."""

import json

import numpy as np
import pytest

from experiments.many_models import Experiment, main
from experiments.many_models_settings import AVERAGE, JOINT, METHODS, PAIRS, PRESETS, REVERSED, SHORT, TENSORS
from experiments.run import Preset


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("many_models")
    main(preset=Preset.test, out=path, seed=0, seeds=1)
    return path


@pytest.fixture(scope="module")
def rows(out):
    return json.loads((out / "rows.json").read_text())["rows"]


def test_every_method_has_its_rows(rows):
    settings = PRESETS[Preset.test]
    assert {(row["models"], row["method"]) for row in rows} == {(n, name) for n in settings.counts for name in METHODS}
    two = {row["method"]: row["accuracy"] for row in rows if row["models"] == 2}
    assert two[PAIRS] == two[SHORT] == two[JOINT]  # one pair is the joint merge of two


def test_shares_are_those_of_all_models(rows):
    for row in rows:
        if row["method"] in (JOINT, TENSORS, SHORT, PAIRS, REVERSED):
            assert len(row["shares"]) == row["models"]
            assert np.sum(row["shares"]) == pytest.approx(1, abs=1e-3)
            assert np.ptp(row["shares"]) > 0
    learned = {(row["models"], row["method"]): row["learned"] for row in rows}
    assert learned[3, PAIRS] == learned[2, PAIRS] == learned[2, JOINT] == learned[3, JOINT] / 3 == 8 * 64 + 8 + 80 + 10


def test_the_page_shows_the_rows_and_nothing_is_done_twice(out, rows, monkeypatch):
    page = (out / "README.md").read_text()
    for row in rows:
        assert f"{row['accuracy']:.3f}" in page
    assert f"| {AVERAGE} |" in page
    assert (out / "accuracy.png").stat().st_size > 10_000
    monkeypatch.setattr(Experiment, "parent", lambda *_: pytest.fail("every row is there"))
    main(preset=Preset.test, out=out, seed=0, seeds=1)
    assert json.loads((out / "rows.json").read_text())["rows"] == rows
    with pytest.raises(ValueError, match=r"made with other settings: counts is \[2, 3\] there"):
        main(preset=Preset.cpu, out=out, seed=0, seeds=1)
