"""The smallest form of the experiment: rows, page, resuming, and what no choice may see."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

import npmerge as nm
from experiments.compositional.command import prepared, reproduce
from experiments.compositional.findings import _correlations, claims, findings
from experiments.compositional.grid import Cell
from experiments.compositional.learned import badness
from experiments.compositional.networks import Scores
from experiments.compositional.page import page
from experiments.compositional.presets import PRESETS
from experiments.compositional.results import OVER_EXPERTS, Results, read
from experiments.compositional.rows import Experiment, files
from experiments.compositional.settings import (
    BASE,
    CONTROLS,
    EXPERT,
    EXPERTS,
    HOME,
    MULTITASK,
    NP_MERGE,
    PAPER,
    REAL,
    made_with,
)
from experiments.grids import Way
from experiments.run import read_rows

SETTINGS = PRESETS["test"]
COLUMNS = ("validation", "held_in", "generalisation")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compositional")
    reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


def cases(folder):
    return [prepared(task, folder)(0) for task in SETTINGS.tasks]


def test_every_row_is_there_and_judged(rows):
    expected = []
    for task in SETTINGS.tasks:
        levels = [(BASE, ""), (HOME, ""), *((EXPERT, k) for k in range(4)), (EXPERTS, ""), (MULTITASK, "")]
        levels += [(REAL, "")] if task.setting == "generation" else []
        expected += [(task.name, *level) for level in levels] + [(task.name, method, "") for method in task.methods]
    assert [(row["task"], row["method"], row["expert"]) for row in rows] == expected
    assert not [row["error"] for row in rows if row["error"]]
    for row in rows:
        if row["method"] == HOME:  # nothing else is known of it
            assert 0 <= row["held_in"] <= 1 and row["validation"] == row["generalisation"] == "" and not row["cells"]
            continue
        scores = [row[name] for name in ("validation", "held_in", "generalisation")]
        assert all(0 <= x <= 1 for x in scores) and np.isfinite(row["held_in_loss"]) and len(row["cells"]) == 12
        areas = [row[f"{name}_auroc"] for name in ("validation", "held_in", "generalisation")]
        assert areas == [""] * 3 if row["task"] == "made digits" else all(0 <= x <= 1 for x in areas)
        assert 0 <= row["held_in_standard_error"] < 0.25


def test_means_are_over_held_in_and_over_other_cells(out, rows):
    for case in cases(out / "parents"):
        held_in = [case.cells.grid.cells.index(cell) for cell in case.held_in]
        others = [k for k in range(12) if k not in held_in]
        assert len(held_in) == 4
        for row in rows:
            if row["task"] == case.task.name and row["method"] != HOME:
                each = np.array(row["cells"])
                assert row["held_in"] == pytest.approx(each[held_in].mean(), abs=1e-4)
                assert row["generalisation"] == pytest.approx(each[others].mean(), abs=1e-4)


def test_an_expert_is_better_at_its_own_task(rows):
    (own,) = [row for row in rows if (row["task"], row["method"]) == ("digits", EXPERTS)]
    each = [row["held_in"] for row in rows if (row["task"], row["method"]) == ("digits", EXPERT)]
    assert own["held_in"] > max(each)


def test_the_moments_that_networks_were_kept_at(rows):
    trained = BASE, EXPERT, MULTITASK
    assert all((row["moment"] in (0, 1)) == (row["method"] in trained) for row in rows)
    digits = {row["method"]: row["moment"] for row in rows if row["task"] == "digits"}
    assert digits[BASE] == digits[EXPERT] == digits[MULTITASK] == 1


def test_statistics_are_of_as_many_examples_for_all(tmp_path):
    for case in cases(tmp_path):
        parts = [x.learning for x in case.cells.held_in.values()]
        most = max(map(len, parts))
        for part, (inputs, targets) in zip(parts, case.measured, strict=True):
            assert len(targets) == most < 128
            np.testing.assert_array_equal(inputs["x"], part.inputs["x"][np.arange(most) % len(part)])
            if "noise" in inputs:
                assert len({bytes(x) for x in inputs["noise"]}) == most


def test_parts_have_no_example_in_common(tmp_path):
    for case in cases(tmp_path):
        tests = {bytes(x) for part in case.cells.test.values() for x in part.inputs["x"]}
        for cell, parts in case.cells.held_in.items():
            seen = [{bytes(x) for x in part.inputs["x"]} for part in parts]
            assert cell in case.cells.test and all(seen)
            if case.task.setting != "text":  # sentences that are made up are few, and alike
                assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
                assert not tests & (seen[0] | seen[1] | seen[2])


@pytest.mark.parametrize("task", SETTINGS.tasks, ids=lambda task: task.setting)
def test_nothing_is_tested_where_choices_are_made(out, tmp_path, monkeypatch, task):
    """Tuning, learning and the choice of rates see held-in cells alone, and never the test part."""
    case = prepared(task, out / "parents")(0)
    monkeypatch.setattr(type(case), "tested", lambda *_: pytest.fail("test data were looked at"))
    seen = []
    original = type(case).validated
    monkeypatch.setattr(type(case), "validated", lambda self, v: seen.append(original(self, v)) or seen[-1])
    experiment = Experiment(case, files(tmp_path, made_with(SETTINGS)))
    experiment.tuned(experiment.ways["TaskArithmetic"], (0, 2))
    experiment.learner().learnt(NP_MERGE)
    assert seen and all(set(scores.accuracy) == set(case.held_in) for scores in seen)


def test_the_highest_accuracy_is_chosen_and_the_loss_decides_ties():
    cell = Cell(0, 0)

    def scores(accuracy, loss):
        return badness(Scores({cell: accuracy, Cell(1, 1): 1.0}, {cell: loss, Cell(1, 1): 0.0}, {}, {}), [cell])

    assert scores(0.6, 5.0) < scores(0.5, 0.1) < scores(0.5, 0.2) < scores(0.5, float("nan"))


def test_hyper_parameters_are_chosen_on_the_cells_of_all_that_is_merged():
    """Each of two networks is best served by another scale; only together they choose the one between."""
    cells = [Cell(0, 0), Cell(1, 1), Cell(2, 0)]
    right = [{0.1: 0.9, 0.5: 0.8, 0.9: 0.1}, {0.1: 0.1, 0.5: 0.8, 0.9: 0.9}, {0.1: 0.0, 0.5: 0.0, 0.9: 1.0}]

    def validated(scale):
        return Scores(*({cell: x[scale] for cell, x in zip(cells, right, strict=True)} for _ in range(2)), {}, {})

    some = SimpleNamespace(case=SimpleNamespace(held_in=cells, validated=validated), merge=lambda merge, order: merge.scale)
    way = Way(nm.TaskArithmetic, {"scale": (0.1, 0.5, 0.9)})
    for order, scale in (((0, 1), 0.5), ((0,), 0.1), ((1,), 0.9), ((0, 1, 2), 0.9)):
        assert Experiment.tuned(some, way, order).fields == {"scale": scale}


def test_statistics_cost_as_much_for_each_network(out):
    case, *_ = cases(out / "parents")
    cost = nm.cost.Cost(flops=7.0, bytes=5, peak_bytes=3, seconds=1.0)
    some = SimpleNamespace(case=case, cost_of=lambda kind: cost, every=(0, 1, 2, 3), judging_flops=dict)
    found = Experiment.spent(some, nm.Fisher(), nm.cost.Cost(flops=1.0, bytes=2, peak_bytes=9, seconds=0.5))
    assert found["statistics_flops"] == 28 and found["merge_flops"] == 1 and found["bytes"] == 22
    assert found["peak_bytes"] == 9 and found["cost_seconds"] == 4.5


def test_costs_are_those_of_the_programs(out, rows):
    row = {row["method"]: row for row in rows if row["task"] == "digits"}
    assert row["Average"]["statistics_flops"] == 0 and row["Average"]["merge_flops"] > 0 and row["Average"]["tried"] == 1
    assert row[NP_MERGE]["tried"] == 3  # of two rates the best is an end, beyond which one more may be tried
    for method in ("Fisher", "RegMean"):
        assert row[method]["statistics_flops"] > 0
    assert row[NP_MERGE]["learning_flops"] > row[CONTROLS[NP_MERGE]]["learning_flops"] > row["Average"]["merge_flops"]
    parameters = nm.parameters(cases(out / "parents")[0].base)
    assert [row[name]["bytes"] for name in (NP_MERGE, CONTROLS[NP_MERGE])] == [4 * 4 * parameters, 4 * parameters]
    for name in ("Average", NP_MERGE, CONTROLS[NP_MERGE]):
        assert row[name]["peak_bytes"] > 4 * 4 * parameters and 0 < row[name]["cost_seconds"] < row[name]["seconds"]


def test_cost_without_tuning_is_that_of_one_rate(out, rows):
    (row,) = [row for row in rows if (row["task"], row["method"]) == ("digits", NP_MERGE)]
    results = read(out)
    assert results.cost("digits", NP_MERGE) == pytest.approx(row["learning_flops"] / 3)
    assert results.cost_with_tuning("digits", NP_MERGE) > row["learning_flops"]
    assert results.cost_with_tuning("digits", "Average") == results.cost("digits", "Average")  # there is nothing to choose
    (row,) = [row for row in rows if (row["task"], row["method"]) == ("digits", "TaskArithmetic")]
    assert row["tried"] == 2
    assert results.cost_with_tuning("digits", "TaskArithmetic") == 2 * (row["merge_flops"] + row["judging_flops"])


def test_subsets_and_hyper_parameters(out, rows):
    curves, sensitivity = read_rows(out / "curves.csv"), read_rows(out / "sensitivity.csv")
    assert [(row["models"], row["order"]) for row in curves] == [(2, 0), (2, 1), (3, 0), (3, 1), (4, 0)]
    experts = {row["expert"]: row for row in rows if (row["task"], row["method"]) == ("digits", EXPERT)}
    cells = {k: row["cells"] for k, row in experts.items()}
    held_in = cases(out / "parents")[0].held_in
    places = [3 * cell.category + cell.domain for cell in held_in]
    for row in curves:
        own = np.mean([cells[k][places[k]] for k in row["members"]])
        assert row[OVER_EXPERTS] == pytest.approx(row["held_in"] - own, abs=1e-4)
    assert set(curves[0]["members"]) < set(curves[2]["members"]) and curves[0]["members"] != curves[1]["members"]
    arithmetic = [row for row in sensitivity if (row["task"], row["method"]) == ("digits", "TaskArithmetic")]
    assert [row["value"] for row in arithmetic] == [0.1, 1.0]
    (chosen,) = [row for row in rows if (row["task"], row["method"]) == ("digits", "TaskArithmetic")]
    (same,) = [row for row in arithmetic if [[row["field"], row["value"]]] == chosen["chosen"]]
    assert same["held_in"] == chosen["held_in"] and same["generalisation"] == chosen["generalisation"]


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text and json.loads((out / "summary.json").read_text())["command"] in text
    for row in rows:
        if row["method"] not in (EXPERT, HOME):
            assert f"{100 * row['generalisation']:.1f}" in text
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("scatter", "cost", "sensitivity", "models"))


def test_words_follow_the_rows():
    """Two tasks in which held-in and generalisation accuracy go together, and against each other."""
    rows = [
        {"seed": seed, "task": task, "method": method, "expert": "", "error": "", "held_in": 0.1 * k + 0.01 * seed,
         "generalisation": 0.5 + sign * 0.1 * k, "validation": 0.1 * k, "uncounted": 0, **dict.fromkeys(
         ("statistics_flops", "merge_flops", "learning_flops", "judging_flops", "tried"), 1.0),
         **dict.fromkeys(("held_in_standard_error", "generalisation_standard_error"), 0.1)}
        for seed in range(3) for task, sign in (("up", 1), ("down", -1))
        for k, method in enumerate(("Average", "Mlerp", "Fisher", "RegMean"))
    ]  # fmt: skip
    settings = {"tasks": [{"name": "up", "setting": "images"}, {"name": "down", "setting": "text"}]}
    results = Results(settings, rows, [], [])
    for task, correlation in (("up", 1.0), ("down", -1.0)):
        assert set(results.correlation(task, results.merges(task)).values()) == {correlation}
    said = list(findings(results))
    assert "rank correlation +1.00 ± 0.00, positive" in said[0] and "-1.00 ± 0.00, negative" in said[1]
    marks = {x.claim.says: x.mark for x in claims(results)}
    assert marks["held-in and generalisation accuracy go together, images"] == "reproduced"
    assert marks["they go against each other, text"] == marks["RegMean is ahead of the average held-in"] == "reproduced"
    assert marks["Fisher generalises better than RegMean in text"] == "reproduced" and len(marks) == 4
    assert "RegMean (31.0 %; higher in 3, lower in 0, not told apart in 0 of 3) leads held-in" in said[2]
    assert "Average (50.0 %; higher in 3, lower in 0, not told apart in 0 of 3) in generalisation" in said[3]
    assert "Fisher held-in higher in 2, lower in 1, not told apart in 0 of 3" in said[2]


def scattered(pairs, error, *, seeds=3):
    """Rows of Average, Slerp and so on with these held-in and generalisation accuracies."""
    return [
        {"seed": seed, "task": "up", "method": method, "expert": "", "error": "", "held_in": x, "generalisation": y,
         "held_in_standard_error": error, "generalisation_standard_error": error}
        for seed in range(seeds) for method, (x, y) in zip(PAPER, pairs, strict=False)
    ]  # fmt: skip


def test_merges_that_come_to_the_same_are_one_point():
    pairs = [(0.5, 0.5), (0.5004, 0.5004), (0.5002, 0.5), (0.6, 0.4), (0.7, 0.6)]
    results = Results({"tasks": []}, scattered(pairs, 0.01), [], [])
    assert set(results.correlation("up", PAPER).values()) == {0.5}
    assert results.correlation("up", PAPER[:4]) == {}  # two points


def test_ranks_are_not_told_where_merges_are_within_the_error_of_a_test():
    pairs = [(0.50, 0.1), (0.52, 0.5), (0.53, 0.9)]
    for error, found, said in ((0.01, {1.0}, "+1.00 ± 0.00, positive"), (0.02, set(), "nothing to say")):
        rows = scattered(pairs, error)
        results = Results({"tasks": [{"name": "up", "setting": "images"}]}, rows, [], [])
        assert set(results.correlation("up", PAPER).values()) == found
        assert said in next(_correlations(results))
    partly = [row | {"held_in_standard_error": 0.02} if row["seed"] == 2 else row for row in scattered(pairs, 0.01)]
    assert "in 2 of 3 seeds" in next(_correlations(Results(results.settings, partly, [], [])))


def test_what_seeds_do_not_tell_apart_is_not_told_as_found():
    """Three seeds in which two merges are as good as the base and multitask training up to noise, and a third is better."""
    noise = {"Average": (0.1, -0.1, 0.02), "Mlerp": (-0.1, 0.1, 0.03), "Fisher": (0.3, 0.3, 0.31)}
    rows = [
        {"seed": seed, "task": "up", "method": method, "expert": "", "error": "", **dict.fromkeys(
         ("validation", "held_in", "generalisation"), 0.5 + by[seed]), **dict.fromkeys(("statistics_flops", "merge_flops",
         "learning_flops", "tried", "uncounted", "held_in_standard_error", "generalisation_standard_error"), 0)}
        for seed in range(3) for method, by in {**noise, BASE: (0, 0, 0), MULTITASK: (0, 0, 0)}.items()
    ]  # fmt: skip
    settings = {"tasks": [{"name": "up", "setting": "images"}]}
    said = "\n".join(findings(Results(settings, rows, [], [])))
    assert "against its 50.0 %: higher in 1, lower in 0, not told apart in 2 of 3" in said
    assert said.count("higher in 1, lower in 0, not told apart in 2 of 3, above it Fisher") == 2 and "both Fisher" in said
    alone = [row for row in rows if row["seed"] == 0]
    said = "\n".join(findings(Results(settings, alone, [], [])))
    assert "against its 50.0 %: one seed" in said and "above it none" in said and "Fisher (80.0 %; one seed)" in said


def test_nothing_is_done_twice(out, monkeypatch):
    for name in ("scored", "merged", "learnt"):
        monkeypatch.setattr(Experiment, name, lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))


def test_an_interrupted_run_goes_on(out, rows, tmp_path):
    shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "again" / "rows.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:9])
    reproduce("test", tmp_path / "again", range(1), only=["made digits"])
    free = {"seconds": 0, "cost_seconds": 0, "peak_bytes": 0}
    assert [row | free for row in read_rows(path)] == [row | free for row in rows]
    assert read(out).seeds == [0]


def test_sensitivity_has_the_value_that_was_chosen():
    told, grid = [], tuple(range(10, 101, 10))
    way = Way(nm.MaTS, {"iterations": grid})
    sensitivity = SimpleNamespace(has=lambda **key: False, add=told.append)
    some = SimpleNamespace(
        ways={"MaTS": way}, place={}, every=(0, 1), files=SimpleNamespace(sensitivity=sensitivity),
        chosen=lambda name: {"iterations": 20}, scored_if_able=lambda make, order: dict.fromkeys(COLUMNS, 0.5),
    )  # fmt: skip
    Experiment.sensitivity(some, "MaTS")
    assert [row["value"] for row in told] == [10, 20, 30, 50, 60, 80, 100]  # of ten values six are shown, and this one


def test_networks_that_a_method_refuses_do_not_end_its_curve():
    def of_subset(name, chosen, order):
        if order == [0, 1]:
            raise ValueError("not these")
        return {"members": order}

    told = []
    curves = SimpleNamespace(has=lambda **key: False, add=told.append)
    task = SimpleNamespace(curves=("Ties",), orders=3, numbers=None)
    some = SimpleNamespace(
        every=(0, 1, 2), case=SimpleNamespace(task=task), place={}, files=SimpleNamespace(curves=curves),
        methods=lambda: ["Ties"], chosen=lambda name: {"scale": 1.0}, of_subset=of_subset,
    )  # fmt: skip
    Experiment.curves(some)
    assert sorted(row["members"] for row in told) == [[0, 1, 2], [0, 2], [1, 2]]


def test_a_method_that_refuses_is_a_row_and_other_errors_are_none(tmp_path):
    def refuse(name):
        raise ValueError(f"not {name}")

    found = Experiment.if_able(None, refuse, "Ties")
    assert found["error"] == "not Ties" and found["held_in"] == ""
    (tmp_path / "parents").mkdir()
    nm.checkpoint.save(tmp_path / "parents" / "digits-0-base.safetensors", {"0": {"w": np.ones(2)}}, {"settings": {"task": 1}})
    with pytest.raises(ValueError, match=r"digits-0-base"):
        reproduce("test", tmp_path, range(1), only=["digits"])
    assert not (tmp_path / "rows.csv").exists()


def test_an_unknown_task(tmp_path):
    with pytest.raises(ValueError, match=r"task .*made text"):
        reproduce("test", tmp_path, range(1), only=["made texts"])


def test_more_networks_are_compared_with_two_seed_by_seed():
    rows = [
        {"seed": seed, "task": "up", "method": "Average", "models": m, "order": order, "held_in": 1 - 0.1 * m + 0.02 * order}
        for seed in range(2) for m, orders in ((2, 2), (3, 2), (4, 1)) for order in range(orders)
    ]  # fmt: skip
    found = Results({"tasks": []}, [], [], rows).more_models("up", "held_in")
    np.testing.assert_allclose(found.values, (-0.21, -0.21))
    assert found.verdict == -1 and Results({"tasks": []}, [], [], []).more_models("up", "held_in") is None
