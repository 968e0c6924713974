"""The smallest form of the experiment on numbers of networks: rows, laws, page, resuming."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import npmerge as nm
from experiments.data import load_images
from experiments.gallery import GALLERY, gallery
from experiments.run import read_rows
from experiments.scaling.command import reproduce
from experiments.scaling.findings import CLAIMS, Pair, _by_number, _share, _where, claims, differences
from experiments.scaling.laws import growing, linear, tending
from experiments.scaling.networks import Networks
from experiments.scaling.page import page
from experiments.scaling.results import Results, read
from experiments.scaling.rows import LOOKS, Experiment, Job, wanted
from experiments.scaling.settings import (
    AVERAGE,
    CONTROL,
    ENSEMBLE,
    JOINT,
    LEARNED,
    LONG,
    MEAN,
    NONE,
    PAIRS,
    PARENTS,
    PRESETS,
    REFERENCE,
    SHORT,
    SUCCESSIVE,
    TENSORS,
    UNIVERSE,
    Block,
)
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "scaling"
    with grids_go_on():
        reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


def one(rows, method, **columns):
    (row,) = [r for r in rows if r["method"] == method and all(r[name] == x for name, x in columns.items())]
    return row


def test_every_row_is_there_and_judged(rows):
    expected = [(b.name, *job) for b in SETTINGS.blocks for job in wanted(b)]
    assert [tuple(row[name] for name in ("block", "models", "alignment", "method")) for row in rows] == expected
    assert all(0 <= row["accuracy"] <= 1 and np.isfinite(row["loss"]) for row in rows)
    assert one(rows, ENSEMBLE, models=2)["loss"] < one(rows, PARENTS, models=2)["loss"]  # logits averaged: Jensen


def test_one_pair_is_the_joint_merge_of_two(rows):
    two = [one(rows, method, models=2)["loss"] for method in (JOINT, SHORT, PAIRS)]
    assert two == pytest.approx([two[0]] * 3, rel=1e-5)
    assert one(rows, CONTROL, models=2)["loss"] == one(rows, LONG, models=2)["loss"]


def test_what_is_learned_and_held_grows_as_it_should(rows):
    found = {(row["models"], row["method"]): row for row in rows if row["block"] == SETTINGS.blocks[0].name}
    parameters = found[2, CONTROL]["learned"]
    assert (
        found[3, JOINT]["learned"] == 3 * parameters and found[3, PAIRS]["learned"] == found[2, JOINT]["learned"] == parameters
    )
    assert found[3, TENSORS]["learned"] == 3 * 4
    for row in rows:
        assert (row["predicted"] != "") == (row["method"] in (JOINT, TENSORS, PAIRS, CONTROL))
        if row["predicted"] != "":
            assert 0.5 < row["predicted"] / row["planned"] < 2
    assert found[3, JOINT]["predicted"] > found[2, JOINT]["predicted"] == found[3, PAIRS]["predicted"]


@pytest.fixture(scope="module")
def permuted(tmp_path_factory):
    """Networks that are one another with their units in other orders."""
    networks = Networks(SETTINGS, SETTINGS.blocks[1], load_images(), 0, tmp_path_factory.mktemp("none"))
    first, rng = networks.starts[0], np.random.default_rng(0)
    (one, up), (two, down) = sorted(first["params"]["layers"].items())

    def reordered(order):
        layers = {one: {name: x[..., order] for name, x in up.items()}, two: {**down, "kernel": down["kernel"][order]}}
        return {**first, "params": {"layers": layers}}

    models = [first, *(reordered(rng.permutation(6)) for _ in range(2))]
    networks.models = models
    return networks


@pytest.mark.parametrize("alignment", [REFERENCE, MEAN, UNIVERSE, SUCCESSIVE])
def test_every_alignment_finds_a_permuted_copy(permuted, alignment):
    models, _ = permuted.aligned(alignment, 3)
    average = nm.Average()(nm.stack_models(models))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, permuted.models[0])
    as_they_are = nm.Average()(nm.stack_models(permuted.aligned(NONE, 3)[0]))
    assert max(float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (average, as_they_are)), strict=True)) > 0.1


def test_an_alignment_is_timed_once_its_program_is_there(permuted, monkeypatch):
    """One of all networks together is compiled for their number, others for two."""
    brought = []
    monkeypatch.setattr(Networks, "_bring", lambda self, alignment, models: brought.append(len(models)) or list(models))
    for alignment in (MEAN, UNIVERSE, REFERENCE, SUCCESSIVE):
        monkeypatch.setattr(permuted, "_aligned", {})
        permuted.aligned(alignment, 3)
    assert brought == [3, 3, 3, 3, 2, 3, 2, 3]


def test_the_control_of_pairs_looks_at_validation_data_as_often_as_they(permuted, monkeypatch):
    budgets = []

    def budget(*given):
        budgets.append(given)
        return SimpleNamespace(tuned=lambda theta, *_, **__: SimpleNamespace(theta=theta, loss=1.0))

    monkeypatch.setattr("experiments.scaling.rows.Budget", budget)
    experiment = Experiment(permuted, None)
    for method in (CONTROL, LONG):
        experiment._learner(Job(3, NONE, method), permuted.models).learn(0.1)
    pairs, short = (experiment._learner(Job(3, NONE, method), permuted.models) for method in (PAIRS, SHORT))
    assert budgets == [(SETTINGS.steps, SETTINGS.steps), (2 * SETTINGS.steps, 2 * (LOOKS + 2))]
    assert pairs.steps == 2 * SETTINGS.steps and short.steps == SETTINGS.steps


def test_turns_divide_the_steps_nearly_evenly():
    settings = PRESETS["cpu"]
    turns = [n - 1 for n in settings.blocks[0].counts]
    assert all(0.95 <= settings.steps // n * n / settings.steps <= 1 for n in turns)


def test_networks_are_kept_and_read_again(out):
    networks = Networks(SETTINGS, SETTINGS.blocks[0], load_images(), 0, out / "parents")
    trained = networks.models
    assert networks.path.is_file() and len(trained) == 3
    losses = [nm.evaluate(networks.apply, m, [tuple(networks.pool)]).loss for m in (networks.starts[0], trained[0])]
    assert losses[1] < losses[0]


def test_laws_are_found_again():
    counts = (2, 4, 8, 16, 32)
    law = tending(counts, [0.3 + 0.8 * n**-0.7 for n in counts])
    assert (law.limit, law.scale, law.power, law.foretold) == pytest.approx((0.3, 0.8, -0.7, 1), rel=0.05)
    assert (law.low, law.high) == (2, 32) and law.explained > 0.999
    cost = growing(counts, [0.02 * n**1.5 for n in counts])
    assert (cost.scale, cost.power, cost.foretold, cost.at(64)) == pytest.approx((0.02, 1.5, 1, 0.02 * 512), rel=1e-6)
    assert tending(counts[:3], [1, 2, 3]) is None and growing(counts, [0.0] * 5) is None


def test_a_law_holds_that_explains_and_foretells():
    counts = (2, 4, 8, 16, 32)
    assert tending(counts, [0.3 + 0.8 * n**-0.7 for n in counts]).holds
    assert not tending(counts, [1.0, 2.0, 1.0, 2.0, 1.0]).holds
    assert not growing(counts, [1, 2, 1, 2, 1]).holds and not growing(counts, [1, 1.1, 1.2, 9, 9]).holds


def test_an_error_tends_to_nothing_below_zero():
    law = tending((2, 4, 8, 16, 32), [5.0, 4.0, 3.0, 2.0, 1.0])  # as fast as a logarithm falls
    assert law.limit == 0 and law.explained < 1


def test_bytes_are_a_line_of_more_than_two():
    law = linear((2, 4, 8, 16, 32), [1.0, *(100 + 7.0 * n for n in (4, 8, 16, 32))])
    assert (law.limit, law.scale, law.power, law.foretold) == pytest.approx((100, 7, 1, 1)) and law.low == 4


def test_all_channels_are_measured_on_different_images_of_all_networks(permuted):
    ((images, _),) = permuted.measuring(3)  # all networks have the same
    assert len(np.unique(images, axis=0)) == len(images) == SETTINGS.measured


def test_a_law_that_does_not_hold_foretells_badly():
    counts = (2, 4, 8, 16, 32)
    assert abs(growing(counts, [1, 1, 1, 1, 10]).foretold - 0.1) < 0.01


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text
    for row in rows:
        assert f"{100 * row['accuracy']:.1f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    names = ("alignments", "closed", "learned", "gains", "cost", "memory")  # three numbers are too few for laws
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in names)
    assert [found.mark for found in claims(read(out))] == ["one seed"] * len(CLAIMS)


def test_the_gallery_has_each_claim_with_its_row(out):
    text = gallery(out.parent)
    for claim, mark, _ in claims(read(out)):
        assert f"| {claim.says} | {mark} | {claim.better} minus {claim.than}: " in text
    assert f"Not run yet: {', '.join(name for name in GALLERY if name != 'scaling')}." in text


def test_words_follow_the_rows():
    block = Block("own starts", "own", "same", (2, 4, 8))
    column = {"predicted": "", "planned": "", "aligning": 0.5}

    def results(gains):
        ways = ((JOINT, MEAN), (AVERAGE, MEAN), (AVERAGE, UNIVERSE), (AVERAGE, REFERENCE))
        better = ways[0], ways[2]
        rows = [
            {**column, "seed": seed, "block": block.name, "models": n, "method": way[0], "alignment": way[1],
             "accuracy": 0.5 + 0.001 * seed + gains.get(n, 0.0) * (way in better)}
            for seed in range(3) for n in block.counts for way in ways
        ]  # fmt: skip
        return Results({}, [block], rows)

    universe, joint = "Crisostomi et al. 2024 (C2M3), arXiv 2405.17897", Pair(JOINT, AVERAGE)
    for gains, mark, words in (
        ({2: 0.1, 4: 0.1}, "reproduced", "higher at 2, 4"),
        ({2: -0.1, 8: 0.1}, "reproduced", "higher at 8 and lower at 2"),
        ({4: -0.1}, "refuted", "lower at 4"),
        ({}, "not told apart", "told apart nowhere"),
    ):
        found = results(gains)
        (judged,) = [x for x in claims(found) if x.claim.source == universe]
        assert judged.mark == mark
        assert _where(_by_number(found, block, joint)) == words
        cells = differences(found, block)[2].split("|")[2:-1]
        assert [cell.strip().startswith("**") for cell in cells[:3]] == [n in gains for n in block.counts]
        assert f"in {sum(n in gains for n in (4, 8))}, " in next(iter(judged.rows))


def test_where_one_network_is_chosen_it_is_said():
    block, pair = Block("own starts", "own", "same", (4, 8)), Pair(TENSORS, CONTROL)

    def said(share):
        rows = [
            {"seed": 0, "block": block.name, "models": n, "method": TENSORS, "alignment": MEAN, "share": share}
            for n in block.counts
        ]
        return _share(Results({}, [block], rows), block, pair, [4, 8])

    assert said(0.9) == ", where one network has 90 to 90 % of it" and said(0.3) == ""


def test_the_best_network_is_of_those_that_are_merged(permuted, monkeypatch):
    losses = iter((0.5, 0.4, 0.1, 0.5, 0.4))
    monkeypatch.setattr(Networks, "judged", lambda *_: SimpleNamespace(loss=next(losses)))
    experiment = Experiment(permuted, None)
    assert [experiment._best(n) for n in (3, 2)] == [2, 1]


def test_nothing_is_done_twice(out, monkeypatch):
    monkeypatch.setattr("experiments.scaling.page.figures", lambda _: {})
    monkeypatch.setattr(Experiment, "measured", lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))


def test_an_interrupted_run_goes_on(out, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.scaling.page.figures", lambda _: {})
    shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "again" / "rows.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]) + lines[-2][:9])
    reproduce("test", tmp_path / "again", range(1))
    timed = dict.fromkeys(("seconds", "merging", "aligning"), 0)
    assert [row | timed for row in read_rows(path)] == [row | timed for row in rows]


def test_shares_of_learned_rows_are_tuned_as_their_controls():
    assert all(len(s.learned_rates) == len(s.control_rates) for s in PRESETS.values()) and len(LEARNED) == 4
