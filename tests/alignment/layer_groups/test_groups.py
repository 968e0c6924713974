"""Networks cut into layer groups: run one after another these are the network, to the last bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment.graph import flatten
from alignment.layer_groups.cut_places import candidates, cut_behind, cut_between, cuts_at
from alignment.layer_groups.groups import Cuts
from npmerge.models import Gpt2, ResNetCifar, abstract
from tests.alignment.networks import fill
from tests.alignment.zoo_libraries import BUILDERS
from tests.npmerge.toys import SIZES, apply, array, variables

X = array(0, 5, SIZES[0])
GPT2 = Gpt2(vocabulary=11, width=8, layers=2, heads=2, hidden=6, length=5)
SMALL = dataclasses.replace(GPT2, layers=1)
RESNET = ResNetCifar(1, 4, "A", classes=3, side=8, channels=2)
LINEN = BUILDERS["linen_scan_over_layers"]()
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 5)).astype(np.int32)
IMAGES = np.random.default_rng(1).standard_normal((3, 8, 8, 2)).astype(np.float32)


def run(cuts: Cuts, params, x, compiled=jax.jit):
    """All groups one after another; what each reads beyond its leaves, and what it makes, goes through NumPy."""
    leaves, values = flatten(params), {}
    groups = cuts.groups(x)
    for group in groups:
        own = {path: leaves[path] for path in group.leaves}
        made = compiled(group)(own, x, {number: values[number] for number in group.needs})
        values |= jax.device_get(made)
    return groups[-1].returned(values)


def everywhere(network, params, x, every: int = 1) -> Cuts:
    return cuts_at(network, params, x, [place.behind for place in candidates(network, params, x)][::every])


def check_equal(ours, theirs) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("network", "params", "x", "every"),
    [
        pytest.param(apply, variables(0), X, 1, id="plain"),
        pytest.param(LINEN.apply, LINEN.variables, LINEN.inputs, 2, id="linen, scanned, jitted"),
        pytest.param(abstract(SMALL).apply, fill(abstract(SMALL).variables, 0), TOKENS, 8, id="gpt2"),
        pytest.param(abstract(RESNET).apply, fill(abstract(RESNET).variables, 1), IMAGES, 9, id="resnet"),
    ],
)
def test_groups_one_after_another_are_the_network_bit_for_bit(network, params, x, every):
    cuts = everywhere(network, params, x, every)
    assert len(cuts.behind) >= 2
    check_equal(run(cuts, params, x), jax.jit(network)(params, x))
    if every == 1:
        check_equal(run(cuts, params, x[:2]), jax.jit(network)(params, x[:2]))  # of a batch of another size


def test_layers_are_found_by_their_names():
    network = abstract(GPT2)
    cuts = cut_between(network.apply, network.variables, TOKENS, r"blocks/(\d+)/")
    embedding, first, second, head = cuts.groups(TOKENS)
    assert set(embedding.leaves) == {"params/tokens/embedding", "params/positions/embedding"}
    for k, block in enumerate((first, second)):
        assert set(block.leaves) == {path for path in flatten(network.variables) if f"blocks/{k}/" in path}
        assert [block.program.shape(number) for number in block.needs] == [(3, 5, 8)]  # nothing but the residual stream
    assert set(head.leaves) == {"params/norm/scale", "params/norm/bias", "params/tokens/embedding"}  # tied
    assert head.learned == head.makes
    with pytest.raises(ValueError, match=r"match none of .* paths, such as"):
        cut_between(network.apply, network.variables, TOKENS, r"layers/(\d+)/")
    with pytest.raises(ValueError, match="not a regular expression"):
        cut_between(network.apply, network.variables, TOKENS, r"layers/(")


def test_behind_a_node_live_its_features():
    cuts = cut_behind(apply, variables(0), X, ["first"])
    first, out = cuts.groups(X)
    assert set(first.leaves) == {"first/kernel", "first/bias"}
    assert [first.program.shape(number) for number in first.makes] == [(5, SIZES[1])] == [out.program.shape(out.needs[0])]
    with pytest.raises(ValueError, match="unknown node to cut behind 'fisrt': the nearest is 'first'"):
        cut_behind(apply, variables(0), X, ["fisrt"])


def weights(layers: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {"w": [jnp.asarray(rng.standard_normal((4, 4)).astype(np.float32)) for _ in range(layers)]}


def test_what_depends_on_no_data_is_made_where_it_is_read():
    """Weights cast at the start would all be read by the first group; a mask from a fixed key would have to be carried."""

    def network(params, x):
        w = [x.astype(jnp.bfloat16) for x in params["w"]]
        kept = jax.random.bernoulli(jax.random.key(0), 0.5, (4,)).astype(jnp.bfloat16)
        x = x.astype(jnp.bfloat16)
        for k in range(3):
            x = jnp.tanh(x @ w[k]) * jnp.broadcast_to(kept, x.shape)
        return {"out": x, "count": jnp.arange(3), "input": x}

    params = weights(4)
    cuts = everywhere(network, params, X)
    assert [list(group.leaves) for group in cuts.groups(X)] == [["w/0"], ["w/1"], ["w/2"]]  # w/3 is read by none
    check_equal(run(cuts, params, X), jax.jit(network)(params, X))


def test_skips_integers_and_several_inputs_cross_cuts():
    def network(params, x):
        w, (features, index, scale) = params["w"], x
        a = jnp.tanh(features @ w[0])
        order = jnp.argsort(a, axis=1)
        b = jnp.take_along_axis(jnp.tanh(a @ w[1]), order, axis=1) * scale
        c = jnp.tanh(b @ w[2])
        return c + a[index] * jnp.where(order > index[:, None], 1.0, 2.0).astype(np.float32), order

    params, x = weights(3), (X, np.array([3, 1, 4, 0, 2], np.int32), np.float32(0.5))
    cuts = everywhere(network, params, x)
    first, second, third = cuts.groups(x)
    assert len(first.learned) == len(second.needs) == 1
    assert sorted(third.program.avals[n].dtype.name for n in third.needs) == ["float32", "float32", "int32"]
    check_equal(run(cuts, params, x), jax.jit(network)(params, x))


def test_a_call_that_holds_no_cut_stays_whole():
    """So that what is recomputed for a gradient stays so."""
    layer = jax.checkpoint(lambda x, w, v: jnp.tanh(jnp.tanh(x @ w) @ v))

    def network(params, x):
        return layer(layer(x, *params["w"][:2]), *params["w"][2:])

    params = weights(4)
    places = candidates(network, params, X)
    assert [place.read for place in places] == [("w/0",), ("w/1",), ("w/2",)]
    between, inside = (cuts_at(network, params, X, [places[k].behind]) for k in (1, 0))
    names = [[step.name for step in group.program.steps] for group in between.groups(X)]
    assert names == [[name] for name in (names[0][0],) * 2]  # one call each
    assert "dot_general" in [step.name for step in inside.groups(X)[0].program.steps]
    for cuts in (between, inside):
        check_equal(run(cuts, params, X), jax.jit(network)(params, X))


def scanned(params, x):
    def step(x, w):
        return jnp.tanh(x @ w), None

    x = jnp.tanh(x @ params["first"])
    x, _ = jax.lax.scan(step, x, params["layers"])
    return x @ params["last"]


def scan_params():
    w = weights(5)["w"]
    return {"first": w[0], "layers": jnp.stack(w[1:4]), "last": w[4]}


def test_a_loop_is_one_equation():
    params = scan_params()
    cuts = everywhere(scanned, params, X)
    assert [list(group.leaves) for group in cuts.groups(X)] == [["first"], ["layers"], ["last"]]
    check_equal(run(cuts, params, X), jax.jit(scanned)(params, X))


def test_no_cut_is_inside_a_loop():
    def network(params, x):
        def step(x, w):
            return jnp.tanh(jnp.tanh(x @ w) @ w.T), None

        return jax.lax.scan(step, x, params["layers"])[0]

    params = scan_params()
    with pytest.raises(ValueError, match="node 'layers' is inside a scan, which is one equation and is not cut"):
        cut_behind(network, params, X, ["layers"])


def test_what_is_not_divided_by_examples_is_not_carried():
    def network(params, x):
        x = jnp.tanh(params["w"][0] @ x.T)  # units first
        x = jnp.tanh(params["w"][1] @ x)
        return jnp.tanh(x.T @ params["w"][2])

    params = weights(3)
    (place,) = candidates(network, params, X)
    assert place.read == ("w/0", "w/1")
    with pytest.raises(ValueError, match="'w/0' there are values that are not divided by examples"):
        cut_behind(network, params, X, ["w/0"])


def test_other_equations_for_another_batch_are_refused():
    def network(params, x):
        x = jnp.tanh(x @ params["w"][0])
        if len(x) > 10:
            x = jnp.tanh(2 * x)
        return x @ params["w"][1]

    cuts = everywhere(network, weights(2), X)
    with pytest.raises(ValueError, match="other equations for inputs of shape"):
        cuts.groups(np.concatenate([X, X, X]))
    with pytest.raises(ValueError, match="takes 5 examples and not 6, so it cannot be cut: "):
        everywhere(lambda params, x: network(params, x) * array(0, 5, 4), weights(2), X)
    with pytest.raises(ValueError, match="other equations for 11 examples than for 10"):
        everywhere(network, weights(2), np.concatenate([X, X]))


def test_cuts_are_where_least_lives():
    """Between the blocks of a residual network, where nothing but the stream is needed."""
    network = abstract(GPT2)
    places = candidates(network.apply, network.variables, TOKENS)
    assert sum(len(place.read) for place in places) < len(flatten(network.variables))
    living = [place.living for place in places]
    between = next(k for k, place in enumerate(places[1:]) if "blocks/1/norm1" in place.read[0])
    assert living[between] == min(living) == 3 * 5 * 8 * 4
    assert max(living) > 2 * min(living)
    assert all(len(place.read) == 1 for place in places)
