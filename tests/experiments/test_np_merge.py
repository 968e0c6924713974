"""The experiment on NP Merge in its smallest form: its factorial, every row, what rows must agree on, the page, resuming."""

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace

import chex
import numpy as np
import pytest

import npmerge as nm
from experiments.data import SPLITS, load, standardised
from experiments.differences import Difference
from experiments.gallery import GALLERY
from experiments.np_merge import experiment
from experiments.np_merge.command import reproduce
from experiments.np_merge.findings import CLAIMS, Claim, _judged, _sum, _verdicts, in_short
from experiments.np_merge.methods import Case, batches, case_of, in_pairs, tuned
from experiments.np_merge.networks import Group, Networks
from experiments.np_merge.page import _seeds, page
from experiments.np_merge.presets import PRESETS
from experiments.np_merge.results import Results, partner
from experiments.np_merge.settings import (
    ACTIVATIONS,
    AVERAGE,
    CONTROL,
    CONTROLS,
    FISHER,
    FISHER_CONTROL,
    FROM_FISHER,
    KEY,
    LONG_CONTROL,
    LONG_PAIRS,
    METHODS,
    ONE,
    PAIRS,
    PARAMETERS,
    SCRATCH,
    STARTS,
    UNALIGNED,
    UNLABELLED,
    Job,
    Learning,
    jobs,
)
from experiments.problem import Problem
from experiments.run import Preset, Rows

SETTINGS = PRESETS[Preset.test]
(TASK,) = SETTINGS.tasks


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    path = tmp_path_factory.mktemp("np_merge")
    reproduce(Preset.test, path, range(1))
    return path


@pytest.fixture(scope="module")
def results(out):
    summary = json.loads((out / "summary.json").read_text())
    rows = Rows(out / "rows.csv", KEY, json.loads((out / "settings.json").read_text()))
    return Results(rows.all, SETTINGS, summary["images"])


@pytest.fixture(scope="module")
def problem():
    return Problem(TASK, standardised(load("digits")), 0)


@pytest.fixture(scope="module")
def networks(problem, out):
    return Networks(problem, Group("own", "80-20", 2), out / "parents", SETTINGS.gammas)


def _job(method, labelled=26):
    return Job(TASK.name, "own", "80-20", 2, ACTIVATIONS, method, labelled)


def test_every_point_of_the_factorial_is_a_row_once(results):
    wanted = [place for block in SETTINGS.blocks for place in jobs(block, results.images[TASK.name])]
    assert set(results.by_job) == set(wanted)
    assert len(results.rows) == len(set(wanted)) < len(wanted)  # blocks share rows
    for place in wanted:
        assert (place.labelled == 0) == (place.method in UNLABELLED)
        assert (place.start == "") == (place.method in UNALIGNED)


def test_learned_rows_and_their_controls_have_the_same_steps_and_images(problem, results):
    steps = {place: rows[0]["steps"] for place, rows in results.by_job.items()}
    for place, count in steps.items():
        if place.method in (PARAMETERS, CONTROL, FROM_FISHER, FISHER_CONTROL, ONE, SCRATCH):
            assert count == TASK.learning.steps
        if place.method == LONG_PAIRS:
            assert count == steps[partner(place, LONG_CONTROL)] == 2 * TASK.learning.steps
        if place.method == PAIRS:
            assert count == TASK.learning.steps
    first, again = (next(batches(problem, problem.labelled(26))) for _ in range(2))
    chex.assert_trees_all_equal(first, again)


def test_few_labels_are_among_many_and_of_all_classes(problem):
    few, many = problem.labelled(30), problem.labelled(200)
    np.testing.assert_array_equal(few.inputs, many.inputs[:30])
    assert set(few.labels) == set(range(10))
    (tested,) = problem.test
    shares = np.bincount(problem.images.test.labels) * 64 / len(problem.images.test.labels)
    np.testing.assert_allclose(np.bincount(tested[1]), shares, atol=1)


def test_rows_start_from_what_their_names_say(problem, networks):
    """Zero steps of NP Merge are the average, from Fisher they are the Fisher merge; controls start at the same networks."""
    stack = nm.stack_models(networks.aligned(ACTIVATIONS)[0])
    fisher = nm.Fisher()(stack, stats=networks.fisher(ACTIVATIONS, 26))
    for expected, learned, control in ((nm.Average()(stack), PARAMETERS, CONTROL), (fisher, FROM_FISHER, FISHER_CONTROL)):
        case = case_of(problem, networks, _job(learned))
        chex.assert_trees_all_close(case.network(case.theta), expected, rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_equal(case_of(problem, networks, _job(control)).theta, expected)
    chex.assert_trees_all_equal(case_of(problem, networks, _job(ONE)).theta, networks.models[0])
    distance = np.abs(np.asarray(fisher["params"]["dense"][0]["kernel"] - nm.Average()(stack)["params"]["dense"][0]["kernel"]))
    assert distance.max() > 1e-3


def test_networks_of_other_splits_see_other_images(problem, networks):
    parts = [networks.part(k).labels for k in range(2)]
    assert sum(map(len, parts)) == len(problem.images.train.labels)
    assert np.mean(parts[0] >= 5) > 0.7 > 0.3 > np.mean(parts[1] >= 5)


def test_the_page_shows_the_rows_and_nothing_is_done_twice(out, results, monkeypatch):
    text = (out / "README.md").read_text()
    assert {claim.mark for claim in GALLERY["np_merge"](out)} == {"one seed"}
    for method in {row["method"] for row in results.rows}:
        assert f"| {method}" in text
    for row in results.rows:
        assert f"{row['accuracy']:.3f}" in text
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("labels", "models", "splits"))
    before = (out / "rows.csv").read_bytes()
    monkeypatch.setattr(experiment, "measure", lambda *_: pytest.fail("every row is there"))
    reproduce(Preset.test, out, range(1), only=[TASK.name])
    assert (out / "rows.csv").read_bytes() == before
    with pytest.raises(ValueError, match=r"other settings: tasks\[0\].measured is 64 there, 32 here: choose another --out"):
        _other_settings(out, monkeypatch)


def _other_settings(out, monkeypatch):
    other = dataclasses.replace(SETTINGS, tasks=(dataclasses.replace(TASK, measured=32),))
    monkeypatch.setitem(PRESETS, Preset.test, other)
    page(out)


def test_an_interrupted_run_goes_on(out, results, tmp_path):
    shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "again" / "rows.csv"
    path.write_bytes(path.read_bytes()[:-20])  # the last row is half there
    reproduce(Preset.test, tmp_path / "again", range(1))
    with path.open(newline="") as file:
        *_, last = csv.DictReader(file)
    assert {name: str(results.rows[-1][name]) for name in ("method", "accuracy", "loss", "rate")}.items() <= last.items()


def test_a_task_that_is_unknown_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"unknown task 'digits-vg'.*'digits-vgg'"):
        reproduce(Preset.test, tmp_path, range(1), only=["digits-vg"])


def test_words_come_from_the_differences():
    """Student's t of three seeds: 2.48 deviations to either side."""
    assert [Difference(x, 1).verdict for x in ((1.0, 1.1, 0.9), (-1.0, -1.1, -0.9), (1.0, 0.1, 0.4), (1.0,))] == [1, -1, 0, 0]
    assert Difference((0.01, 0.03), 1).told() == "+2.00 ± 1.41 points"
    assert {name for claim in CLAIMS for name in (claim.better, claim.than)} <= {*METHODS, *STARTS, "own", "common"}


def test_differences_pair_what_is_alike_but_for_the_method():
    places = [Job("t", "own", s, 2, ACTIVATIONS, m, k) for s in ("same", "80-20") for m, k in ((PARAMETERS, 5), (AVERAGE, 0))]
    values = dict(zip(places, (0.9, 0.5, 0.8, 0.6), strict=True))
    rows = [{"seed": 0, **place._asdict(), "accuracy": x, "loss": 1 - x} for place, x in values.items()]
    results = Results(rows, SETTINGS, {"t": 100})
    found = results.difference(Claim("", PARAMETERS, AVERAGE).pairs(places))
    assert (found.points, found.mean) == (2, pytest.approx(0.3))
    split = results.difference(Claim("", "same", "80-20", axis="split", fixed=(("method", AVERAGE),)).pairs(places))
    assert (split.points, split.mean) == (1, pytest.approx(-0.1))
    assert results.difference(Claim("", PARAMETERS, FISHER).pairs(places)) is None


def test_grids_are_of_one_length_and_presets_name_their_tasks():
    for settings in PRESETS.values():
        names = [task.name for task in settings.tasks]
        assert len(set(names)) == len(names)
        assert {block.task for block in settings.blocks} == set(names)
        assert set(CONTROLS) < set(METHODS)
    with pytest.raises(ValueError, match="of one length"):
        Learning(merge_rates=(0.1,))


def test_settings_of_one_seed_are_counted_apart():
    """Of the same claim: told apart in one setting of three seeds, not in the other; a setting of one seed says nothing."""
    values = {"a, same": (0.05, 0.06, 0.04), "a, disjoint": (0.05, -0.06, 0.04), "b, same": (0.05,)}
    found = {name: Difference(each, 1) for name, each in values.items()}
    said = _sum(CLAIMS[0], found)
    assert "so on 1, the opposite on 0, not told apart on 1 of 2 settings; one seed on 1 more" in said
    assert said.endswith("points: +1.0 to +5.0; told apart: a, same +5.0).")
    assert "one seed, which tells nothing apart" in _sum(CLAIMS[0], {"b, same": found["b, same"]})


def test_splits_are_not_pooled(results):
    """Networks that never saw some classes answer most questions in the opposite way."""
    claim = Claim("", PARAMETERS, CONTROL)
    found, places = _judged(results, claim), {job for block in SETTINGS.blocks for job in results.jobs(block)}
    names = list(found)
    assert sum(x.points for x in found.values()) == results.difference(claim.pairs(list(places))).points
    assert names and all(name.split(", ")[-1] in SPLITS for name in names) and len(names) == len(set(names)) > 1


def test_the_first_lines_are_of_what_is_told_apart(results):
    alike = {"a, same": Difference((0.01, -0.01, 0.0), 1), "a, disjoint": Difference((0.2, 0.21, 0.19), 1)}
    said = _verdicts(alike)
    assert said == "+0.0 to +20.0 points over 2 tasks and splits of several seeds, told apart: a, disjoint +20.0 (higher)"
    assert _verdicts({"a, same": Difference((0.01,), 1)}).endswith("1 tasks and splits of one seed, none told apart")
    lines = list(in_short(results))
    assert len(lines) == 3 and "beside its control" in lines[0]


def test_pairs_are_learned_at_the_rate_of_the_lowest_loss(monkeypatch):
    losses, steps = {0.1: [3.0, 1.0], 0.2: [2.0, 0.5], 0.4: [0.1, 0.9]}, []

    def successive(models, outputs, objective, batches, optimizer, **given):
        rate = optimizer.init.rate
        steps.append(given["steps"])
        turns = [SimpleNamespace(history=SimpleNamespace(held_out_loss=np.array([loss]))) for loss in losses[rate]]
        turns[-1].theta = {"x": np.zeros(5)}
        return SimpleNamespace(network=rate, turns=turns)

    monkeypatch.setattr(nm, "successive", successive)
    task = SimpleNamespace(
        learning=Learning(
            steps=6, merge_rates=tuple(losses), coarse_rates=(1, 2, 3), control_rates=(1, 2, 3), scratch_rates=(1, 2, 3)
        )
    )
    some = SimpleNamespace(
        task=task, outputs=None, objective=None, validation=[], seed=0, labelled=lambda n: n, batches=lambda *x, seed: []
    )
    found = in_pairs(some, SimpleNamespace(aligned=lambda start: (["a", "b", "c"], "")), _job(PAIRS)._replace(models=3))
    assert found == (0.2, 0.2, 6, 5) and steps == [3, 3, 3]  # by the last pair, three steps each


def test_the_control_of_pairs_looks_at_validation_data_as_often_as_they(monkeypatch):
    budgets = []

    def budget(*given):
        budgets.append(given)
        return SimpleNamespace(tuned=lambda theta, *_, **__: SimpleNamespace(theta=theta, rate=0.1))

    monkeypatch.setattr("experiments.np_merge.methods.Budget", budget)
    learning = SETTINGS.tasks[0].learning
    some = SimpleNamespace(task=SETTINGS.tasks[0], labelled=lambda n: n, validation=[])
    for method in (CONTROL, LONG_CONTROL):
        tuned(some, Case({"x": np.zeros(1)}, None, None, lambda theta: theta), _job(method)._replace(models=3))
    each = learning.steps, learning.judgements, learning.further
    assert budgets == [each, (2 * each[0], 2 * each[1], each[2])]


def test_how_many_seeds_tasks_have_is_said():
    rows = [{"task": "b", "seed": 0}, {"task": "b", "seed": 1}, {"task": "a", "seed": 0}]
    assert _seeds(Results(rows[:2], SETTINGS, {})) == "2 seeds"
    assert _seeds(Results(rows, SETTINGS, {})) == "1 seed of a, 2 seeds of b"
