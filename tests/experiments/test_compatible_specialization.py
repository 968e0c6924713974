"""The smallest form of the experiment on compatible specialisation, and what must hold of any experts."""

import dataclasses
import json
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

import npmerge as nm
from alignment.graph import flatten, path_name
from experiments.compatible_specialization import rows as made
from experiments.compatible_specialization.command import reproduce, seconds_of_rows
from experiments.compatible_specialization.findings import CLAIMS, claims, differences, findings
from experiments.compatible_specialization.networks import BLOCKS, Networks
from experiments.compatible_specialization.page import page
from experiments.compatible_specialization.pool import aligned_pool, procrustes, turned
from experiments.compatible_specialization.results import Results, read
from experiments.compatible_specialization.settings import (
    ALIGNED,
    BASE,
    BEST,
    CONTROLS,
    DOCUMENTED,
    EQUAL_FEATURES,
    EXPERTS,
    FEATURES,
    MERGED,
    NP,
    OUTPUTS,
    PRESETS,
    ROUTED,
    SOURCE,
    TUNED_AVERAGE,
    TUNED_BASE,
    WAYS,
    WEIGHTS,
    routing,
)
from experiments.compatible_specialization.similarity import MADE, READ, similarities
from experiments.compatible_specialization.texts import KINDS, MOST, texts
from experiments.compatible_specialization.ways import case_of, sweep_of
from experiments.corpora import PLAYS, mixed
from experiments.language import MlpOnly, constant_adamw
from experiments.run import read_rows
from npmerge.models import Gpt2, build
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compatible_specialization")
    with grids_go_on():
        reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def rows(out):
    return read_rows(out / "rows.csv")


@pytest.fixture(scope="module")
def networks(out):
    return Networks(SETTINGS, texts(SETTINGS, PLAYS), out / "parents", 0)


def one(rows, way, steps):
    (row,) = [row for row in rows if (row["way"], row["steps"]) == (way, steps)]
    return row


def test_every_row_is_there_and_judged(rows):
    expected = [(steps, way) for steps in SETTINGS.checkpoints for way in SETTINGS.ways]
    assert [(row["steps"], row["way"]) for row in rows] == expected
    assert all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows)
    assert set(SETTINGS.ways) <= set(WAYS) == set(PRESETS["cpu"].ways)


def test_levels_are_those_of_the_networks(rows):
    losses = [one(rows, f"expert: {name}", 6)["loss"] for name in EXPERTS]
    best = one(rows, BEST, 6)
    assert best["loss"] == losses[EXPERTS.index(best["chosen"])] and losses[0] != losses[1]


def test_what_a_way_costs(rows):
    network, routed, outputs, control = (one(rows, way, 2) for way in (BASE, routing(1), OUTPUTS, TUNED_AVERAGE))
    assert network["parameters"] < routed["parameters"] < outputs["parameters"] == 2 * network["parameters"] + 2
    assert network["flops"] < routed["flops"] < outputs["flops"]
    assert routed["learned"] == 2 * SETTINGS.width and control["learned"] == network["parameters"]
    assert not network["learned"] and not outputs["learned"]


def test_the_ends_of_a_sweep_are_the_experts_in_whatever_space(out, rows):
    swept = read_rows(out / "sweeps.csv")
    for steps in SETTINGS.checkpoints:
        by_way = [
            {row["share"]: row["validation"] for row in swept if (row["way"], row["steps"]) == (way, steps)}
            for way in (FEATURES, OUTPUTS)
        ]
        for share in (0.0, 1.0):
            assert by_way[0][share] == pytest.approx(by_way[1][share], abs=1e-5)
        chosen = min(by_way[0], key=by_way[0].get)
        assert one(rows, FEATURES, steps)["chosen"] == chosen


def test_the_share_of_a_sweep_is_that_of_the_second_expert(networks):
    experts, x = networks.experts(6), networks.windows(DOCUMENTED, "test")[0][0]
    for way in (WEIGHTS, FEATURES, OUTPUTS):
        sweep = sweep_of(networks, way, experts, x)
        for share, expert in zip((0.0, 1.0), experts, strict=True):
            np.testing.assert_allclose(sweep.apply(sweep.at(share), x), networks.apply(expert, x), atol=1e-4, err_msg=way)


def test_experts_of_more_steps_go_on_from_those_of_fewer_and_change_feed_forward_networks_alone(networks):
    """An expert after six steps is that of a training of six steps that was not interrupted."""
    expert, base = (flatten(x) for x in (networks.experts(6)[0], networks.base))
    loss = nm.fine_tuning(MlpOnly(networks.apply), networks.objective)
    batches, optimizer = networks.batches(EXPERTS[0], 20_000), constant_adamw(SETTINGS.expert_rate)
    direct = flatten(nm.fit(networks.base, loss, None, batches, optimizer, steps=6, every=6).theta)
    for path, x in expert.items():
        np.testing.assert_array_equal(x, direct[path])
        assert np.array_equal(x, base[path]) != ("/feed_forward/" in path), path


def test_no_module_is_most_of_source_with_comments():
    kind = KINDS[SOURCE]
    assert kind("x = 1  # as it is\n") == "x = 1  # as it is\n" and len(kind("x" * 3 * MOST)) == MOST


def test_one_network_sees_both_domains_for_as_many_steps_as_both_experts(networks):
    loss, domains = nm.fine_tuning(MlpOnly(networks.apply), networks.objective), [networks.texts[name] for name in EXPERTS]
    batches = mixed(domains, SETTINGS.length, SETTINGS.batch, seed=20_000)
    direct = nm.fit(networks.base, loss, None, batches, constant_adamw(SETTINGS.expert_rate), steps=12, every=12).theta
    for path, x in flatten(networks.both(6)).items():
        np.testing.assert_array_equal(x, flatten(direct)[path])


def test_an_expert_is_as_similar_as_can_be_to_itself(networks):
    expert, other = networks.experts(6)
    batches = networks.windows(DOCUMENTED, "test")
    for row in similarities(networks.apply, [expert, expert], batches):
        assert row["cka"] == pytest.approx(1, abs=1e-4)
    read, made = (row["cka"] for row in sorted(similarities(networks.apply, [expert, other], batches), key=lambda r: -r["cka"]))
    assert read == pytest.approx(1, abs=1e-4) and made < 1 - 1e-4  # in front of the first block experts agree


def test_procrustes_finds_the_rotation():
    rng = np.random.default_rng(0)
    x, turn = rng.normal(size=(50, 4)), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    np.testing.assert_allclose(procrustes(x, x @ turn), turn, atol=1e-6)


def test_a_turned_expert_is_itself_in_other_axes(networks):
    """f'(x R) = f(x) R of each feed-forward network; all else stays."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(SETTINGS.width,) * 2))[0].astype(np.float32)
    expert = networks.experts(6)[0]
    found = turned(expert, {0: turn})
    x = np.random.default_rng(2).normal(size=(3, SETTINGS.width)).astype(np.float32)

    def branch(v, x):
        f = {path.rpartition("feed_forward/")[2]: leaf for path, leaf in flatten(v).items() if "/feed_forward/" in path}
        return jax.nn.gelu(x @ f["up/kernel"] + f["up/bias"][None]) @ f["down/kernel"] + f["down/bias"][None]

    np.testing.assert_allclose(branch(found, x @ turn), branch(expert, x) @ turn, atol=1e-5)
    for path, leaf in flatten(expert).items():
        assert "/feed_forward/" in path or np.array_equal(leaf, flatten(found)[path])


def test_experts_that_agree_are_aligned_as_they_are(networks):
    expert = networks.experts(6)[0]
    for found in aligned_pool(networks.apply, [expert, expert], networks.windows(DOCUMENTED, "train")):
        for path, leaf in flatten(expert).items():
            np.testing.assert_allclose(flatten(found)[path], leaf, atol=1e-5, err_msg=path)


def test_what_is_learned_starts_at_its_average(networks):
    experts, batches = networks.experts(6), networks.windows(DOCUMENTED, "train")
    average = nm.Average()(nm.stack_models(experts))
    assert {*ROUTED, *MERGED, *CONTROLS} <= set(WAYS)
    for way in (NP, TUNED_AVERAGE):
        case = case_of(networks, way, experts, batches)
        for path, leaf in flatten(case.network(case.theta)).items():
            np.testing.assert_allclose(leaf, flatten(average)[path], atol=1e-6)
    routed = case_of(networks, ALIGNED, experts, batches)
    assert not any(np.any(x) for x in routed.theta["router"].values())


def test_the_aligned_pool_is_the_one_that_is_routed():
    """Behind the first block, in which both experts read the same."""
    network, rng = build(Gpt2(11, 8, 2, 2, 16, 6)), np.random.default_rng(0)

    def moved(x):
        return x + np.asarray(rng.normal(size=x.shape), np.float32)

    experts = [
        jax.tree_util.tree_map_with_path(lambda p, x: moved(x) if "feed_forward" in path_name(p) else x, network.variables)
        for _ in range(2)
    ]
    batches = [(rng.integers(0, 11, (4, 6), dtype=np.int32), None)]
    some = SimpleNamespace(apply=network.apply, base=network.variables, objective=nm.CrossEntropy())
    aligned, own = (case_of(some, way, experts, batches) for way in (ALIGNED, routing(1)))
    for case, models in ((aligned, aligned_pool(network.apply, experts, batches)), (own, experts)):
        expected = nm.route(network.apply, models, BLOCKS, batches[0][0], nm.Router(), trunk=network.variables).variables
        chex.assert_trees_all_close(case.theta, expected, atol=1e-6)
    outputs = [case.apply(case.theta, batches[0][0]) for case in (aligned, own)]
    assert float(np.abs(outputs[0] - outputs[1]).max()) > 0.1


def test_words_follow_the_rows():
    claim = CLAIMS[0]

    def results(gain):
        rows = [
            {"seed": seed, "target": "a", "steps": n, "way": way, "loss": 2 + 0.01 * seed - gain * (way == claim.better)}
            for seed in range(3) for n in (1, 2) for way in (claim.better, claim.than)
        ]  # fmt: skip
        return Results({}, rows, [], [], [])

    equal = "not told apart"
    for gain, word, cell in ((0.1, "so", "lower loss"), (-0.1, "the opposite", "higher loss"), (0.0, equal, equal)):
        (line,) = findings(results(gain))
        assert f": {word}." in line and f"{gain:+.4f}" in line.replace("-0.0000", "+0.0000")
        assert cell in differences(results(gain))[2]
        (judged,) = claims(results(gain))
        assert judged.mark == {"so": "reproduced", "the opposite": "refuted"}.get(word, word) and len(judged.rows) == 2


def test_targets_are_told_one_by_one():
    """What is better on one target and worse on the other is told of both, and has no common verdict."""
    claim = CLAIMS[0]
    rows = [
        {"seed": seed, "target": target, "steps": 1, "way": way, "loss": 2 + 0.01 * seed - gain * (way == claim.better)}
        for seed in range(3) for target, gain in (("a", 0.1), ("b", -0.1)) for way in (claim.better, claim.than)
    ]  # fmt: skip
    (line,) = findings(Results({}, rows, [], [], []))
    assert "a +0.1000 ± 0.0000: so; b -0.1000 ± 0.0000: the opposite." in line
    (judged,) = claims(Results({}, rows, [], [], []))
    assert judged.mark == "partly" and list(judged.rows) == ["a, 1 steps", "b, 1 steps"]


def test_the_first_block_reads_the_same_and_is_left_out_of_the_mean():
    cka = [
        {"seed": 0, "target": "a", "steps": n, "place": place, "block": b,
         "cka": 1.0 if (place, b) == (READ, 0) else 0.9 - 0.1 * n}
        for n in (1, 3) for place in (READ, MADE) for b in (0, 1)
    ]  # fmt: skip
    found = Results({}, [{"seed": 0, "target": "a", "steps": n, "way": BASE, "loss": 1.0} for n in (1, 3)], [], cka, [])
    assert [found.fall(place).mean for place in (READ, MADE)] == pytest.approx([-0.2, -0.2])
    assert found.alike("a", 3, READ, 0) == {0: 1.0} and found.alike("a", 3, READ) == {0: pytest.approx(0.6)}


def test_experts_are_judged_at_home(out, networks):
    """At the last moment the loss of an expert on its own domain is what it is there, and the page tells it."""
    found = read(out)
    for name, variables in ((BASE, networks.base), *zip(EXPERTS, networks.experts(6), strict=True)):
        for domain in EXPERTS:
            expected = nm.evaluate(networks.apply, variables, networks.windows(domain, "test")).loss
            assert found.at_home(domain, 6, name)[0] == pytest.approx(expected, abs=1e-5)
    assert f"The expert for {EXPERTS[0]} after 6 steps" in page(out)


def test_weights_of_characters_are_those_of_the_router(out):
    rows = read_rows(out / "tokens.csv")
    assert {row["way"] for row in rows} == {routing(1), ALIGNED} and {row["steps"] for row in rows} == {6}
    for row in rows:
        weights = np.array(row["weights"])
        assert weights.shape == (SETTINGS.length, 2) and len(row["text"][0]) == SETTINGS.length
        np.testing.assert_allclose(weights.sum(1), 1, atol=2e-3)


def test_what_is_known_keeps_its_seconds():
    rows = [{"seed": 0, "target": "a", "steps": 1, "way": TUNED_BASE, "loss": 1.5, "seconds": 9.0}]
    some = SimpleNamespace(seed={"seed": 0}, files=SimpleNamespace(rows=SimpleNamespace(all=rows)))
    place = SimpleNamespace(target="a")
    assert made.Experiment._known(some, place, TUNED_BASE) == {"loss": 1.5, "seconds": 9.0}


def test_claims_of_more_steps_follow_the_rows():
    """CKA falls where it is said to, and what the router gains on the better expert goes up or down with it."""
    cka = [
        {"seed": seed, "target": "a", "steps": n, "place": place, "block": 0, "cka": 1 - 0.1 * n - 0.01 * seed}
        for seed in range(3) for n in (1, 2) for place in (READ, MADE)
    ]  # fmt: skip

    def marks(sign):
        rows = [
            {"seed": seed, "target": "a", "steps": n, "way": way, "loss": 2 - (0.2 + sign * 0.1 * n) * (way == routing(1))}
            for seed in range(3) for n in (1, 2) for way in (routing(1), BEST)
        ]  # fmt: skip
        return [x.mark for x in claims(Results({}, rows, [], cka, []))][:2]

    assert marks(1) == ["reproduced", "refuted"] and marks(-1) == ["reproduced", "reproduced"]


def test_gains_are_told_target_by_target():
    """What a router gains grows on one target and shrinks on the other; so does what an average gains."""
    ways = {routing(1): 1, EQUAL_FEATURES: 1, BEST: 0}
    rows = [
        {"seed": seed, "target": target, "steps": n, "way": way, "loss": 2 + 0.01 * seed - mine * (0.5 + sign * 0.1 * n)}
        for seed in range(3) for target, sign in (("a", 1), ("b", -1)) for n in (1, 2) for way, mine in ways.items()
    ]  # fmt: skip
    found = Results({}, rows, [], [], [])
    for way in (routing(1), EQUAL_FEATURES):
        (line,) = [line for line in findings(found) if f"CKA falls? {way}, loss below {BEST}" in line]
        assert "a +0.6000 ± 0.0000 after 1 steps, +0.7000 ± 0.0000 after 2, changed by +0.1000 ± 0.0000: it grows" in line
        assert "b +0.4000 ± 0.0000 after 1 steps, +0.3000 ± 0.0000 after 2, changed by -0.1000 ± 0.0000: it shrinks" in line
    (judged,) = [x for x in claims(found) if "averages gain" in x.claim.says]
    assert judged.mark == "partly" and {k: x.verdict for k, x in judged.rows.items()} == {
        f"{EQUAL_FEATURES}, a": 1, f"{EQUAL_FEATURES}, b": -1
    }  # fmt: skip


def test_what_was_learned_once_costs_its_time_once():
    rows = [{"seed": 0, "target": "a", "steps": n, "way": way, "seconds": 2.0} for n in (1, 2) for way in (TUNED_BASE, NP)]
    assert seconds_of_rows(rows) == 6.0


def test_the_page_is_made_of_the_files_alone(out, rows):
    text = (out / "README.md").read_text()
    assert page(out) == text
    for row in rows:
        assert f"| {row['way']} |" in text and f"{row['loss']:.3f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert all(
        (out / f"{name}.png").stat().st_size > 10_000
        for name in ("losses", "learned", "cka", "cost", "shares", "usage", "tokens")
    )


def test_nothing_is_done_twice(out, monkeypatch):
    monkeypatch.setattr(made.Experiment, "measured", lambda *_: pytest.fail("every row is there"))
    monkeypatch.setattr(made, "similarities", lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, learning_steps=5))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))
