"""What a routed network computes, against NumPy in float64 and against the networks that it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import WeightMatching, permutation, transport
from npmerge.routing.routers import pools
from tests.npmerge.routing.networks import DEPTH, OWN, PATTERN, WIDTH, apply, branch, experts, in_numpy, inputs, softmax

MODELS, X = experts(2), inputs()
RNG = np.random.default_rng(3)


def near(got, expected, rtol=2e-5):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=2e-6)


def kernels(routed, scale=1.0):
    """The same network with router weights drawn at random."""
    router = {name: RNG.normal(size=x.shape, scale=scale).astype(np.float32) for name, x in routed.variables["router"].items()}
    return {**routed.variables, "router": router}


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.3, 0.7), (1.0, 0.0), (0.0, 1.0), (0.8, 0.8)])
def test_feature_averaging(weights):
    routed = nm.route(apply, MODELS, PATTERN, X, nm.FeatureAveraging(weights))
    expected = in_numpy(MODELS, X, lambda k, x: np.broadcast_to(weights, (*x.shape[:-1], 2)), OWN)
    near(routed.apply(routed.variables, X), expected)


@pytest.mark.parametrize("k", [0, 1])
def test_all_weight_on_one_model_is_that_model(k):
    routed = nm.route(apply, MODELS, PATTERN, X, nm.FeatureAveraging(tuple(np.eye(2)[k])))
    np.testing.assert_array_equal(routed.apply(routed.variables, X), apply(MODELS[k], X))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_a_router_against_numpy(layers, shared):
    routed = nm.route(apply, MODELS, PATTERN, X, nm.Router(layers=layers, shared=shared))
    variables, first = kernels(routed), {}

    def weigh(k, x):
        name = "kernel" if shared else f"{k}/kernel"
        w = softmax(x @ variables["router"][name].astype(np.float64))
        return first.setdefault("weights", w) if shared else w

    near(jax.jit(routed.apply)(variables, X), in_numpy(MODELS, X, weigh, pools(DEPTH, layers)))


def test_a_router_per_example_looks_at_the_mean_of_its_tokens():
    routed = nm.route(apply, MODELS, PATTERN, X, nm.Router(per="example"))
    variables = kernels(routed)

    def weigh(k, x):
        w = softmax(x.mean(1, keepdims=True) @ variables["router"][f"{k}/kernel"].astype(np.float64))
        return np.broadcast_to(w, (*x.shape[:-1], 2))

    near(routed.apply(variables, X), in_numpy(MODELS, X, weigh, OWN))


def test_what_is_read_inside_a_block_is_mixed_too():
    """The hidden units of the first block are returned: of its neighbour in the pool those at the same place are mixed in."""

    def both(v, x):
        a, b = v["blocks"]
        hidden = jnp.tanh(x @ a["up"])
        x = x + hidden @ a["down"]
        return x + jnp.tanh(x @ b["up"]) @ b["down"], hidden

    models = [{"blocks": [{k: b["mlp"][k] for k in ("up", "down")} for b in m["blocks"][:2]]} for m in MODELS]
    x = X[0]
    routed = nm.route(both, models, r"blocks/(\d+)/", x, nm.FeatureAveraging((0.1, 0.2, 0.3, 0.4), layers=2))

    def mixed(x, pool, through):
        experts = [m["blocks"][j] for j in pool for m in models]
        made = [np.tanh(x @ e["up"]) @ (e["down"] if through else np.eye(5)) for e in experts]
        return sum(w * y for w, y in zip((0.1, 0.2, 0.3, 0.4), made, strict=True))

    stream = x + mixed(x, (0, 1), True)
    outputs, hidden = routed.apply(routed.variables, x)
    near(hidden, mixed(x, (0, 1), False))
    near(outputs, stream + mixed(stream, (1, 0), True))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"per": "example"}], ids=str)
def test_a_router_of_zeros_is_feature_averaging(layers, options):
    routers = nm.Router(layers=layers, **options), nm.FeatureAveraging(layers=layers)
    got, expected = (r.apply(r.variables, X) for r in (nm.route(apply, MODELS, PATTERN, X, router) for router in routers))
    near(got, expected)


@pytest.mark.parametrize("router", [nm.Router(), nm.Router(shared=True), nm.Router(per="example")], ids=str)
def test_experts_that_agree_are_one_of_them(router):
    routed = nm.route(apply, [MODELS[0]] * 3, PATTERN, X, router)
    near(routed.apply(kernels(routed), X), apply(MODELS[0], X))


def test_one_model_is_itself():
    routed = nm.route(apply, MODELS[:1], PATTERN, X)
    near(routed.apply(kernels(routed), X), apply(MODELS[0], X), rtol=1e-6)


def positive(v, x):
    """Blocks that read positive features, so that a router can have a sure winner."""
    for block in v["blocks"]:
        x = x + branch(jnp, block["mlp"], jax.nn.sigmoid(x))
    return x @ v["head"]


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"per": "example"}], ids=str)
def test_a_router_that_always_picks_an_expert_is_its_network(k, options):
    routed = nm.route(positive, MODELS, PATTERN, X, nm.Router(**options))
    sure = np.zeros((WIDTH, 2), np.float32)
    sure[:, k] = 1000
    variables = {**routed.variables, "router": dict.fromkeys(routed.variables["router"], sure)}
    near(routed.apply(variables, X), positive(MODELS[k], X))


def test_the_whole_network_as_a_block_is_the_ensemble():
    routed = nm.route(apply, MODELS, "()", X, nm.FeatureAveraging())
    near(routed.apply(routed.variables, X), nm.LogitEnsemble(apply)(MODELS, X))
    assert not routed.variables["trunk"]


def test_a_trunk_that_differs_is_the_mean_or_the_one_that_is_given():
    other = {**MODELS[1], "head": MODELS[1]["head"] + 1}
    mean, given = (nm.route(apply, [MODELS[0], other], PATTERN, X, trunk=trunk).variables for trunk in (None, other))
    near(mean["trunk"]["head"], MODELS[0]["head"] + 0.5)
    np.testing.assert_array_equal(given["trunk"]["head"], other["head"])
    same = nm.route(apply, experts(3), PATTERN, X).variables["trunk"]
    np.testing.assert_array_equal(same["head"], MODELS[0]["head"])


def streams(seed, model):
    """A model whose streams and hidden units are in another order: the same function."""
    graph = nm.trace(apply_tokens, model, TOKENS)
    rng = np.random.default_rng(seed)
    return transport(graph, {n.name: permutation(rng.permutation(n.size)) for n in graph.nodes.values()}, model)


def apply_tokens(v, tokens):
    return apply(v["network"], v["embedding"][tokens])


TOKENS = np.array([[0, 2, 1], [3, 1, 0]])
NETWORK = {"network": MODELS[0], "embedding": np.random.default_rng(5).normal(size=(4, WIDTH)).astype(np.float32)}


def test_an_aligned_pool_routes_as_the_network_does():
    """Copies of a network in other units: routed as they are they are another function, aligned they are it."""
    graph = nm.trace(apply_tokens, NETWORK, TOKENS)
    pool = [NETWORK, streams(4, NETWORK)]
    aligned = nm.align(WeightMatching(), graph, pool)
    expected = apply_tokens(NETWORK, TOKENS)
    for models, equal in ((pool, False), (aligned, True)):
        routed = nm.route(apply_tokens, models, PATTERN, TOKENS, nm.Router())
        got = routed.apply(kernels(routed), TOKENS)
        assert np.allclose(got, expected, rtol=1e-4, atol=1e-5) == equal


def test_the_order_of_hidden_units_changes_nothing():
    order = np.random.default_rng(2).permutation(5)
    mixed = jax.tree.map(lambda x: x, MODELS[1])
    for block in mixed["blocks"]:
        block["mlp"] = {name: x[..., order] if name != "down" else x[order] for name, x in block["mlp"].items()}
    a, b = (nm.route(apply, [MODELS[0], m], PATTERN, X, nm.Router(layers=2)) for m in (MODELS[1], mixed))
    near(b.apply(b.variables, X), a.apply(a.variables, X))


def test_pools_go_up_and_then_down():
    assert pools(4, 1) == [[0], [1], [2], [3]]
    assert pools(4, 3) == [[0, 1, 2], [1, 2, 3], [2, 3, 1], [3, 2, 1]]
    assert pools(3, 3) == [[0, 1, 2], [1, 2, 0], [2, 1, 0]]
    with pytest.raises(ValueError, match=r"^a pool of 4 layers needs as many blocks, got 3$"):
        pools(3, 4)


def test_narrow_networks_are_mixed_in_float32_and_rounded_once():
    def dense(v, x):
        return x @ v["w"]

    models = [{"w": jnp.full((1, 1), w, jnp.bfloat16)} for w in (1.0, 1.0078125, 1.0078125)]
    x = jnp.ones((1, 1), jnp.bfloat16)
    routed = nm.route(dense, models, "w", x)
    got = routed.apply(routed.variables, x)
    assert got.dtype == jnp.bfloat16 and float(got[0, 0]) == 1.0078125  # a sum in bfloat16 would have been 1


@pytest.mark.parametrize(
    ("router", "variables", "said"),
    [
        (nm.FeatureAveraging(), {"weights": np.ones(1, np.float32)}, "weights for 1 experts, the pool of the block '0' has 2"),
        (nm.FeatureAveraging(), {"weights": np.ones(3, np.float32)}, "weights for 3 experts"),
        (nm.Router(shared=True), {"kernel": np.zeros((WIDTH, 4), np.float32)}, "weights for 4 experts"),
        (nm.Router(), {"1/kernel": np.zeros((WIDTH, 2), np.float32)}, "no leaf router/0/kernel for the block '0'"),
        (nm.FeatureAveraging(), {}, "no leaf router/weights"),
    ],
)
def test_a_router_of_another_pool(router, variables, said):
    routed = nm.route(apply, MODELS, PATTERN, X, router)
    with pytest.raises(ValueError, match=said):
        routed.apply({**routed.variables, "router": variables}, X)


def test_a_pool_of_one_layer_is_routing_over_the_own_experts():
    """In a pool of more layers the own experts have, among each other, the shares that they have in a pool of `layers=1`."""
    one, two = (nm.route(apply, MODELS, PATTERN, X, nm.Router(layers=layers)) for layers in (1, 2))
    variables = kernels(one)
    wide = {name: np.concatenate([kernel, np.zeros_like(kernel)], 1) for name, kernel in variables["router"].items()}
    weights = one.apply.weights(variables, X)
    mixed = two.apply.weights({**two.variables, "router": wide}, X)
    first = next(iter(weights))  # it reads the same in both; shares are those among its own experts
    near(mixed[first][..., :2] / mixed[first][..., :2].sum(-1, keepdims=True), weights[first])
