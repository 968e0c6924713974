"""The smallest form of the experiment on CCA Merge: rows, page, resuming, and what must hold of any networks."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import npmerge as nm
from alignment import transport
from alignment.activations.moments import NodeMoments
from alignment.graph import flatten
from alignment.maps import permutation
from experiments.cca_merge.command import reproduce
from experiments.cca_merge.findings import _best, _once, claims, findings
from experiments.cca_merge.folding import folded, norms
from experiments.cca_merge.networks import Networks, cca
from experiments.cca_merge.page import page
from experiments.cca_merge.results import Results
from experiments.cca_merge.rows import Experiment, Job, wanted
from experiments.cca_merge.settings import (
    CCA,
    CCA_REPAIR,
    CHOICES,
    ENSEMBLE,
    EVERY,
    FIRST,
    FOLDED_CCA,
    ON_TEST,
    PARENTS,
    PERMUTED,
    PERMUTED_LIKE,
    PERMUTED_REPAIR,
    PRESETS,
    TUNED,
    TUNED_ONE,
    Block,
)
from experiments.cca_merge.spectra import canonical, explained
from experiments.data import load_images
from experiments.gallery import GALLERY
from experiments.problem import Problem
from experiments.run import read_rows
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cca_merge")
    with grids_go_on():
        reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """A network and itself with its units in another order."""
    problem = Problem(SETTINGS.tasks[0], load_images(), 0)
    network = problem.initial(3)
    nodes = problem.graph.nodes
    keys = jax.random.split(jax.random.key(0), len(nodes))
    orders = (jax.random.permutation(key, node.size) for key, node in zip(keys, nodes.values(), strict=True))
    maps = {name: permutation(order) for name, order in zip(nodes, orders, strict=True)}
    networks = Networks(problem, "same", 2, tmp_path_factory.mktemp("none"))
    networks.models = [network, transport(problem.graph, maps, network)]
    return networks


def one(rows, method, **columns):
    (row,) = [r for r in rows if r["method"] == method and all(r[name] == x for name, x in columns.items())]
    return row


def test_every_row_is_there_and_judged(rows):
    expected = [(b.task, b.split, *job) for b in SETTINGS.blocks for job in wanted(b)]
    assert [tuple(row[name] for name in ("task", "split", "models", "method", "reference")) for row in rows] == expected
    assert all(0 <= row["accuracy"] <= 1 and np.isfinite(row["loss"]) for row in rows)
    assert {row["reference"] for row in rows} == {"", FIRST, *CHOICES}


def test_levels_are_those_of_the_networks(rows):
    for row in rows:
        if row["method"] == PARENTS:
            assert len(row["each"]) == row["models"] and row["accuracy"] == pytest.approx(np.mean(row["each"]), abs=1e-4)
    assert one(rows, ENSEMBLE, models=3)["loss"] < one(rows, PARENTS, models=3)["loss"]  # logits averaged: Jensen


def test_gamma_is_chosen_on_validation_data_but_for_the_row_that_says_so(out, rows):
    searched = read_rows(out / "gammas.csv")
    for row in rows:
        same = [g for g in searched if all(g[name] == row[name] for name in ("seed", "task", "split", "models"))]
        same = [g for g in same if g["reference"] == 0 and g["folded"] == (row["method"] == FOLDED_CCA)]
        assert len(same) == len(SETTINGS.gammas)
        chosen = [g for g in same if row["chosen"] == f"gamma {g['gamma']:g}"]
        if row["method"] in (CCA, FOLDED_CCA) and row["reference"] == FIRST:
            assert chosen[0]["validation"] == max(g["validation"] for g in same) and row["accuracy"] == chosen[0]["test"]
        if row["method"] == ON_TEST:
            assert row["accuracy"] == max(g["test"] for g in same)


def test_every_reference_has_a_gamma_of_its_own(out, rows):
    searched = read_rows(out / "gammas.csv")
    row = one(rows, CCA, models=3, reference=EVERY)
    best = []
    for k in range(3):
        mine = [g for g in searched if (g["models"], g["reference"], g["task"]) == (3, k, row["task"])]
        best.append(max(mine, key=lambda g: (g["validation"], -g["validation_loss"]))["test"])
    assert row["accuracy"] == pytest.approx(np.mean(best)) and len(row["chosen"].split(", ")) == 3


def test_what_the_gammas_of_one_seed_are_worth_to_the_others():
    def search(**gammas):  # accuracy on validation and on test data
        return {
            gamma: {"validation": validation, "validation_loss": 1.0, "test": test, "test_loss": 1.0}
            for gamma, (validation, test) in zip((0.1, 1.0), gammas.values(), strict=True)
        }

    searched = {
        0: search(low=(0.9, 0.5), high=(0.8, 0.6)),
        1: search(low=(0.9, 0.9), high=(0.8, 0.7)),
        2: search(low=(0.7, 0.8), high=(0.8, 0.74)),
    }
    found = _once(searched)
    # seed 0 takes 1.0 on test data and 0.1 on validation data, seed 1 the same twice, seed 2 0.1 and 1.0
    np.testing.assert_allclose(found["test"], [((0.7 - 0.9) + (0.74 - 0.8)) / 2, 0, ((0.5 - 0.6) + (0.9 - 0.7)) / 2])
    np.testing.assert_allclose(found["once"], [(0 + (0.8 - 0.74)) / 2, (0 + (0.8 - 0.74)) / 2, ((0.6 - 0.5) + (0.7 - 0.9)) / 2])


def test_what_cca_averages_gets_the_moments_of_the_reference(permuted, monkeypatch):
    targets = []

    def repair(apply, graph, average, models, measuring):
        targets.append(models)
        return SimpleNamespace(variables=average)

    monkeypatch.setattr(nm, "repair", repair)
    experiment = Experiment(SETTINGS, SETTINGS.blocks[0], permuted.problem, None)
    monkeypatch.setattr(experiment, "_alignment", lambda method, models: (cca(0.1), ""))
    for method in (CCA_REPAIR, PERMUTED_LIKE, PERMUTED_REPAIR):
        experiment._repaired(permuted, Job(2, method, FIRST))
    assert [len(models) for models in targets] == [1, 1, 2]
    jax.tree.map(np.testing.assert_array_equal, targets[0][0], permuted.models[0])


def test_the_first_network_is_fine_tuned_once_where_all_see_the_same(permuted, monkeypatch):
    """Beside any number of networks; where images are divided among them, it is another network each time."""
    asked = []

    def budget(*_, **__):
        asked.append(1)
        return SimpleNamespace(tuned=lambda theta, *_, **__: SimpleNamespace(theta=theta, rate=0.1))

    monkeypatch.setattr("experiments.cca_merge.rows.Budget", budget)
    for division, times in (("same", 1), ("dirichlet", 2)):
        block = dataclasses.replace(SETTINGS.blocks[0], split=division)
        experiment = Experiment(SETTINGS, block, permuted.problem, None)
        asked.clear()
        one, other = (experiment._tuned(permuted, Job(n, TUNED_ONE, FIRST)) for n in (2, 3))
        assert one == other and one["rate"] == 0.1 and len(asked) == times


def test_fine_tuning_sees_the_same_of_everything(rows):
    tuned = [row for row in rows if row["method"] in TUNED]
    assert len(tuned) == len(TUNED) and {row["labelled"] for row in tuned} == {SETTINGS.labelled}
    assert all(row["labelled"] == 0 for row in rows if row["method"] not in TUNED)


def test_the_mean_over_references_is_between_the_best_and_the_worst(rows):
    """With three networks the references are the best, the worst and one more: each is worth between 0 and 1."""
    for method in (CCA, "permutation"):
        total = 3 * one(rows, method, reference=EVERY)["accuracy"]
        known = sum(one(rows, method, reference=choice)["accuracy"] for choice in ("best", "worst"))
        assert -1e-6 <= total - known <= 1 + 1e-6


def test_a_permuted_copy_correlates_wholly(permuted):
    for node, moments in permuted.stats([0, 1])[NodeMoments].items():
        np.testing.assert_allclose(canonical(moments), 1, atol=1e-3, err_msg=node)
        assert explained(moments) == pytest.approx(1, abs=1e-3)


def test_the_average_with_a_permuted_copy_is_the_network(permuted):
    p, x = permuted.problem, permuted.problem.test[0][0]
    network = permuted.merged(cca(0.1), [0, 1])
    np.testing.assert_allclose(p.network.apply(network, x), p.network.apply(permuted.models[0], x), atol=1e-3)


@pytest.fixture(scope="module")
def normalised(tmp_path_factory):
    """Two networks with BatchNorm, whose scales are of both signs."""
    problem = Problem(SETTINGS.tasks[1], load_images(), 0)
    networks = Networks(problem, "same", 2, tmp_path_factory.mktemp("none"))

    def scaled(seed):
        rng, network = np.random.default_rng(seed), problem.initial(seed)
        return jax.tree_util.tree_map_with_path(
            lambda path, x: np.float32(rng.normal(size=x.shape)) if "scale" in jax.tree_util.keystr(path) else x, network
        )

    networks.models = [problem.renewed(scaled(seed)) for seed in (1, 2)]
    return networks


def test_folding_changes_no_function_and_the_scales_come_back(normalised):
    apply, x = normalised.problem.network.apply, normalised.problem.test[0][0]
    for model, other in zip(normalised.models, normalised.folded, strict=True):
        np.testing.assert_allclose(apply(other, x), apply(model, x), atol=1e-4)
        assert {float(v) for norm in norms(other) for v in flatten(other)[f"params/{norm}/scale"]} == {1.0}
    with pytest.raises(ValueError, match="no BatchNorm"):
        folded({"params": {"dense": {"kernel": np.ones((2, 2))}}})


def test_what_is_folded_and_merged_with_itself_is_the_network(normalised):
    """Also by maps that mix channels: of a network to itself CCA is the identity."""
    apply, x, model = normalised.problem.network.apply, normalised.problem.test[0][0], normalised.models[0]
    alike = Networks(normalised.problem, "same", 2, normalised.folder)
    alike.models = [model, model]
    network = alike.merged(cca(0.1), [0, 1], folded=True)
    np.testing.assert_allclose(apply(network, x), apply(model, x), atol=1e-3)


def test_moments_of_some_in_an_order_are_what_is_collected_of_them(permuted):
    p, order = permuted.problem, [1, 0]
    models = [permuted.models[k] for k in order]
    collected = nm.collect(p.network.apply, p.graph, models, p.measuring, [NodeMoments()])[NodeMoments]
    for node, found in permuted.stats(order)[NodeMoments].items():
        np.testing.assert_allclose(found.mean, collected[node].mean, atol=1e-5)
        np.testing.assert_allclose(found.cross, collected[node].cross, atol=1e-5)


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text
    assert {claim.mark for claim in GALLERY["cca_merge"](out)} == {"one seed"}
    for row in rows:
        assert f"{100 * row['accuracy']:.1f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("models", "gamma", "correlations"))


def test_tables_follow_the_rows():
    block = Block("digits-vgg", "same", (2, 3))
    key = {"task": block.task, "split": block.split, "reference": FIRST}

    def told(*gains):  # with two networks, with three
        rows = [
            key | {"seed": seed, "models": n, "method": method, "accuracy": 0.5 + 0.01 * seed + gain * (method == CCA)}
            for seed in range(3) for n, gain in zip(block.counts, gains, strict=True) for method in (CCA, PERMUTED)
        ]  # fmt: skip
        settings = {"tasks": [{"name": block.task, "network": "VGG", "data": "digits"}]}
        results = Results(settings, [block], rows, [], [])
        return dict(findings(results))["CCA beside other alignments"][-1], [claim.mark for claim in claims(results)]

    line, marks = told(0.1, -0.1)  # numbers of networks that answer in opposite ways are not pooled
    assert line.endswith("| -10.00 ± 0.00 (VGG on digits, same, 3 networks) | +10.00 ± 0.00 (VGG on digits, same, 2 networks) "
                         "| 1 | 1 | 0 | 3 of 6 |")  # fmt: skip
    assert marks == ["partly"] and told(0.1, 0.2)[1] == ["reproduced"]
    assert told(0.0, 0.0)[0].endswith("| 0 | 0 | 2 | 0 of 6 |")


def test_the_best_alignment_is_one_that_is_told_apart():
    block = Block("digits-vgg", "same", (2, 3))
    key = {"task": block.task, "split": block.split, "reference": FIRST, "models": 3}

    def best(gains):
        rows = [
            key | {"seed": seed, "method": method, "accuracy": 0.5 + gain}
            for method, each in ((CCA, gains), (PERMUTED, (0.0, 0.0, 0.0)))
            for seed, gain in enumerate(each)
        ]
        return _best(Results({}, [block], rows, [], []), block, 3)

    assert best((0.1, 0.11, 0.1)) == "With 3 CCA is the best alignment."
    assert best((0.1, -0.05, 0.0)) == "With 3 CCA is the highest alignment, not told apart from permutation."


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
    reproduce("test", tmp_path / "again", range(1))
    found = read_rows(path)
    assert [row | {"seconds": 0} for row in found] == [row | {"seconds": 0} for row in rows]


def test_an_unknown_task(tmp_path):
    with pytest.raises(ValueError, match=r"task .*digits-vgg"):
        reproduce("test", tmp_path, range(1), only=["digit-vgg"])
