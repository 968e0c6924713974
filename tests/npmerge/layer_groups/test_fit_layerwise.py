"""Merges learned layer group by layer group: the same as `fit` where both apply, and with a part of the network in memory."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from alignment import WeightMatching
from alignment.graph import flatten
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.variables import with_variables
from npmerge.layer_groups.choice import Learning, cuts_of
from npmerge.layer_groups.merged import FILE, PART
from npmerge.sharding import AsGiven
from tests.npmerge.toys import apply, array, batch, float64, permuted, variables

ADAM = optax.adam(0.05)
MERGE = nm.np_merge()
MODELS = [variables(k) for k in range(2)]
STACK = nm.stack_models(MODELS)
BATCHES = [batch(10 + k, 6) for k in range(3)]
DEEP = 3
"""Layers of the network that is larger than what may be held."""


def learned(models=MODELS, batches=BATCHES, *, merge=MERGE, network=apply, steps=5, **options):
    options = {"groups": ["first"], **options}
    return nm.fit_layerwise(merge, network, models, batches, ADAM, steps=steps, **options)


def deep(params, x):
    for layer in params:
        y = x @ layer["kernel"]
        x = jnp.tanh(y + jnp.broadcast_to(layer["bias"], y.shape))
    return x


def deep_params(seed: int, width: int = 8):
    rng = np.random.default_rng(seed)
    draws = [(rng.standard_normal((width, width)) / width**0.5, rng.standard_normal(width)) for _ in range(DEEP)]
    return [{"kernel": w.astype(np.float32), "bias": 0.1 * b.astype(np.float32)} for w, b in draws]


def test_one_group_is_the_fit_of_the_whole():
    whole = nm.fit(MERGE.init(STACK), nm.weight_space(MERGE, apply, nm.Distillation()), STACK, BATCHES, ADAM, steps=5)
    result = learned(groups=None, max_bytes=10**9, last=nm.Distillation())
    chex.assert_trees_all_close(result.variables, MERGE.apply(whole.theta, STACK), atol=1e-6)
    (only,) = result.groups
    np.testing.assert_allclose(only.history.loss, whole.history.loss, rtol=1e-6)
    assert set(only.paths) == set(flatten(MODELS[0]))


def test_a_group_up_to_a_node_is_feature_matching_of_it(teacher=1):
    graph = nm.trace(apply, MODELS[0], BATCHES[0][0])
    loss = nm.weight_space(MERGE, apply, nm.FeatureMatching(graph, teacher, names="first"))
    whole = nm.fit(MERGE.init(STACK), loss, STACK, BATCHES, ADAM, steps=5)
    result = learned(teacher=teacher)
    first, out = result.groups
    assert (first.name, set(first.paths)) == ("first/kernel", {"first/kernel", "first/bias"})
    assert set(out.paths) == {"out/kernel", "out/bias"}
    np.testing.assert_allclose(first.history.loss, whole.history.loss, rtol=1e-5)
    chex.assert_trees_all_close(result.variables["first"], MERGE.apply(whole.theta, STACK)["first"], atol=1e-6)


@pytest.mark.parametrize("sequential", [True, False])
def test_the_second_group_reads_what_the_first_has_made(sequential):
    """Against float64: the loss before the first step, of the outputs of what the group is fed."""
    result = learned(sequential=sequential, steps=2)
    merged, average = float64(result.variables), float64(nm.Average()(STACK))
    x = np.asarray(BATCHES[0][0], np.float64)

    def hidden(model):
        m = float64(model)["first"]
        return np.maximum(x @ m["kernel"] + m["bias"], 0)

    read = hidden(merged) if sequential else np.mean([hidden(m) for m in MODELS], axis=0)
    made = read @ average["out"]["kernel"] + average["out"]["bias"]
    target = np.mean([hidden(m) @ float64(m)["out"]["kernel"] + float64(m)["out"]["bias"] for m in MODELS], axis=0)
    expected = np.square(made - target).sum() / np.square(target).sum()
    assert float(result.groups[1].history.loss[0]) == pytest.approx(expected, rel=1e-4)


def test_no_steps_are_the_closed_form():
    merge, base, key = nm.Learned(nm.Dare(0.5), nm.PerParameter(), nm.Free()), variables(9), jax.random.key(3)
    result = learned(merge=merge, steps=0, base=base, key=key)
    chex.assert_trees_all_close(result.variables, merge(nm.stack_models(MODELS, base), key=key), atol=1e-6)


def test_tied_embeddings_are_learned_once_and_unread_leaves_merged():
    def network(params, tokens):
        x = params["embedding"][tokens]
        x = jnp.tanh(x @ params["inner"])
        return jnp.tanh(x @ params["outer"]) @ params["embedding"].T

    shapes = {"embedding": (11, 4), "inner": (4, 4), "outer": (4, 4), "unread": (3,)}
    models = [{name: array(10 * k + n, *shape) for n, (name, shape) in enumerate(shapes.items())} for k in range(2)]
    tokens = np.random.default_rng(0).integers(0, 11, (4, 5)).astype(np.int32)
    told = []
    merge = nm.Learned(nm.Average(), nm.PerLayer("(inner|outer)"), nm.Simplex())  # a pattern that not all groups match
    options = {"merge": merge, "groups": "(inner|outer)", "teacher": 1, "every": 1, "progress": lambda *x: told.append(x)}
    result = learned(models, [(tokens, None)], network=network, **options)
    assert [group.paths for group in result.groups] == [("embedding",), ("inner",), ("outer",)]
    assert all(group.history.loss[-1] < group.history.loss[0] for group in result.groups)
    assert [x[:2] for x in told] == [(group.name, step) for group in result.groups for step in range(1, 6)]
    assert result.status == "finished"
    chex.assert_trees_all_close(result.variables["unread"], (models[0]["unread"] + models[1]["unread"]) / 2, atol=1e-6)
    assert jax.tree.structure(result.variables) == jax.tree.structure(models[0])


def test_no_more_than_a_group_is_on_the_device():
    width, models = 128, [deep_params(k, 128) for k in range(2)]
    inputs = np.random.default_rng(0).standard_normal((4, width)).astype(np.float32)
    before, most = sum(x.nbytes for x in jax.live_arrays()), []

    def look(name: str, step: int, loss: float) -> None:
        most.append(sum(x.nbytes for x in jax.live_arrays()) - before)

    result = learned(models, [(inputs, None)], network=deep, groups=r"^(\d+)/", every=1, progress=look)
    assert len(result.groups) == DEEP
    layer = 4 * (width**2 + width)
    # two models, theta and two moments of one layer, and what a step has in flight; the whole would hold 5 of each layer
    assert 5 * layer <= max(most) < 8 * layer < 5 * DEEP * layer
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(result.variables))


def test_groups_are_as_large_as_a_device_holds():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), deep_params(0, 32))
    inputs, layer = jax.ShapeDtypeStruct((4, 32), jnp.float32), 4 * (32**2 + 32)
    learning = Learning(MERGE, ADAM, 2, False, AsGiven(), 1, inputs)

    def sizes(share: int) -> list[int]:
        cuts = cuts_of(None, share * layer, (deep, shapes, inputs), learning)
        assert all(learning.memory(cuts, k).total <= share * layer for k in range(len(cuts.behind) + 1))
        return [len(group.leaves) for group in cuts.groups(inputs)]

    assert sizes(100) == [2 * DEEP]
    assert sizes(12) == [2] * DEEP  # kernel and bias, and not the kernel of one with the bias of another
    assert sizes(18) == [4, 2]
    with pytest.raises(ValueError, match=r"the layer group of '0/kernel': a step needs .* and the device has 4 kB"):
        cuts_of(None, 4000, (deep, shapes, inputs), learning)
    with pytest.raises(ValueError, match="the layer group of '0/kernel': a step needs"):
        cuts_of(r"^(\d+)/", 4000, (deep, shapes, inputs), learning)


def test_a_loop_that_does_not_fit_is_told():
    def network(params, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["layers"])[0]

    models = [{"layers": np.stack([layer["kernel"] for layer in deep_params(k, 32)])} for k in range(2)]
    batches = [(np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32), None)]
    with pytest.raises(ValueError, match=r"group of 'layers' \(it holds a scan, which is one equation and is not cut\)"):
        learned(models, batches, network=network, groups=None, max_bytes=50_000)


def test_aligned_networks_are_merged_better_than_by_their_average():
    """Two networks fine-tuned apart, the units of one shuffled: held-out features and outputs."""
    rng = np.random.default_rng(0)
    models = [jax.tree.map(lambda x: x + rng.standard_normal(x.shape).astype(np.float32), variables(0)) for _ in range(2)]
    models[1] = permuted(models[1], rng.permutation(6))
    x, judged, held = (rng.standard_normal((n, 4)).astype(np.float32) for n in (64, 64, 256))
    graph = nm.trace(apply, models[0], x)
    stack = nm.stack_models(nm.align(WeightMatching(), graph, models))

    def errors(merged):
        outputs = [apply(m, held) for m in stack.models()]
        target = (outputs[0] + outputs[1]) / 2
        features = nm.FeatureMatching(graph)(apply, merged, stack, (held, None))
        return float(features), float(jnp.square(apply(merged, held) - target).mean() / jnp.square(target).mean())

    result = learned(stack.models(), [(x, None)], held_out=[(judged, None)], steps=150)
    average, ours = errors(nm.Average()(stack)), errors(jax.tree.map(jnp.asarray, result.variables))
    assert ours[0] < 0.9 * average[0]
    assert ours[1] < 0.75 * average[1]
    for group in result.groups:
        assert group.history.held_out_loss.min() < group.history.held_out_loss[0]


def test_padding_is_not_learned_from():
    x, more = array(0, 6, 4), array(1, 6, 4)
    mask = np.arange(6) < 4
    a, b = (learned(batches=[(jnp.where(mask[:, None], x, y), None, mask)]) for y in (0 * x, more))
    chex.assert_trees_all_close(a.variables, b.variables, atol=1e-6)
    alone = learned(batches=[(x[:4], None)])
    chex.assert_trees_all_close(a.variables, alone.variables, atol=1e-5)


@pytest.mark.parametrize("options", [{"devices": 4, "shard": "features"}, {"accumulate": 2}])
def test_devices_and_parts_change_nothing(options):
    uneven = [batch(20, 6), batch(21, 5)]
    a, b = learned(batches=uneven), learned(batches=uneven, **options)
    chex.assert_trees_all_close(a.variables, b.variables, atol=1e-5)


def test_models_are_read_when_they_are_needed(tmp_path):
    """Functions and stored models, and a merge that goes to a folder."""
    read = []

    def later(k: int, path: str, x):
        return lambda: read.append((k, path)) or np.asarray(x)

    lazy = [jax.tree_util.tree_map_with_path(lambda p, x, k=k: later(k, p[0].key, x), m) for k, m in enumerate(MODELS)]
    for k, model in enumerate(MODELS):
        nm.checkpoint.save(tmp_path / f"{k}.safetensors", model)
    stored = [open_checkpoint(tmp_path / f"{k}.safetensors") for k in range(2)]
    expected = learned().variables
    chex.assert_trees_all_equal(learned(lazy, like=MODELS[0]).variables, expected)
    assert read == [(k, name) for name in ("first", "out") for k in range(2) for _ in range(2)]
    folder, seen = tmp_path / "merged", []
    (folder / PART).mkdir(parents=True)
    (folder / PART / FILE).write_bytes(b"what a kill has left" * 1000)
    to_folder = {"like": MODELS[0], "folder": folder}
    result = learned(stored, progress=lambda *_: seen.extend(folder.glob("**/*.safetensors")), **to_folder)
    assert seen == [folder / PART / FILE] * len(seen) != []
    assert list(folder.iterdir()) == [folder / FILE]
    chex.assert_trees_all_equal(result.variables, expected)
    assert isinstance(result.variables["out"]["kernel"], np.memmap)
    chex.assert_trees_all_equal(with_variables(MODELS[0], open_checkpoint(folder)), expected)
    with pytest.raises(ValueError, match=r"exists, a whole model: read it by .*, or move it away or name another folder"):
        learned(stored, batches=[], **to_folder)  # told before batches are asked for
    with pytest.raises(ValueError, match=r"shapes of the variables are not known from .*Model: give like="):
        learned(stored)


def test_goes_on_where_it_was_interrupted(tmp_path):
    class StoppedError(Exception):
        pass

    def stop(name: str, step: int, loss: float) -> None:
        if name.startswith("out") and step == 2:
            raise StoppedError

    options = {"checkpoints": nm.Checkpoints(tmp_path, steps=1), "every": 1}
    with pytest.raises(StoppedError):
        learned(steps=3, progress=stop, **options)
    told = []
    result = learned(steps=3, progress=lambda *x: told.append(x[:2]), **options)
    assert told == [("out/kernel", step) for step in (2, 3)]  # told before it is saved
    chex.assert_trees_all_equal(result.variables, learned(steps=3).variables)


def test_a_group_that_diverges_keeps_its_last_good_theta():
    huge = dataclasses.replace(MERGE, constraint=nm.Free())
    with pytest.warns(UserWarning, match="has diverged: its last good theta is kept, and the others go on") as told:
        result = nm.fit_layerwise(huge, apply, MODELS, BATCHES, optax.sgd(1e38), steps=6, groups=["first"], every=1)
    names = [group.name for group in result.groups]
    assert [str(x.message).split("'")[1] for x in told] == names == ["first/kernel", "out/kernel"]
    assert result.status == "diverged"
    chex.assert_tree_all_finite(result.variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["frist"]}, "unknown node to cut behind 'frist': the nearest is 'first'"),
        ({"groups": "layer_(.)"}, "match none of 4 paths"),
        ({"groups": None}, "give groups= .* or max_bytes="),
        ({"batches": iter(BATCHES)}, "the data ended after 3 batches, 5 steps were asked for"),
        ({"batches": []}, "got no batches"),
        ({"batches": [BATCHES[0][0]]}, r"each batch must be a tuple \(inputs, targets\)"),
        ({"models": [MODELS[0], {"first": MODELS[0]["first"]}]}, "model 1 does not fit at 'out/bias': got no such leaf"),
        (
            {"models": [MODELS[0], {**MODELS[1], "out": {**MODELS[1]["out"], "bias": np.zeros(2, np.float32)}}]},
            r"model 1 does not fit at 'out/bias': got float32\[2\], expected float32\[3\]",
        ),
        ({"models": [MODELS[0], jax.tree.map(lambda x: x * jnp.nan, MODELS[1])]}, "model 1 has .* non-finite values"),
        ({"models": []}, "nothing to merge"),
        ({"teacher": 2}, "must be 'mean' or one of the models 0 to 1, got 2"),
        ({"teacher": "own"}, "must be 'mean' or one of the models 0 to 1, got 'own'"),
        ({"merge": nm.Fisher()}, "Fisher needs statistics of whole networks"),
        ({"last": "cross_entropy"}, "last must be an objective"),
        (
            {"last": nm.CrossEntropy(), "batches": [(BATCHES[0][0], None)]},
            r"need targets, here labels of shape \(6,\): got None",
        ),
        ({"last": nm.NextToken()}, "NextToken reads more than the outputs of the network"),
        ({"groups": 3}, "expected a list of nodes to cut behind, or a pattern of paths, got int"),
        ({"patient": 3}, "unknown argument of fit_layerwise 'patient': the nearest is 'patience'"),
        ({"max_byte": 5}, "unknown argument of fit_layerwise 'max_byte': the nearest is 'max_bytes'"),
        ({"steps": -1}, "steps must be an integer of 0 or more"),
        ({"max_bytes": 0}, "max_bytes must be an integer of 1 or more"),
    ],
)
def test_bad_input_is_told(change, message):
    with pytest.raises(ValueError, match=message):
        learned(**change)
