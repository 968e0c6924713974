"""The smallest form of the experiment on the inside of merges, and what must hold of any networks."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import ActivationMatching, transport
from alignment.activations.moments import NodeMoments
from alignment.graph import flatten
from alignment.maps import permutation
from experiments.data import load_images
from experiments.landscape.command import reproduce
from experiments.landscape.findings import _units, claims
from experiments.landscape.networks import Networks, source
from experiments.landscape.page import page
from experiments.landscape.results import Results, read
from experiments.landscape.rows import PAIRS, Experiment
from experiments.landscape.settings import INSIDE, LINES, PERMUTED, PLAIN, PLAIN_OF_B, PRESETS, A, B
from experiments.landscape.similarity import caveats, readout, similarities
from experiments.landscape.slices import loss_of, through
from experiments.landscape.visualise import maximised, responses, variation
from experiments.problem import Problem, Trained, batched
from experiments.run import read_rows
from experiments.strangers.networks import Strangers
from npmerge.checkpoint import load_network
from npmerge.models import ResNetCifar, build
from tests.experiments.grids import grids_go_on

SETTINGS = PRESETS["test"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape")
    with grids_go_on():
        reproduce("test", folder, range(1), tell=lambda said: None)
    return folder


@pytest.fixture(scope="module")
def copies(out):
    """A trained network and itself with its units in another order."""
    p = Problem(SETTINGS.task, load_images(), 0)
    network = p.renewed(load_network(out / "parents" / "0-0.safetensors")[1])
    keys = jax.random.split(jax.random.key(0), len(p.graph.nodes))
    orders = (jax.random.permutation(key, node.size) for key, node in zip(keys, p.graph.nodes.values(), strict=True))
    maps = {name: permutation(order) for name, order in zip(p.graph.nodes, orders, strict=True)}
    models = [network, transport(p.graph, maps, network)]
    return p, Strangers(("a", "b"), p.config, p.network, models, p.graph, 0.0)


def aligned(copies):
    p, networks = copies
    stats = nm.collect(p.network.apply, p.graph, networks.models, p.measuring[:1], [NodeMoments()])
    return nm.align(ActivationMatching(), p.graph, networks.models, stats=stats)


def test_every_row_is_there(out):
    lines, planes, units, alike, moved = (
        read_rows(out / f"{name}.csv") for name in ("lines", "planes", "units", "similarity", "caveats")
    )
    assert [row["alignment"] for row in lines] == list(LINES)
    assert [x.mark for x in claims(read(out))] == ["one seed"]
    assert all(len(row["loss"]) == SETTINGS.points for row in lines)
    assert [np.shape(row["loss"]) for row in planes] == [(SETTINGS.side, SETTINGS.side)] * 2
    assert len(units) == SETTINGS.layers * SETTINGS.units * len(INSIDE) and len(moved) == 3 * len(SETTINGS.distances)
    assert list(dict.fromkeys((row["one"], row["other"]) for row in alike)) == list(PAIRS)
    assert all(row["cka"] <= 1.001 for row in alike)


def test_every_seed_has_a_pair_of_its_own(monkeypatch):
    settings, asked = PRESETS["cpu"], []
    monkeypatch.setattr("experiments.landscape.networks.load", lambda names, folder: asked.append(names))
    for seed in range(4):
        source(settings, None, seed, None)
    assert len(set(asked)) == 3 and asked[3] == asked[0] and all(len(set(pair)) == 2 for pair in asked)


def test_images_of_b_ask_the_average_as_it_is_for_the_unit_that_has_a_half_of_bs(copies, tmp_path):
    """Of a network and itself in another order every average's unit is asked where that network's is."""
    p, strangers = copies
    networks = Networks(SETTINGS, strangers, p.images, 0, tmp_path)
    half = p.renewed(jax.tree.map(lambda x: x / 2, strangers.models[1]))  # as if A were nothing
    networks.of = {PLAIN: half}.__getitem__
    order = networks._to_a()
    moved, expected = transport(p.graph, order, half), p.renewed(jax.tree.map(lambda x: x / 2, strangers.models[0]))
    for path, leaf in flatten(expected).items():
        np.testing.assert_allclose(flatten(moved)[path], leaf, atol=1e-4)
    assert Networks(SETTINGS, strangers, p.images, 0, tmp_path).of(PLAIN_OF_B).keys() == half.keys()


def test_layers_are_in_the_order_of_computing(out):
    """A stream of residuals is seen behind the last block that adds to it, not where its first layer stands."""
    network = build(ResNetCifar(1, 2, "B"))
    graph = nm.trace(network.apply, network.variables, jnp.zeros((2, 8, 8, 3)))
    layers = Experiment._layers.func(SimpleNamespace(graph=graph))
    stream = next(node for node in layers if node == "params/conv")
    assert layers.index("params/blocks/0/conv1") < layers.index(stream) < layers.index("params/blocks/1/conv1")
    rows = read_rows(out / "similarity.csv")
    assert [row["depth"] for row in rows[: len({r["node"] for r in rows})]] == sorted({row["depth"] for row in rows})


def test_layers_that_answer_in_opposite_ways_are_told_apart():
    def said(*gains):  # of two layers
        units = [
            {"seed": seed, "node": f"layer {k}", "network": parent, "reached": 2.0, "start": 0.0, "best_real": 1.0, "rms": 1.0,
             "rms_real": 1.0, "others": [1.0 + gain * (1 + 0.01 * seed) * (name == PERMUTED) for name in INSIDE]}
            for seed in range(3) for parent in (A, B) for k, gain in enumerate(gains)
        ]  # fmt: skip
        alike = [{"node": f"layer {k}", "depth": k, "one": A, "other": B, "seed": 0, "cka": 1.0} for k in range(2)]
        return [line for line in _units(Results({"compared": 1}, [], [], [], units, alike, [])) if f"of {A}'s units" in line]

    (line,) = said(0.5, -0.5)
    assert "more than the average as it is in 3 of 6 units" in line
    assert "higher in 1, lower in 1, not told apart in 0 of 2, from -25.25 ± 0.25 points (layer 1)" in line


def test_lines_begin_and_end_at_the_parents(out):
    lines = read_rows(out / "lines.csv")
    assert len({row["loss"][0] for row in lines}) == 1  # A is what it is
    for row in lines[1:-1]:  # permutations leave B the function that it is
        assert row["loss"][-1] == pytest.approx(lines[0]["loss"][-1], abs=1e-3)


def test_the_line_to_a_permuted_copy_is_flat_after_alignment(copies):
    p, networks = copies
    before, after = (nm.path_between(p.network.apply, *two, p.test, points=3) for two in (networks.models, aligned(copies)))
    np.testing.assert_allclose(after.loss, after.loss[0], atol=1e-4)
    assert before.barrier > 10 * after.barrier


def test_a_plane_goes_through_its_three_networks(copies):
    p, networks = copies
    three = (*networks.models, p.renewed(p.initial(4)))
    plane, outputs = through(*three), Trained(p.network.train_apply)
    batches = batched(p.images.test, 60)
    for (x, y), network in zip(plane.corners, three, strict=True):
        assert loss_of(outputs, plane.at(x, y), batches) == pytest.approx(loss_of(outputs, network, batches), abs=1e-4)
    assert plane.corners[1][1] == 0 and plane.corners[2][1] > 0
    with pytest.raises(ValueError, match="the same one twice"):
        through(three[0], three[0], three[1])


def test_a_network_is_as_similar_as_can_be_to_itself_and_to_a_permuted_copy(copies):
    p, networks = copies
    for other in networks.models:
        found = similarities(networks, networks.models[0], other, p.test[:1])
        assert set(found) == set(p.graph.taps)
        np.testing.assert_allclose(list(found.values()), 1, atol=1e-4)


def test_features_that_nothing_reads_move_cka_and_not_the_function(copies):
    p, networks = copies
    inputs, labels = (x[:50] for x in p.test[0])
    a, b = (readout(networks, network, inputs) for network in (networks.models[0], p.renewed(p.initial(5))))
    np.testing.assert_allclose(a.logits, p.network.apply(networks.models[0], inputs), atol=1e-4)
    for row in caveats(a, b, labels, (30.0,)):
        assert row["change"] < 1e-9 and row["accuracy"] == row["accuracy_before"]
        assert abs(row["biased"] - row["biased_before"]) > 0.1


def test_an_image_climbs_and_answers_are_those_of_the_unit(out, copies):
    p, networks = copies
    (node, *_), network = p.graph.taps, networks.models[0]
    start = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    ascent, units = dataclasses.replace(SETTINGS.ascent, variation=0.0, decay=0.0), jnp.array([0, 3])
    given = {"units": units, "deviations": jnp.ones(2), "start": jnp.asarray(start), "key": jax.random.key(0)}
    images = maximised(p.network.apply, p.graph, node, ascent, network, **given)
    before, after = (responses(p.network.apply, p.graph, node, network, x)[jnp.arange(2), units] for x in (start, images))
    assert (after > before + 0.05).all()
    smooth = maximised(p.network.apply, p.graph, node, dataclasses.replace(ascent, variation=50.0), network, **given)
    assert (variation(smooth) < variation(images)).all()
    for row in read_rows(out / "units.csv"):
        assert row["others"][INSIDE.index(row["network"])] == pytest.approx(row["reached"], abs=1e-3)
        assert row["reached"] > row["start"] - 1e-3
        assert len(row["chance"]) == len(INSIDE) and row["rms"] > 0


def test_the_page_is_made_of_the_files_alone(out):
    text = (out / "README.md").read_text()
    assert page(out) == text
    for row in read_rows(out / "rows.csv"):
        assert f"| {row['network']} | {100 * row['accuracy']:.1f} |" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    pictures = [part.split(")")[0] for part in text.split("](")[1:]]
    assert len(pictures) == 3 + SETTINGS.layers and all((out / name).stat().st_size > 5_000 for name in pictures)


def test_nothing_is_done_twice(out, monkeypatch):
    before = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    monkeypatch.setattr("experiments.landscape.networks.Merging.learned", lambda *_: pytest.fail("it is kept"))
    monkeypatch.setattr(nm, "collect", lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1), tell=lambda said: pytest.fail(said))
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == before
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, steps=5))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))


def test_lost_rows_are_made_again(out, monkeypatch):
    """Of learned networks those that are kept are taken."""
    monkeypatch.setattr("experiments.landscape.networks.Merging.learned", lambda *_: pytest.fail("it is kept"))
    path = out / "similarity.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:7])
    reproduce("test", out, range(1), tell=lambda said: None)
    assert path.read_text() == "".join(lines)
