"""Which part of a network is a block: in functions of one's own, transformers and residual networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from npmerge.models import Gpt2, ResNetCifar, abstract
from tests.contract.test_models import generic
from tests.npmerge.routing.networks import PATTERN, apply, experts, inputs

MODELS, X = experts(2), inputs()
TOKENS = np.array([[1, 2, 3], [4, 5, 0]])
IMAGES = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)
GPT2 = Gpt2(vocabulary=6, width=4, layers=2, heads=2, hidden=8, length=3)
RESNET = ResNetCifar(blocks=1, width=2, classes=3, side=4, channels=2)


def pair(config):
    """A network and two sets of its variables."""
    network = abstract(config)
    model = generic(network.variables)
    return network.apply, [model, jax.tree.map(lambda x: 1.5 * x, model)]


@functools.partial(jax.jit, static_argnums=0)
def run(function, variables, x):
    return function(variables, x)


def parts(routed, x):
    plan = routed.apply.plan(x)
    program = plan.flow.program
    shape = lambda values: [program.shape(v) for v in values]  # noqa: E731
    return {b.name: (shape(b.reads), shape(b.made(program, b.makes)), len(b.leaves)) for b in plan.blocks}


def test_a_block_of_ones_own_function_is_the_branch_without_the_stream():
    routed = nm.route(apply, MODELS, PATTERN, X)
    assert parts(routed, X) == {str(k): ([(2, 3, 4)], [(2, 3, 4)], 3) for k in range(3)}
    assert set(routed.variables["trunk"]) == {"head", *(f"blocks/{k}/norm/scale" for k in range(3))}


@pytest.mark.parametrize(
    ("pattern", "router"),
    [
        (r"blocks/(\d+)/feed_forward/", nm.Router()),
        (r"blocks/(\d+)/attention/", nm.Router(layers=2)),
        (r"blocks/(\d+)/", nm.Router(layers=2, shared=True)),
    ],
    ids=str,
)
def test_blocks_of_a_transformer(pattern, router):
    """Experts that agree in all depths are the network, whatever the router says."""
    network, (model, _) = pair(GPT2)
    first = model["params"]["blocks"][0]
    model = {**model, "params": {**model["params"], "blocks": dict.fromkeys(model["params"]["blocks"], first)}}
    routed = nm.route(network, [model, model], pattern, TOKENS, router)
    variables = jax.tree.map(lambda x: x, routed.variables)
    variables["router"] = jax.tree.map(
        lambda x: x + 0.3 * np.arange(x.size, dtype=np.float32).reshape(x.shape), variables["router"]
    )
    np.testing.assert_allclose(run(routed.apply, variables, TOKENS), run(network, model, TOKENS), rtol=1e-4, atol=1e-5)
    assert parts(routed, TOKENS)["1"][0][-1] == (2, 3, 4)


def test_a_router_of_whole_blocks_looks_at_the_stream():
    """And not at the one number for each token by which a norm, whose scale is their first weight, divides."""
    network, models = pair(GPT2)
    routed = nm.route(network, models, r"blocks/(\d+)/", TOKENS)
    assert parts(routed, TOKENS)["0"][0][0] == (2, 3, 1)
    assert {x.shape for x in routed.variables["router"].values()} == {(4, 2)}


def test_blocks_of_a_residual_network_with_their_statistics():
    network, models = pair(RESNET)
    routed = nm.route(network, models, r"blocks/(\d+)/", IMAGES, nm.Router(per="example"))
    assert {name: made for name, (_, made, _) in parts(routed, IMAGES).items()} == {
        "0": [(2, 4, 4, 2)],
        "1": [(2, 2, 2, 4)],
        "2": [(2, 1, 1, 8)],
    }
    assert "batch_stats/blocks/1/norm2/mean" in routed.variables["experts"][1]
    assert "batch_stats/norm/mean" in routed.variables["trunk"]
    one = nm.route(network, models, r"blocks/(\d+)/", IMAGES, nm.FeatureAveraging((0.0, 1.0)), trunk=models[1])
    np.testing.assert_allclose(run(one.apply, one.variables, IMAGES), run(network, models[1], IMAGES), rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"^the block '1' has weights for places \(2, 4, 4\) and makes values of shape \(2, 2, "
    ):
        nm.route(network, models, r"blocks/(\d+)/", IMAGES)
    with pytest.raises(ValueError, match=r"^the block '1' makes float32\[2, 2, 2, 4\] where '0' makes float32\[2, 4, 4, 2\]"):
        nm.route(network, models, r"blocks/(\d+)/", IMAGES, nm.FeatureAveraging(layers=2))


def test_channels_first():
    """Of convolutions the features are where they say; a router then weighs each place of an image."""

    def conv(v, x):
        return jax.lax.conv_general_dilated(x, v["w"], (1, 1), "SAME")

    rng = np.random.default_rng(1)
    models = [{"w": rng.normal(size=(3, 2, 1, 1)).astype(np.float32)} for _ in range(2)]
    x, kernel = rng.normal(size=(2, 2, 4, 5)).astype(np.float32), rng.normal(size=(2, 2)).astype(np.float32)
    routed = nm.route(conv, models, "w", x)
    logits = np.einsum("nchw,ce->nhwe", x, kernel)
    w = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    made = [np.einsum("nchw,oc->nohw", x, m["w"][..., 0, 0]) for m in models]
    expected = sum(w[..., k][:, None] * y for k, y in enumerate(made))
    got = routed.apply({**routed.variables, "router": {"w/kernel": kernel}}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_other_batches_and_dtypes_than_it_was_made_with():
    routed = nm.route(apply, MODELS, PATTERN, jax.ShapeDtypeStruct((1, 2, 4), jnp.float32))
    outputs = run(routed.apply, routed.variables, X)
    np.testing.assert_allclose(run(routed.apply, routed.variables, X[1:, :2]), outputs[1:, :2], rtol=1e-5)
    narrow = run(nm.mixed_precision(routed.apply), routed.variables, X)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), outputs, rtol=0.1, atol=0.1)


def test_leaves_that_the_block_uses_and_others_do_too():
    """Each expert has its own of what is read inside, and the trunk one of what is read outside as well."""

    def tied(v, x):
        return jnp.tanh(jnp.tanh(x @ v["u"]) @ v["w"] @ v["u"]) @ v["w"].T

    rng = np.random.default_rng(2)
    models = [{name: rng.normal(size=(2, 2)).astype(np.float32) for name in "wu"} for _ in range(2)]
    x = rng.normal(size=(3, 2)).astype(np.float32)
    routed = nm.route(tied, models, "u", x, nm.FeatureAveraging((0.3, 0.7)))
    assert set(routed.variables["experts"][0]) == {"u", "w"} and set(routed.variables["trunk"]) == {"w"}
    y = sum(k * np.tanh(x @ m["u"]) @ m["w"] @ m["u"] for k, m in zip((0.3, 0.7), models, strict=True))
    mean = (models[0]["w"] + models[1]["w"]) / 2
    np.testing.assert_allclose(routed.apply(routed.variables, x), np.tanh(y) @ mean.T, rtol=1e-5)


def scanned(v, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["layers"])[0]


def recurrent(v, x):
    return jax.lax.scan(lambda h, x: (jnp.tanh(x @ v["w"] + h), None), jnp.zeros((2, 2)), x)[0]


def test_loops():
    x, stacked = jnp.ones((2, 2)), {"layers": jnp.ones((3, 2, 2))}
    with pytest.raises(ValueError, match=r"^the leaves of the block 'layers' are stacked and taken apart by a scan"):
        nm.route(scanned, [stacked, stacked], "layers", x)
    x, models = jnp.ones((3, 2, 2)), [{"w": jnp.eye(2)}, {"w": -jnp.eye(2)}]
    routed = nm.route(recurrent, models, "w", x, nm.FeatureAveraging())  # the same weight in all steps is a block
    np.testing.assert_allclose(routed.apply(routed.variables, x), nm.LogitEnsemble(recurrent)(models, x), atol=1e-7)


def crossed(v, x):
    a, b = x @ v["a"]["1"], x @ v["b"]["1"]
    return b @ v["a"]["2"] + a @ v["b"]["2"]


def hot(v, x):
    found = x @ v["w"] > 0
    return jnp.where(found, v["w"][:1][None], 0.0), found


SQUARE = {"w": np.eye(4, dtype=np.float32)}
PAIRS = {name: {k: np.eye(4, dtype=np.float32) for k in "12"} for name in "ab"}


@pytest.mark.parametrize(
    ("function", "models", "pattern", "router", "message"),
    [
        (apply, MODELS, r"block/(\d+)/mpl/", {}, r"^the pattern of blocks 'block/\(.*' is found in no path: the nearest .* "
         r"is 'blocks/0/mlp', parts are blocks/\*/mlp, blocks/\*/norm, head$"),
        (apply, MODELS, "(", {}, "^the pattern of blocks must be a regular expression, got '\\('"),
        (apply, MODELS, "up|down", {}, "^the blocks 'down' and 'up' of 'up|down' share a 'dot_general'"),
        (apply, MODELS, PATTERN, {"layers": 4}, "^a pool of 4 layers needs as many blocks, got 3$"),
        (apply, MODELS, r"(norm|head)", {"layers": 2}, "^the blocks 'norm' and 'head' are not computed alike"),
        (apply, [], PATTERN, {}, "^nothing to merge"),
        (apply, [MODELS[0], {"head": MODELS[0]["head"]}], PATTERN, {}, "^model 1 differs from model 0"),
        (lambda v, x: x * 2, [SQUARE] * 2, "w", {}, "^no step of the network reads 'w' of the block 'w'"),
        (hot, [SQUARE] * 2, "w", {}, r"^the block 'w' makes bool\[2,3,4\], which has no mean over the experts$"),
        (crossed, [PAIRS] * 2, "^(a|b)/", {}, "^blocks need what others make that need them, among 'a', 'b'"),
    ],
)  # fmt: skip
def test_refused(function, models, pattern, router, message):
    with pytest.raises(Exception, match=message):
        nm.route(function, models, pattern, X, nm.Router(**router))


def test_arguments_that_are_refused():
    with pytest.raises(ValueError, match=r"^route takes \(apply, models, blocks, inputs, router\), got \(dict, "):
        nm.route({}, MODELS, PATTERN, X)
    with pytest.raises(ValueError, match=r"got \(.*, the class Router\)"):
        nm.route(apply, MODELS, PATTERN, X, nm.Router)
    with pytest.raises(ValueError, match=r"^FeatureAveraging has 3 weights for a pool of 2 experts$"):
        nm.route(apply, MODELS, PATTERN, X, nm.FeatureAveraging((1, 2, 3)))
    with pytest.raises(ValueError, match=r"^weight 1 of FeatureAveraging must be a finite number, got nan$"):
        nm.FeatureAveraging((1.0, float("nan")))
    with pytest.raises(ValueError, match=r"^layers of a Router must be an integer of 1 or more, got 0$"):
        nm.Router(layers=0)
    with pytest.raises(ValueError, match=r"^per of a Router must be one of 'token', 'example', got 'batch'$"):
        nm.Router(per="batch")
    with pytest.raises(ValueError, match=r"^the block '' reads no floating-point features"):
        nm.route(pair(GPT2)[0], pair(GPT2)[1], "tokens|positions()", TOKENS)
    routed = nm.route(apply, MODELS, PATTERN, X)
    with pytest.raises(ValueError, match=r"^expected the variables that route made, .*: got dict$"):
        routed.apply(MODELS[0], X)
    with pytest.raises(ValueError, match=r"^expected the variables of 2 experts, got 1$"):
        routed.apply({**routed.variables, "experts": routed.variables["experts"][:1]}, X)
