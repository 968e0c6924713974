"""The smallest form of the experiment on PLeaS: rows, page, resuming, parts of data, and what must hold of any networks."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from alignment import ActivationMatching, WeightMatching
from alignment.graph import flatten
from experiments.data import DataSet, Part, load, standardised
from experiments.data.types import Known
from experiments.gallery import GALLERY
from experiments.pleas.command import reproduce
from experiments.pleas.findings import claims, findings
from experiments.pleas.functions import Towards, WithinPart
from experiments.pleas.merges import Merges, distilled
from experiments.pleas.networks import Networks, logits_of, scored
from experiments.pleas.page import page
from experiments.pleas.parts import alternating, other_images, parts_of
from experiments.pleas.results import Results
from experiments.pleas.rows import Experiment
from experiments.pleas.settings import (
    BY_WEIGHTS,
    CLOSED,
    CONTROL,
    DISTILLED,
    ELSEWHERE,
    ENSEMBLE,
    GRADIENT,
    LABELLED,
    NOISE,
    OWN,
    PARENTS,
    PARTIAL,
    PRESETS,
    REGMEAN,
    SEQUENTIAL,
    SIZED,
    ZIPPED,
    Job,
    wanted,
)
from experiments.run import read_rows
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]
TASK = SETTINGS.tasks[0]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pleas")
    with grids_go_on():
        reproduce("test", folder, range(1), tell=lambda said: None)
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


def one(rows, method, **columns):
    columns = {"task": TASK.name} | columns
    (row,) = [r for r in rows if r["method"] == method and all(r[name] == x for name, x in columns.items())]
    return row


def parts(division, seed=0):
    return parts_of(dataclasses.replace(TASK, division=division), load("digits"), seed)


def test_every_row_is_there_and_judged(rows):
    expected = [(task.name, *job) for task in SETTINGS.tasks for job in wanted(SETTINGS, task)]
    assert [tuple(row[name] for name in ("task", "method", "shared", "source")) for row in rows] == expected
    assert all(0 <= row["joint"] <= row["accuracy"] <= 1 and np.isfinite(row["loss"]) for row in rows)
    assert all(row["accuracy"] == pytest.approx(np.mean(row["each"]), abs=1e-4) for row in rows)


def test_merges_keep_to_the_operations_of_zipit(rows):
    for row in rows:
        if row["method"] in SIZED:
            most = 2 if row["shared"] == 0 else one(rows, ZIPPED, task=row["task"], shared=row["shared"])["flops"]
            assert row["flops"] <= min(most, row["dense"]) + 1e-3
    assert 1 == one(rows, ZIPPED, shared=2)["flops"] < one(rows, ZIPPED, shared=1)["flops"] < one(rows, ENSEMBLE)["flops"] < 2


def test_what_is_solved_differs_from_where_it_starts(rows):
    for shared in (2, 1):
        losses = [one(rows, method, shared=shared, source=OWN)["loss"] for method in (PARTIAL, CLOSED, GRADIENT, SEQUENTIAL)]
        assert len(set(losses)) == 4
    assert one(rows, CLOSED, shared=1, source=OWN)["loss"] != one(rows, CLOSED, shared=1, source=NOISE)["loss"]


def test_what_is_best_on_validation_data_is_chosen():
    networks = SimpleNamespace(validated={"a": 0.7, "b": 0.2, "c": 0.5}.get)  # losses
    assert Merges(SETTINGS, networks)._best({name: name for name in "abc"}) == "b"


def test_what_is_learned_alone_has_a_rate(rows):
    assert {row["method"] for row in rows if row["rate"] != ""} == {*LABELLED, DISTILLED}
    assert {row["method"] for row in rows if row["chosen"]} == {REGMEAN, ZIPPED}


def test_distillation_reads_no_labels(out):
    """It is towards the ensemble, or towards each network for its own head, and gives zero where that is reached."""
    for division in ("classes", "halves"):
        task = dataclasses.replace(TASK, division=division)
        networks = Networks(task, parts(division), 0, out / "parents")
        x = networks.images(OWN).inputs[:8]
        each = [np.asarray(networks.network.apply(model, x)) for model in networks.models]
        expected = np.concatenate(each, -1) if task.heads else np.mean(each, 0)
        np.testing.assert_allclose(networks.taught(x), expected, rtol=1e-4, atol=1e-5)
        towards = Towards(networks.classes)
        np.testing.assert_allclose(towards(expected, expected), 0, atol=1e-6)
        assert (towards(np.zeros_like(expected), expected) > 0).all()


def test_other_images_do_not_match_units(out):
    networks = Networks(TASK, parts("classes"), 0, out / "parents")
    merges, sources = Merges(SETTINGS, networks), (OWN, BY_WEIGHTS, NOISE)
    ready = [merges._prepared(CLOSED, source) for source in sources]
    assert [type(r.pleas.matching) for r in ready] == [ActivationMatching, WeightMatching, WeightMatching]
    seen = [r.batches[0][0] for r in ready]
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_a_loss_of_less_than_a_margin():
    place = {"task": TASK.name, "shared": 1}
    for division, loss, mark in (("halves", 0.01, "reproduced"), ("domains", 0.03, "refuted"), ("classes", 0.01, None)):
        task = dataclasses.asdict(TASK) | {"others": ["x"], "division": division, "domains": ["a", "b"]}
        settings = json.loads(json.dumps({"shared": SETTINGS.shared, "tasks": [task]}))
        found = [
            place
            | {"seed": seed, "method": GRADIENT, "source": source, "accuracy": 0.5 + 0.001 * seed - loss * (source == "x")}
            for seed in range(3)
            for source in (OWN, "x")
        ]
        marks = {c.claim.says: c.mark for c in claims(Results(settings, [TASK.name], found))}
        said = "with other images than the task's PLeaS loses less than two points"  # published for shared labels alone
        assert marks == ({said: mark} if mark else {})


def test_networks_that_keep_all_units_keep_their_outputs(out):
    """At the size of both, but for statistics of BatchNorm; so for the merge of one network with itself at any size."""
    networks = Networks(TASK, parts("classes"), 0, out / "parents")
    function = Merges(SETTINGS, networks).make(PARTIAL, 0, OWN).function
    x = networks.measuring(OWN)[0][0]
    found, _ = function.train_apply(function.variables, x)
    each = [networks.network.train_apply(model, x)[0] for model in networks.models]
    np.testing.assert_allclose(found, np.concatenate(each, -1), atol=1e-3)


def test_networks_of_the_same_labels_are_judged_on_both_parts(out):
    networks = Networks(dataclasses.replace(TASK, division="halves", others=("digits",)), parts("halves"), 0, out / "parents")
    experiment = Experiment(SETTINGS, networks, None, lambda said: None)
    alone, both = (experiment.measured(Job(method, "", OWN)) for method in (PARENTS, ELSEWHERE))
    assert alone["accuracy"] == pytest.approx(both["accuracy"], abs=0.02)  # halves of one data set: elsewhere is no other place
    learned, without = (experiment.measured(Job(method, shared, OWN)) for method, shared in ((CONTROL, 2), (DISTILLED, 1)))
    assert learned["rate"] and without["rate"] and without["flops"] > learned["flops"] == 1
    assert 0 <= experiment.measured(Job(CLOSED, 1, "digits"))["accuracy"] <= 1


def test_what_is_distilled_stays_of_its_size(out):
    """Blocks between separate units of different networks are no weights: learned they would make a larger network."""
    networks = Networks(TASK, parts("classes"), 0, out / "parents")
    start = Merges(SETTINGS, networks).make(PARTIAL, 1, OWN)
    before, after = (flatten(x.function.variables) for x in (start, distilled(SETTINGS, networks, start)[0]))
    empty = {path: np.asarray(leaf) == 0 for path, leaf in before.items() if leaf.ndim > 1}
    assert any(places.any() for places in empty.values())
    for path, places in empty.items():
        assert not np.asarray(after[path])[places].any() and (np.asarray(after[path]) != np.asarray(before[path])).any()


def test_networks_of_the_same_labels_are_one(out, tmp_path):
    """Two copies of a network: any merge of them is that network, but for statistics of BatchNorm."""
    networks = Networks(dataclasses.replace(TASK, division="halves"), parts("halves"), 0, tmp_path)
    networks.models = [networks.network.variables] * 2
    x = networks.measuring(OWN)[0][0]
    expected, _ = networks.network.train_apply(networks.models[0], x)
    for method, shared in ((PARTIAL, 1), (ZIPPED, 1)):
        function = Merges(dataclasses.replace(SETTINGS, zipped=((1.0, 0.0),)), networks).make(method, shared, OWN).function
        np.testing.assert_allclose(function.train_apply(function.variables, x)[0], expected, atol=1e-3)
        assert logits_of(function, x).shape == (len(x), 10)


def test_scores_are_among_the_classes_of_a_part():
    logits, labels = np.array([[0.0, 1.0, 9.0, 0.0], [0.0, 9.0, 1.0, 0.0]]), np.array([1, 2])
    accuracy, loss, joint = scored(logits, labels, 2)
    assert (accuracy, joint) == (1, 0) and loss == pytest.approx(np.log1p(np.exp(-1)))
    assert scored(logits, labels, 4)[0] == 0
    x = np.eye(2, dtype=np.float32)
    value = WithinPart(2)(lambda v, x: x @ v, logits.astype(np.float32), None, (x, labels))
    assert float(value) == pytest.approx(loss, abs=1e-6)


def test_parts_divide_the_images():
    whole = standardised(load("digits"))
    halves, classes = ([part.images for part in parts(division)] for division in ("halves", "classes"))
    for two in (halves, classes):
        assert sum(len(images.train.labels) for images in two) == len(whole.train.labels)
    assert all(sorted(set(images.test.labels)) == [*range(5)] for images in classes)
    assert sum(len(images.test.labels) for images in classes) == len(whole.test.labels)
    again = [part.images.train.inputs[:1] for part in parts("classes", seed=1)]
    assert not np.array_equal(again[0], classes[0].train.inputs[:1]) or not np.array_equal(
        again[1], classes[1].train.inputs[:1]
    )


def test_parts_of_domains():
    rng = np.random.default_rng(0)
    domain = np.arange(40, dtype=np.int32) % 3
    images = rng.integers(0, 50, size=(40, 4, 4, 3)).astype(np.uint8) + (60 * domain).astype(np.uint8)[:, None, None, None]
    part = Part(images, domain * 0, {"domain": domain}, {"domain": ("a", "b", "c")})
    data = DataSet(
        Known("three domains", (4, 4, 3), 1, None, "made here"), Path(), {x: lambda: part for x in ("train", "test")}
    )
    task = dataclasses.replace(TASK, division="domains", domains=("a", "c"))
    a, c = parts_of(task, data, 0)
    assert (a.name, a.number, c.name, c.number) == ("a", 0, "c", 2)
    assert a.images.train.inputs.max() < c.images.train.inputs.min() and len(c.images.test.labels) == 13
    with pytest.raises(ValueError, match="has the domains a, b, c: got 'd'"):
        parts_of(dataclasses.replace(task, domains=("a", "d")), data, 0)


def test_other_images_are_scaled_as_any():
    for name in ("digits", NOISE):
        found = other_images(name, "", 1000, (8, 8, 1), seed=0).inputs
        assert found.shape == (1000, 8, 8, 1) and abs(found.mean()) < 0.02 and found.std() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="expected"):
        other_images("digits", "", 10, (32, 32, 3), seed=0)


def test_examples_alternate():
    a, b = standardised(load("digits")).test, standardised(load("digits")).validation
    found = alternating(a, b)
    assert found.labels[:4].tolist() == [a.labels[0], b.labels[0], a.labels[1], b.labels[1]]
    np.testing.assert_array_equal(found.inputs[1::2], b.inputs)


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert {claim.mark for claim in GALLERY["pleas"](out)} == {"one seed"}
    assert page(out) == text
    for row in rows:
        assert f"{100 * row['accuracy']:.1f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert (out / "size.png").stat().st_size > 10_000


def test_tables_follow_the_rows():
    place = {"task": TASK.name, "shared": 2, "source": OWN}
    settings = json.loads(json.dumps({"shared": SETTINGS.shared, "tasks": [dataclasses.asdict(TASK)]}))

    def told(gain):
        found = [
            place | {"seed": seed, "method": method, "accuracy": 0.5 + 0.01 * seed + gain * (method == GRADIENT)}
            for seed in range(3) for method in (GRADIENT, ZIPPED)
        ]  # fmt: skip
        return findings(Results(settings, [TASK.name], found))[2]

    assert told(0.1).startswith("| the paper: PLeaS is better than ZipIt at the size of one network |")
    assert told(0.1).endswith("| 1 | 0 | 0 | 3 of 3 |") and told(-0.1).endswith("| 0 | 1 | 0 | 0 of 3 |")
    assert told(0.0).endswith("| 0 | 0 | 1 | 0 of 3 |") and "| -10.00 ± 0.00 (digits, half of" in told(-0.1)


def test_nothing_is_done_twice(out, monkeypatch):
    monkeypatch.setattr(Experiment, "measured", lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))


def test_an_interrupted_run_goes_on(out, rows, tmp_path):
    shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "again" / "rows.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:9])
    reproduce("test", tmp_path / "again", range(1), tell=lambda said: None)
    assert [row | {"seconds": 0} for row in read_rows(path)] == [row | {"seconds": 0} for row in rows]


def test_an_unknown_task(tmp_path):
    with pytest.raises(ValueError, match=r"task .*digits"):
        reproduce("test", tmp_path, range(1), only=["digit"])
