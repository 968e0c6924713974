"""The smallest form of the experiment on features, and what must hold of any autoencoder and any matching."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment.graph import flatten
from experiments.run import read_rows
from experiments.universal_features.activations import last_layer, nothing, patched, units
from experiments.universal_features.browsable import browsable
from experiments.universal_features.command import reproduce, texts
from experiments.universal_features.contexts import _strongest
from experiments.universal_features.dictionary import Dictionary, _anew, _started, learned
from experiments.universal_features.findings import claims, findings
from experiments.universal_features.matching import correlations, matched, measured
from experiments.universal_features.networks import Networks
from experiments.universal_features.page import page
from experiments.universal_features.results import Results, read
from experiments.universal_features.rows import SHOWN, TWICE, Experiment, edges, seed_of
from experiments.universal_features.settings import (
    AGAIN,
    CONTROL,
    MERGES,
    NETWORKS,
    NP,
    PARENTS,
    PLAYS,
    PRESETS,
    SLERP,
    TEXTS,
)

SETTINGS = PRESETS["test"]
HOW = SETTINGS.autoencoder
EVIL = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("universal_features")
    reproduce("test", folder, range(1))
    return folder


@pytest.fixture(scope="module")
def networks(out):
    return Networks(SETTINGS, texts(SETTINGS, None, None), out / "parents", 0)


def drawn(seed, features=12, size=6):
    """A dictionary of random features, and units at which they are active."""
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(features, size)).astype(np.float32)
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    found = Dictionary(
        *map(jnp.asarray, (decoder.T, -0.1 * np.ones(features, np.float32), decoder, np.zeros(size, np.float32))), jnp.ones(())
    )
    return found, rng.normal(size=(5000, size)).astype(np.float32)


def reordered(dictionary, order):
    d = dictionary
    return d._replace(encoder=d.encoder[:, order], bias=d.bias[order], decoder=d.decoder[order])


# ------------------------------------------------------------------------------------------------------- features that match


def test_a_dictionary_is_found_in_itself_and_in_another_order():
    dictionary, x = drawn(0)
    order = np.random.default_rng(1).permutation(12)
    for other, expected in ((dictionary, np.arange(12)), (reordered(dictionary, order), np.argsort(order))):
        match = matched(measured(dictionary, x), measured(other, x), threshold=0.999, fires=10)
        assert match.kept.all() and match.known.all() and match.mutual.all()
        np.testing.assert_array_equal(match.correlation.argmax(1), expected)
        np.testing.assert_allclose(match.correlation.max(1), 1, atol=1e-4)
        assert match.counts() == {
            "of_parent": 12, "of_child": 12, "persist": 12, "mutual": 12, "disappear": 0, "emerge": 0,
            "correlation": pytest.approx(1, abs=1e-4),
        }  # fmt: skip


def test_a_feature_that_two_of_the_parent_have_is_the_mutual_best_of_one():
    dictionary, x = drawn(0)
    order = np.array([0, 0, *range(2, 12)])  # the second feature is the first once more, scaled: correlated alike
    twice = reordered(dictionary, order)
    match = matched(measured(twice, x), measured(dictionary, x), threshold=0.999, fires=10)
    assert match.kept.all() and match.mutual.sum() == 11 and match.mutual[:2].sum() == 1
    assert match.known.sum() == 11 and not match.known[1]


def test_features_of_other_units_do_not_match():
    (one, x), (two, y) = drawn(0), drawn(1)
    match = matched(measured(one, x), measured(two, y), threshold=0.8, fires=10)
    assert not match.kept.any() and not match.known.any() and match.counts()["emerge"] == 12
    with pytest.raises(ValueError, match="at the same tokens, got 5000 and 4999"):
        matched(measured(one, x), measured(two, y[1:]), threshold=0.8, fires=10)


def test_correlations_are_those_of_numpy_in_parts_and_rare_features_are_left_out():
    one, x = drawn(0)
    silent = one._replace(bias=one.bias.at[3].set(-100.0))
    found = correlations(measured(one, x), measured(silent, x))
    f, g = (np.asarray(d.encode(x), np.float64) for d in (one, silent))
    expected = np.corrcoef(f.T, np.where(np.arange(12) == 3, x[:, :1], g).T)[:12, 12:]
    alive = np.arange(12) != 3
    np.testing.assert_allclose(found[:, alive], expected[:, alive], atol=1e-4)
    assert not found[:, 3].any()
    match = matched(measured(one, x), measured(silent, x), threshold=0.8, fires=10)
    assert len(match.known) == 11 and match.kept.sum() == 11 and not match.kept[3]


# ------------------------------------------------------------------------------------------------------------- autoencoders


def planted(seed=0, size=16, active=0.1):
    """Sparse sums of directions at right angles."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(size, size)))[0].astype(np.float32)
    amounts = rng.uniform(1, 2, (HOW.tokens, size)) * (rng.random((HOW.tokens, size)) < active)
    return directions, (amounts @ directions).astype(np.float32)


def test_planted_directions_are_found():
    directions, x = planted()
    how = dataclasses.replace(HOW, steps=HOW.steps // HOW.chunks * 60, chunks=60, rate=1e-2, l1=0.5)
    found = learned(x, how, 0)
    np.testing.assert_allclose(np.linalg.norm(found.decoder, axis=1), 1, atol=1e-5)
    alike = directions @ np.asarray(found.decoder).T
    assert np.median(alike.max(1)) > 0.95 and (alike.max(1) > 0.8).mean() > 0.9
    rest = np.square(x - found(x)).sum() / np.square(x - x.mean(0)).sum()
    assert rest < 0.15 and (np.asarray(found.encode(x)) > 0).sum(1).mean() < 6


def test_dead_features_start_anew_and_the_others_stay():
    _, x = planted()
    state = _started(jnp.asarray(x), HOW, jax.random.key(0))
    np.testing.assert_allclose(jnp.square(x / state.dictionary.scale).sum(1).mean(), x.shape[1], rtol=1e-4)
    moments = jax.tree.map(jnp.ones_like, state.moments)
    dead = jnp.arange(32) < 5
    found = _anew(state._replace(moments=moments), jnp.asarray(x[:64]), dead, jax.random.key(1))
    old, new = state.dictionary, found.dictionary
    np.testing.assert_array_equal(new.decoder[5:], old.decoder[5:])
    np.testing.assert_allclose(np.linalg.norm(new.decoder[:5], axis=1), 1, atol=1e-5)
    assert (np.abs(new.decoder[:5] - old.decoder[:5]).max(1) > 0.01).all()
    np.testing.assert_allclose(np.linalg.norm(new.encoder[:, :5], axis=0), 0.2, atol=1e-5)
    for name, axis in (("decoder", 0), ("encoder", 1), ("bias", 0)):
        sums = np.moveaxis(np.asarray(getattr(found.moments.mu, name)), axis, 0).reshape(32, -1).sum(1)
        assert not sums[:5].any() and sums[5:].all()


def identity(size):
    """All units in both signs: a dictionary that loses nothing."""
    eye = jnp.eye(size)
    zeros = jnp.zeros(size)
    return Dictionary(jnp.concatenate([eye, -eye], 1), jnp.zeros(2 * size), jnp.concatenate([eye, -eye]), zeros, jnp.ones(()))


def test_a_perfect_dictionary_changes_no_loss_and_none_is_a_network_without_its_layer(networks):
    n, batches = networks, networks.windows(PLAYS, "test")
    perfect = identity(SETTINGS.hidden)
    loss = nm.evaluate(n.apply, n.base, batches).loss
    assert patched(n.apply, n.graph, n.base, batches, perfect) == pytest.approx(loss, abs=1e-5)
    name = last_layer(n.graph).name
    leaves, structure = jax.tree.flatten(n.base)
    without = jax.tree.unflatten(
        structure, [0 * x if path == name else x for path, x in zip(flatten(n.base), leaves, strict=True)]
    )
    expected = nm.evaluate(n.apply, without, batches).loss
    assert abs(expected - loss) > 1e-4
    assert patched(n.apply, n.graph, n.base, batches, nothing(perfect)) == pytest.approx(expected, abs=1e-5)
    assert units(n.apply, n.graph, n.base, batches).shape == (SETTINGS.judged * SETTINGS.length, SETTINGS.hidden)


# ------------------------------------------------------------------------------------------------------------------- the run


def test_every_row_is_there(out):
    rows, slerp, dictionaries, flows, origins, contexts = (
        read_rows(out / f"{name}.csv") for name in ("rows", "slerp", "dictionaries", "flows", "origins", "contexts")
    )
    assert [row["network"] for row in rows] == [*NETWORKS[:3], *SETTINGS.merges]
    assert all(np.isfinite([row[text] for text in TEXTS]).all() for row in rows)
    assert [row["t"] for row in slerp] == list(SETTINGS.ts)
    assert [row["network"] for row in dictionaries] == [
        *NETWORKS[:3],
        *SETTINGS.merges,
        *(f"{name}, {AGAIN}" for name in TWICE),
    ]
    assert [(row["parent"], row["child"]) for row in flows] == edges(SETTINGS.merges)
    assert all(row["persist"] + row["disappear"] == row["of_parent"] for row in flows)
    assert [row["network"] for row in origins] == list(SETTINGS.merges)
    for row in origins:
        assert sum(row[name] for name in ("both", "plays", "lua", "base", "neither")) == row["features"]
    assert {row["network"] for row in contexts} <= set(SHOWN) and contexts


def test_the_ends_of_slerp_are_the_fine_tunes(out):
    losses = {row["network"]: row for row in read_rows(out / "rows.csv")}
    ends = {row["t"]: row for row in read_rows(out / "slerp.csv")}
    for t, name in ((0.0, PARENTS[1]), (1.0, PARENTS[0]), (0.58, SLERP)):
        assert ends[t]["plays"] == pytest.approx(losses[name]["plays"], abs=1e-5)


def test_the_learned_merge_has_as_many_numbers_as_its_control(networks):
    for name in (NP, CONTROL):
        assert networks.merged(name).learned == nm.parameters(networks.base)
    assert networks.merged(NP).rate in SETTINGS.merge_rates and networks.merged(CONTROL).rate in SETTINGS.weight_rates


def test_words_follow_the_rows():
    assert set(SETTINGS.merges) < set(PRESETS["cpu"].merges) == set(MERGES)

    def results(kept, fine_tuned=0):
        flows = [
            {"seed": seed, "parent": parent, "child": child, "of_parent": 100, "of_child": 100, "emerge": 0,
             "persist": 50 + seed + kept * (child == NP) - fine_tuned * (child in PARENTS)}
            for seed in range(3) for parent, child in edges(MERGES)
        ]  # fmt: skip
        return Results({"t": 0.58}, [], [], [], flows, [], [])

    def said(kept):
        return "\n".join(findings(results(kept)))

    question = "Does a learned merge keep more of both parents' features than SLERP? NP Merge minus SLERP:"
    assert f"{question} +10.00 ± 0.00 points, higher." in said(10)
    assert f"{question} -10.00 ± 0.00 points, lower." in said(-10)
    assert f"{question} +0.00 ± 0.00 points, not told apart." in said(0)
    few, lost, left = claims(results(0, fine_tuned=20))
    assert (few.mark, lost.mark, left.mark) == ("reproduced", "reproduced", "refuted")
    few, lost, left = claims(results(0, fine_tuned=-20))
    assert (few.mark, lost.mark, left.mark) == ("refuted", "refuted", "reproduced")


def test_the_pages_are_made_of_the_files_alone(out):
    text, html = (out / "README.md").read_text(), (out / "features.html").read_text()
    assert page(out) == text and browsable(read(out)) == html
    for row in read_rows(out / "rows.csv"):
        assert f"{row['both']:.3f}" in text
    assert json.loads((out / "summary.json").read_text())["command"] in text
    assert all((out / f"{name}.png").stat().st_size > 10_000 for name in ("flows", "slerp"))
    assert html.count("<details>") == html.count("</details>") == len(read_rows(out / "contexts.csv"))


def test_contexts_are_text_and_never_markup(out):
    results = read(out)
    row = results.contexts[0] | {"network": EVIL, "group": EVIL, "contexts": [[EVIL + "\n&", "0" * 20 + "9" + "0" * 6]]}
    html = browsable(dataclasses.replace(results, contexts=[row]))
    assert "<script" not in html and html.count("&lt;script&gt;") >= 3
    assert '<mark class="h9">p</mark>' not in html and '<mark class="h9">' in html and "\u00b6&amp;" in html
    (first, digits), *_ = results.contexts[0]["contexts"]
    assert len(str(digits)) <= len(first) and str(digits).strip("0")


def test_digits_of_activations_are_digits():
    """Nine times an activation over itself may be above nine by rounding."""
    rng = np.random.default_rng(0)
    for value in rng.uniform(0.1, 9, 400).astype(np.float32):
        active = np.zeros((1, 5), np.float32)
        active[0, 2] = value
        ((characters, digits),) = _strongest(active, np.zeros((1, 5), int), 1)
        assert digits == "00900" and len(characters) == 5


def test_every_autoencoder_has_its_own_seed():
    names = [*NETWORKS, *(f"{name}, {AGAIN}" for name in TWICE)]
    assert len({seed_of(seed, name) for seed in range(3) for name in names}) == 3 * len(names)


def test_autoencoders_are_trained_with_their_seeds(tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr("experiments.universal_features.rows.units", lambda *_: np.ones((4, 3), np.float32))
    monkeypatch.setattr("experiments.universal_features.rows.kept", lambda path, made, make: make())
    monkeypatch.setattr("experiments.universal_features.rows.learned", lambda x, how, seed: seeds.append(seed) or 1 / 0)
    networks = SimpleNamespace(seed=3, folder=tmp_path, made={}, apply=None, graph=None, variables=lambda name: None)
    some = SimpleNamespace(settings=SETTINGS, networks=networks, learning=[])
    names = [NETWORKS[0], SLERP, f"{SLERP}, {AGAIN}"]
    for name in names:
        with pytest.raises(ZeroDivisionError):
            Experiment._measured(some, name)
    assert seeds == [seed_of(3, name) for name in names]


def test_contexts_that_were_interrupted_are_completed(out, tmp_path):
    shutil.copytree(out, tmp_path / "again")
    path = tmp_path / "again" / "contexts.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    reproduce("test", tmp_path / "again", range(1))
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)


def test_nothing_is_done_twice(out, monkeypatch):
    for name in ("_network", "_slerp", "_dictionary", "_match", "_origins"):
        monkeypatch.setattr(Experiment, name, lambda *_: pytest.fail("every row is there"))
    reproduce("test", out, range(1))
    monkeypatch.setitem(PRESETS, "test", dataclasses.replace(SETTINGS, threshold=0.7))
    with pytest.raises(ValueError, match="made with other settings"):
        reproduce("test", out, range(1))
