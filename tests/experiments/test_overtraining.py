"""The smallest form of the experiment on overtrained experts: rows, tasks, difficulty, page, resuming."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import npmerge as nm
from experiments.data import load_images
from experiments.overtraining.command import reproduce
from experiments.overtraining.experts import Family
from experiments.overtraining.findings import claims, findings
from experiments.overtraining.page import page
from experiments.overtraining.results import Results
from experiments.overtraining.rows import Experiment, wanted
from experiments.overtraining.settings import (
    AVERAGE,
    BASE,
    EVEN,
    EXPERTS,
    FULL,
    LORA,
    MIXTURE,
    PLATEAU,
    PRESETS,
    TRAININGS,
    Setup,
    Sizes,
)
from experiments.overtraining.tasks import LANGUAGES, VIEWS, image_tasks, text_tasks
from experiments.run import read_rows
from experiments.strings import read_strings
from npmerge.models import Gpt2
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]
(SETUP,) = SETTINGS.setups


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overtraining")
    with grids_go_on():
        reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


@pytest.fixture(scope="module")
def family():
    return Family(SETTINGS, SETUP, image_tasks(load_images(), SETUP.sizes, (-1,), 0), 0)


def one(rows, training, steps, method):
    (row,) = [r for r in rows if (r["training"], r["steps"], r["method"]) == (training, steps, method)]
    return row


def test_every_row_is_there_and_judged(rows):
    assert [(row["training"], row["steps"], row["method"]) for row in rows] == list(wanted(SETTINGS))
    for row in rows:
        assert row["accuracy"] == pytest.approx(np.mean(row["each"]), abs=1e-4) and np.isfinite(row["loss"])
        assert len(row["trained"]) == len(VIEWS) and (row["steps"] == PLATEAU or set(row["trained"]) == {row["steps"]})
    assert len({row["accuracy"] for row in rows if row["method"] == BASE}) == 1


def test_experts_learn_and_their_moments_are_of_one_run(rows):
    for training in TRAININGS:
        losses = [one(rows, training, steps, EXPERTS)["loss"] for steps in SETTINGS.moments]
        assert losses[1] < losses[0] < one(rows, training, 4, BASE)["loss"]


def test_a_mixture_of_adapters_has_the_trunk_of_its_base(family):
    """Experts differ from the base in adapted weights only."""
    (model, *_), base = family.experts(LORA)[16].models, family.base
    changed = [float(np.abs(a - b).max()) > 0 for a, b in zip(*map(jax.tree.leaves, (model, base)), strict=True)]
    assert changed == [np.ndim(x) == 2 for x in jax.tree.leaves(base)]


def test_an_even_mixture_of_one_expert_is_that_expert(family, monkeypatch):
    experts = family.experts(LORA)[16]
    same = experts._replace(models=[experts.models[0]] * 2)
    found = Experiment(family, None)._mixture(same, EVEN)
    assert found["loss"] == pytest.approx(np.mean([m.loss for m in family.tested(experts.models[0])]), rel=1e-5)


def test_a_router_learns(rows):
    """Chosen by selection loss among moments that include the even start."""
    for steps in (*SETTINGS.moments, PLATEAU):
        assert one(rows, LORA, steps, MIXTURE)["selection"] <= one(rows, LORA, steps, EVEN)["selection"] + 1e-5


def test_the_rule_stops_each_expert_at_a_judgement(rows):
    for training in TRAININGS:
        trained = one(rows, training, PLATEAU, AVERAGE)["trained"]
        assert all(step % SETTINGS.judged == 0 and step <= max(SETTINGS.moments) for step in trained)


def test_the_rule_cuts_the_rate_at_the_first_plateau_and_stops_at_the_second(family, monkeypatch):
    rules = []

    def fit(theta, *_, patience, **__):
        rules.append(patience)
        return SimpleNamespace(theta=theta, best_step=0)

    monkeypatch.setattr(nm, "fit", fit)
    family._stopped(FULL)
    rising = [1.0 + k for k in range(4 * SETTINGS.patience)]
    for rule in rules:
        cut, over = (rule(rising[: 1 + n * SETTINGS.patience]) for n in (1, 2))
        assert cut.factor < 1 and not cut.stop and over.stop
    assert len(rules) == len(VIEWS)


def test_only_experts_that_are_merged_are_kept(family):
    assert list(family.experts(FULL)) == [*SETTINGS.moments, PLATEAU]


def test_parts_of_tasks_have_no_image_in_common(monkeypatch):
    for name in VIEWS:
        monkeypatch.setitem(VIEWS, name, lambda x: x)
    tasks = image_tasks(load_images(), SETUP.sizes, (-1,), 3)
    parts = {"base": tasks.base, "base selection": tasks.base_selection, "learning": tasks.each[0].learning}
    parts |= {"test": tasks.each[0].test} | {task.name: task.train for task in tasks.each}
    keys = {name: {x.tobytes() for x in part.inputs} for name, part in parts.items()}
    assert not [(a, b) for a in keys for b in keys if a < b and keys[a] & keys[b]]
    assert all(len(part.labels) == len(keys[name]) for name, part in parts.items())
    for task in tasks.each:  # learning and test images are the same ones, seen anew
        np.testing.assert_array_equal(task.test.labels, tasks.each[0].test.labels)


@pytest.mark.parametrize("name", VIEWS)
def test_views_change_images_and_keep_their_size(name):
    images = load_images().test.inputs[:20]
    seen = VIEWS[name](images)
    assert seen.shape == images.shape and seen.dtype == images.dtype and np.isfinite(seen).all()
    assert np.abs(seen - images).mean() > 0.05


def test_a_sheared_image_is_shifted_about_its_middle():
    image = np.zeros((1, 28, 28, 1), np.float32)
    image[0, :, 14] = 1
    rows = VIEWS["sheared"](image)[0, :, :, 0]
    assert [int(row.argmax()) for row in rows[[4, 14, 24]]] == [21, 14, 7]


@pytest.fixture
def strings(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "strings.jsonl"
    words = ["".join(rng.choice(list("abcdeß"), 12)) for _ in range(60)]
    lines = [
        {name: f"{name} {word}" for name in ("en", *LANGUAGES, "ja") if (name, k) != ("tr", 0)} for k, word in enumerate(words)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return read_strings(path, ("en", *LANGUAGES))


def test_text_is_cut_into_windows_of_next_letters(strings):
    setup = Setup("text", "text", "GPT", Gpt2(40, 8, 1, 2, 8, length=10), Sizes(20, 20, 3, 9, 9))
    tasks, other = (text_tasks(strings, setup, seed) for seed in (0, 1))
    assert [task.name for task in tasks.each] == list(LANGUAGES) and "ja" not in strings[0] and "tr" not in strings[0]
    for part in (tasks.base, *tasks.each[0][1:]):
        assert part.inputs.shape == part.labels.shape and part.inputs.shape[1] == 10
        np.testing.assert_array_equal(part.inputs.ravel()[1:], part.labels.ravel()[:-1])
    np.testing.assert_array_equal(tasks.each[0].test.inputs, other.each[0].test.inputs)
    assert not np.array_equal(tasks.each[0].train.inputs, other.each[0].train.inputs)
    small = dataclasses.replace(setup, config=Gpt2(4, 8, 1, 2, 8, 10))
    with pytest.raises(ValueError, match="letters, the network of text takes 4"):
        text_tasks(strings, small, 0)


def test_test_images_are_of_all_classes_where_a_file_is_sorted():
    images = load_images()
    order = np.argsort(images.test.labels, kind="stable")
    sorted_by_class = images._replace(test=images.test.take(order))
    test, *_ = (task.test for task in image_tasks(sorted_by_class, SETUP.sizes, (-1,), 0).each)
    assert np.bincount(test.labels, minlength=10).min() >= SETUP.sizes.test // 12


def test_missing_strings_are_told(tmp_path):
    with pytest.raises(ValueError, match="no strings at"):
        read_strings(tmp_path / "none.jsonl")


def test_difficulty_is_the_length_of_the_error(family):
    task = family.tasks.each[0]
    scores, right = family.difficulty(family.base, task), family.right(family.base, task)
    probabilities = np.asarray(jax.nn.softmax(family.apply(family.base, task.train.inputs)))
    expected = np.linalg.norm(probabilities - np.eye(10)[task.train.labels], axis=1)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores[right].mean() < scores[~right].mean()


def test_experts_that_score_have_seen_other_batches(family):
    for theirs, judged in zip(family.scoring(FULL), family.experts(FULL)[SETTINGS.scored].models, strict=True):
        assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (theirs, judged)), strict=True))


def test_scales_go_on_beyond_an_end_of_their_grid(family):
    """A scale of task vectors that is best at the end of a grid is not the answer yet."""
    grid = dataclasses.replace(SETTINGS, scales=(0.01, 0.02), further=2)
    other = Experiment(family, None)
    other.settings = grid
    row = other._closed(family.experts(FULL)[16], "task arithmetic")
    assert row["chosen"] in ("scale 0.04", "scale 0.08")


def test_groups_are_ordered_by_difficulty(out):
    found = read_rows(out / "difficulty.csv")
    assert len(found) == len(TRAININGS) * len(SETTINGS.moments) * SETTINGS.groups
    for training in TRAININGS:
        easy, hard = ([r["expert"] for r in found if r["training"] == training and r["group"] == group] for group in (0, 1))
        assert easy[0] > hard[0]
    assert all(0 <= row[name] <= 1 for row in found for name in ("expert", "merged", "forgotten"))


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text
    for row in rows:
        assert f"{100 * row['accuracy']:.1f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("moments", "difficulty"))


def test_marks_and_words_follow_the_rows():
    moments = [4, 64, 512]

    def results(gain):
        """The average of early experts has so much more than that of late ones."""
        rows = [
            {"seed": seed, "setup": "images", "training": FULL, "steps": steps, "method": AVERAGE, "trained": [steps],
             "accuracy": 0.5 + 0.001 * seed + gain * (steps != 512), "selection": 1 - gain * (steps == 64)}
            for seed in range(3) for steps in (*moments, PLATEAU)
        ]  # fmt: skip
        return Results({"moments": moments, "groups": 2}, rows, [])

    def marks(gain):
        return {x.claim.says: x.mark for x in claims(results(gain))}

    early, stopping = "full experts merge better before their training ends", "early stopping for each task helps the merge"
    assert marks(0.1) == {early: "reproduced", stopping: "reproduced"}
    assert marks(-0.1) == {early: "refuted", stopping: "refuted"} and set(marks(0.0).values()) == {"not told apart"}
    assert "average 60.1 % at 4 and 50.1 % at the end" in next(findings(results(0.1)))


def test_nothing_is_done_twice(out, monkeypatch):
    monkeypatch.setattr("experiments.overtraining.page.figures", lambda _: {})
    monkeypatch.setattr(Family, "experts", lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))


def test_an_interrupted_run_goes_on(out, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.overtraining.page.figures", lambda _: {})
    shutil.copytree(out, tmp_path / "again")
    for name in ("rows", "difficulty"):
        path = tmp_path / "again" / f"{name}.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:-2]) + lines[-2][:9])
    reproduce("test", tmp_path / "again", range(1))
    timed = {"seconds": 0}
    assert [row | timed for row in read_rows(tmp_path / "again" / "rows.csv")] == [row | timed for row in rows]
    assert read_rows(tmp_path / "again" / "difficulty.csv") == read_rows(out / "difficulty.csv")


def test_an_eighth_of_all_steps_is_a_moment():
    assert all(max(PRESETS[name].moments) // 8 in PRESETS[name].moments for name in ("cpu", "paper"))


def test_learned_rows_are_tuned_as_their_control():
    for settings in PRESETS.values():
        assert len(settings.learned_rates) == len(settings.control_rates) == len(settings.router_rates)
        assert settings.scored <= max(settings.moments) and isinstance(nm.Plateau(settings.patience, cuts=1), nm.Plateau)
