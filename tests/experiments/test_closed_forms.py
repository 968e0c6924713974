"""The experiment on closed forms in its smallest form: its tasks, how methods are built and tuned, every row, the page."""

import json

import chex
import jax
import numpy as np
import pytest

import npmerge as nm
from experiments.closed_forms import Experiment, main
from experiments.closed_forms_settings import CLOSED, CONTROL, LEARNED, PRESETS, PUBLISHED, REFERENCES, TUNED, made_with
from experiments.grids import InTurn, Only, Way, way_of
from experiments.run import Preset, Rows
from experiments.tasks import Sizes, load_tasks

SETTINGS = PRESETS[Preset.test]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("closed_forms")
    main(preset=Preset.test, out=path, seed=0, seeds=1, data="digits")
    return path


@pytest.fixture(scope="module")
def rows(out):
    return Rows(out / "rows.csv", ("seed", "method", "stage"), made_with(SETTINGS, "digits")).all


def test_no_row_is_an_error_and_every_start_is_learned_from(rows):
    assert not [row for row in rows if row["error"]]
    stages = {name: [row["stage"] for row in rows if row["method"] == name] for name in (*SETTINGS.methods, *REFERENCES)}
    assert all(stages[name] == [""] for name in REFERENCES)
    assert stages["Average"] == [CLOSED, "PerTensor", "PerParameter", TUNED]
    assert stages["Fisher"] == [CLOSED, "PerParameter", TUNED]  # one coefficient per parameter, in the closed form already
    assert stages["IsoC"] == [CLOSED, TUNED]  # no choice of coefficients
    assert {row["method"] for row in rows if row["stage"] == LEARNED} == set(SETTINGS.published)


def test_every_published_merge_has_an_objective_that_it_can_be_learned_by():
    """Entropy and distillation look at no labels."""
    assert list(PUBLISHED) == list(PRESETS[Preset.cpu].published)
    for name, (make, objective) in PUBLISHED.items():
        assert isinstance(make(), nm.Learned)
        assert isinstance(objective, nm.CrossEntropy) == (name == "NP Merge")


def test_learning_never_ends_above_its_start_on_the_images_that_choose(rows):
    start = {row["method"]: row["validation"] for row in rows if row["stage"] == CLOSED}
    for row in rows:
        if row["method"] in start:
            assert row["validation"] <= start[row["method"]] + 1e-5, row


def test_costs_are_there_for_every_closed_form(rows):
    costs = {row["method"]: row for row in rows if row["stage"] == CLOSED}
    assert all(row["merge_flops"] > 0 and row["merge_seconds"] > 0 for row in costs.values())
    assert [name for name, row in costs.items() if row["statistics_flops"]] == ["Fisher"]
    assert costs["IsoC"]["tried"] == SETTINGS.values


def test_the_page_shows_the_rows_and_nothing_is_done_twice(out, rows, monkeypatch):
    page = (out / "README.md").read_text()
    for row in rows:
        assert f"{row['accuracy']:.3f}" in page
    control = next(row for row in rows if (row["method"], row["stage"]) == CONTROL)
    assert "| statistics | merge | kept | peak memory | seconds |" in page
    (fisher,) = [line for line in page.splitlines() if line.startswith("| `Fisher` |") and line.count("|") > 12]
    (row,) = [row for row in rows if (row["method"], row["stage"]) == ("Fisher", "closed form")]
    counts = [f"{row[name]:.1e}" for name in ("statistics_flops", "merge_flops")]
    assert [*fisher.split(" | ")[-5:-3]] == counts
    assert fisher.split(" | ")[-2] == f"{row['peak_bytes'] / 1e3:.0f} kB"
    assert f"the fine-tuned average has {control['accuracy']:.3f}" in page
    assert (out / "methods.png").stat().st_size > 10_000
    assert json.loads((out / "summary.json").read_text())["rows"] == rows
    monkeypatch.setattr(Experiment, "trained", lambda *_: pytest.fail("every row is there"))
    main(preset=Preset.test, out=out, seed=0, seeds=1, data="digits")
    with pytest.raises(ValueError, match=r"made with other settings: hidden is \[8\] there, \[64, 64\] here"):
        main(preset=Preset.cpu, out=out, seed=0, seeds=1, data="digits")


def test_a_method_that_fails_leaves_a_row_that_says_why(tmp_path):
    tasks = load_tasks(None, Sizes(5, 5, 5), seed=0)
    rows = Rows(tmp_path / "rows.csv", ("seed", "method", "stage"), {})
    Experiment(tasks, SETTINGS, 0, tmp_path, rows).row("Ties", CLOSED, lambda: Way(nm.Ties, {"density": (2.0,)}).tuned(float))
    (row,) = rows.all
    assert "density" in row["error"] and row["accuracy"] == ""


def test_tasks_have_no_image_in_two_parts_and_one_test_for_all_seeds():
    first, second = (load_tasks(None, Sizes(40, 100, 300), seed=seed) for seed in range(2))
    assert [len(task.test.labels) for task in first.each] == [178, 182, 360]
    for one, other in zip(first.each, second.each, strict=True):
        np.testing.assert_array_equal(one.test.inputs, other.test.inputs)
    whole = first.each[2]
    parts = [whole.train, whole.learning, whole.selection, whole.test]
    assert [len(part.labels) for part in parts] == [1437 - 440, 100, 300, 360]
    held = [{x.tobytes() for x in part.inputs} for part in parts]
    held.append({np.rot90(x).tobytes() for x in first.base.inputs[:40]})
    assert sum(map(len, held)) == len(set.union(*held)) == 1437 + 360


@pytest.mark.parametrize("method", nm.METHODS, ids=lambda method: method.__name__)
def test_every_method_is_built_for_three_models(method):
    way = way_of(method, 3, {"score": float})
    assert isinstance(way.make(), nm.Merge)
    for name, values in way.grids.items():
        assert len({way.make(**{name: value}) for value in values}) == len(values), name
    assert set(way.make().needs) <= set(way.needs())


def test_fields_are_chosen_one_after_another_and_refusals_passed_over():
    way = Way(nm.Breadcrumbs, {"scale": (0.1, 0.3, 0.5), "density": (0.7, 0.9, 2.0)})
    choice = way.tuned(lambda merge: abs(merge.scale - 0.3) + abs(merge.density - 0.7))
    assert choice.fields == {"scale": 0.3, "density": 0.7}
    assert choice.loss == 0
    assert choice.tried == 8  # three scales at the default density, three densities (one refused), two more scales


def test_merges_of_two_models_in_turn_are_one_choice_of_coefficients():
    rng = np.random.default_rng(0)
    models = [{"w": rng.normal(size=(3, 4)).astype(np.float32) + 1} for _ in range(3)]
    pair = nm.stack_models(models[:2])
    first = nm.Slerp(1 / 2)(pair)
    expected = nm.Slerp(1 / 3)(nm.stack_models([first, models[2]]))
    chex.assert_trees_all_close(InTurn(nm.Slerp())(nm.stack_models(models)), expected, rtol=1e-5)
    near = nm.NearSwap(0.1)(nm.stack_models([nm.NearSwap(0.1)(pair), models[2]]))
    chex.assert_trees_all_close(InTurn(nm.NearSwap(0.1))(nm.stack_models(models)), near, rtol=1e-5)
    chex.assert_trees_all_equal(Only(2)(nm.stack_models(models)), jax.tree.map(jax.numpy.asarray, models[2]))
