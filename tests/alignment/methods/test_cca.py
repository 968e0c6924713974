"""CCA against the properties that follow from its formula."""

import dataclasses

import chex
import jax
import numpy as np
import pytest

import alignment
from alignment import CCA, NodeMoments, Procrustes
from alignment.orthogonal import polar
from tests.alignment import networks
from tests.alignment.activations.test_moments import collect
from tests.alignment.methods.test_activation_matching import BATCHES, moments, one_node
from tests.alignment.methods.test_procrustes import rotation

N = 5
RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, N)) @ RNG.standard_normal((N, N)) + RNG.standard_normal(N)  # full rank, correlated, not centred
GAMMAS = (0.0, 1e-3, 0.1, 10.0)


def fit(x, y, method=None):
    """The map of the second model's features onto the first's, and their moments."""
    m = moments(np.float32(x), np.float32(y))
    graph = one_node(x.shape[1], group="linear")
    method = method or CCA(gamma=0.0)
    theta = method.init(graph, [None, None], stats={NodeMoments: {"n": m}})
    return jax.tree.map(np.asarray, method.maps(theta, graph)[1]["n"]), m


def test_an_invertible_map_is_inverted_exactly_without_regularisation():
    a = RNG.standard_normal((N, N)) + 2 * np.eye(N)
    m, _ = fit(X, X @ a.T)
    np.testing.assert_allclose(m.push @ a, np.eye(N), atol=1e-3)
    np.testing.assert_allclose(m.pull, a, atol=2e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_an_orthogonal_map_is_transposed_for_every_gamma(gamma, scale):
    q = rotation(N)
    m, _ = fit(X, X @ q.T, CCA(gamma, scale))
    np.testing.assert_allclose(m.push, q.T, atol=1e-3)
    np.testing.assert_allclose(m.pull, q, atol=1e-3)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_identical_features_stay(gamma):
    m, _ = fit(X, X, CCA(gamma))
    np.testing.assert_allclose(m.push, np.eye(N), atol=1e-4)


def test_regularisation_breaks_exactness_for_other_maps():
    """What gamma costs, so that the tests at gamma zero are not passed by ignoring it."""
    a = RNG.standard_normal((N, N)) + 2 * np.eye(N)
    m, _ = fit(X, X @ a.T, CCA(1.0))
    assert np.abs(m.push @ a - np.eye(N)).max() > 0.05


@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_large_gamma_tends_to_procrustes(scale):
    y = X @ RNG.standard_normal((N, N)) + 0.3 * RNG.standard_normal(X.shape)
    q, m = fit(X, y, Procrustes())
    np.testing.assert_allclose(q.push, polar(np.asarray(m.cross[1])), atol=1e-5)
    ratio = 1.0 if scale == "relative" else 0.0
    far, near = fit(X, y, CCA(1e6, scale))[0], fit(X, y, CCA(0.1, scale))[0]
    size = np.sqrt(np.trace(m.covariance[0]) / np.trace(m.covariance[1])) if ratio else 1.0  # relative gammas differ in size
    np.testing.assert_allclose(far.push / size, q.push, atol=1e-3)
    assert np.abs(near.push / size - q.push).max() > 0.01


@pytest.mark.parametrize("gamma", GAMMAS)
def test_pull_is_the_inverse_of_push(gamma):
    y = np.tanh(X @ RNG.standard_normal((N, N))) + 0.3 * RNG.standard_normal(X.shape)
    m, _ = fit(X, y, CCA(gamma))
    np.testing.assert_allclose(m.push @ m.pull, np.eye(N), atol=1e-3)


def test_aligned_features_have_the_covariance_of_the_reference():
    y = np.tanh(X @ RNG.standard_normal((N, N))) + 0.3 * RNG.standard_normal(X.shape)
    m, s = fit(X, y)
    np.testing.assert_allclose(m.push @ s.covariance[1] @ m.push.T, s.covariance[0], atol=1e-3 * float(s.covariance[0].max()))


def test_aligned_features_correlate_as_much_as_any_linear_map_allows():
    """The sum of canonical correlations, computed the textbook way."""
    y = X @ RNG.standard_normal((N, N)) + RNG.standard_normal(X.shape)
    m, s = fit(X, y)

    def whiten(c):
        values, vectors = np.linalg.eigh(np.asarray(c, np.float64))
        return (vectors / np.sqrt(values)) @ vectors.T

    white = whiten(s.covariance[0])
    canonical = np.linalg.svd(white @ s.cross[1] @ whiten(s.covariance[1]), compute_uv=False)
    aligned = white @ s.cross[1] @ m.push.T @ white
    assert np.trace(aligned) == pytest.approx(canonical.sum(), rel=1e-3)


def test_the_relative_gamma_does_not_see_the_unit_of_measurement():
    y = np.tanh(X) + 0.3 * RNG.standard_normal(X.shape)
    for scale, agrees in (("relative", True), ("absolute", False)):
        small, large = fit(X, y, CCA(0.1, scale))[0], fit(X * 30, y * 30, CCA(0.1, scale))[0]
        assert np.allclose(small.push, large.push, atol=1e-3) == agrees


def test_the_relative_gamma_is_a_multiple_of_the_mean_variance_dead_units_included():
    """Of two models whose mean variance is one, dead units among them, both scales are the same."""
    x, y = np.insert(X, [1, 3], 0.0, axis=1), np.insert(np.tanh(X @ rotation(N)), [0, 5], 0.0, axis=1)
    x, y = (z / np.sqrt(z.var(0).mean()) for z in (x, y))
    relative, absolute = (fit(x, y, CCA(0.3, scale))[0].push for scale in ("relative", "absolute"))
    np.testing.assert_allclose(relative, absolute, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- dead units


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 10.0])
def test_dead_units_are_mapped_to_dead_units(gamma):
    """One dead unit in each model, in other places: live features must not leak into the dead one nor come from it."""
    q = rotation(N)
    x = np.insert(X, 2, 0.0, axis=1)
    y = np.insert(X @ q.T, 4, 0.0, axis=1)
    m, _ = fit(x, y, CCA(gamma))
    live_x, live_y = [0, 1, 3, 4, 5], [0, 1, 2, 3, 5]
    np.testing.assert_allclose(np.asarray(m.push)[np.ix_(live_x, live_y)], q.T, atol=1e-3)
    assert np.abs(np.asarray(m.push)[2, live_y]).max() < 1e-5
    assert np.abs(np.asarray(m.push)[live_x, 4]).max() < 1e-5
    assert abs(m.push[2, 4]) > 0.1  # still invertible


def test_dead_units_stay_where_both_models_have_the_same():
    """The identity on the common null space: also of another scale, where Sxx^1/2 Syy^-1/2 would not be 1."""
    x, y = (np.insert(z, [1, 3], 0.0, axis=1) for z in (X, 5 * np.tanh(X)))
    dead = np.flatnonzero(~x.any(0))
    for gamma in GAMMAS:
        m, _ = fit(x, y, CCA(gamma))
        np.testing.assert_allclose(m.push[np.ix_(dead, dead)], np.eye(2), atol=1e-5)
        np.testing.assert_allclose(m.pull[np.ix_(dead, dead)], np.eye(2), atol=1e-5)


def test_large_gamma_tends_to_procrustes_where_more_units_are_dead_in_one_model():
    x, y = np.insert(X, [2], 0.0, axis=1), np.insert(np.tanh(X)[:, :3], [0, 1, 1], 0.0, axis=1)
    q = fit(x, y, Procrustes())[0]
    np.testing.assert_allclose(fit(x, y, CCA(1e5, "absolute"))[0].push, q.push, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 1e4])
def test_different_numbers_of_dead_units_give_a_moderate_map_in_any_unit_of_measurement(gamma):
    """Live directions then meet dead ones, which have no variance to go by: that of both models is taken."""
    x, y = np.insert(X, [2], 0.0, axis=1), np.insert(np.tanh(X)[:, :3], [0, 1, 1], 0.0, axis=1)
    maps = [fit(unit * x, unit * y, CCA(gamma))[0] for unit in (1, 1 / 1024, 1024)]
    for m in maps:
        assert max(np.abs(m.push).max(), np.abs(m.pull).max()) < 10
        np.testing.assert_allclose(m.push, maps[0].push, atol=1e-3)
        np.testing.assert_allclose(m.push @ m.pull, np.eye(6), atol=1e-3)


def perturbed(solver, rng):
    """`svd` or `eigh` as another backend might solve it: other signs, and other bases where values coincide."""

    def solve(matrix, *args, **kwargs):
        parts = solver(matrix, *args, **kwargs)
        if isinstance(parts, np.ndarray):  # singular values alone
            return parts
        values, vectors = (parts[1], [parts[0], parts[2].T]) if len(parts) == 3 else (parts[0], [parts[1]])
        turn = np.diag(rng.choice([-1.0, 1.0], len(values)))
        turns = [turn, turn.copy()]
        null = values < 1e-9 * values.max()
        for t in turns:  # left and right null spaces turn on their own
            t[np.ix_(null, null)] = rotation(null.sum(), int(rng.integers(100))) if null.any() else 0
        turned = [v @ t for v, t in zip(vectors, turns, strict=False)]
        return (turned[0], values, turned[1].T) if len(parts) == 3 else (values, turned[0])

    return solve


@pytest.mark.filterwarnings("ignore:CCA with gamma")
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("case", ["dead units", "fewer samples than units"])
def test_the_map_does_not_depend_on_the_solver(gamma, case, monkeypatch):
    x, y = X, np.tanh(X @ rotation(N))
    x, y = (np.insert(x, [1, 3], 0.0, axis=1), np.insert(y, [0, 3], 0.0, axis=1)) if case == "dead units" else (x[:4], y[:4])
    m, _ = fit(x, y, CCA(gamma))
    np.testing.assert_allclose(m.push @ m.pull, np.eye(len(m.push)), atol=1e-3)
    assert np.abs(m.push).max() < 1e3
    rng = np.random.default_rng(0)
    monkeypatch.setattr(np.linalg, "svd", perturbed(np.linalg.svd, rng))
    monkeypatch.setattr(np.linalg, "eigh", perturbed(np.linalg.eigh, rng))
    for _ in range(3):
        np.testing.assert_allclose(fit(x, y, CCA(gamma))[0].push, m.push, atol=1e-5)


def test_rounding_in_the_null_space_is_not_taken_for_features():
    """A node wider than its inputs, one direction of which is faint: float32 noise must not fill the null block."""
    wide = X @ np.diag([1, 1, 1, 1, 0.2]) @ rotation(7)[:5]
    m = moments(np.float32(wide), np.float32(wide))
    noise = 3e-6 * np.abs(m.cross).max() * np.random.default_rng(1).standard_normal(m.cross.shape)
    method, graph = CCA(0.0), one_node(7, group="linear")
    theta = method.init(graph, [None, None], stats={NodeMoments: {"n": m._replace(cross=np.float32(m.cross + noise))}})
    np.testing.assert_allclose(theta[1]["n"], np.eye(7), atol=0.1)


def test_fewer_samples_than_units_are_named_where_gamma_does_not_help():
    for method in (CCA(0.0), CCA(1e-4, "absolute")):
        with pytest.warns(
            UserWarning, match=r"no more samples than units at 'n' \(4 for 5 units\): the covariances are singular"
        ):
            fit(X[:4], X[:4] @ rotation(N).T, method)
    fit(X[:4], X[:4] @ rotation(N).T, CCA(0.1))  # warnings are errors here
    fit(X[:6], X[:6] @ rotation(N).T, CCA(0.0))
    with pytest.warns(UserWarning, match="the covariances are singular"):  # an absolute gamma beside large variances
        fit(100 * X[:4], 100 * X[:4] @ rotation(N).T, CCA(0.1, "absolute"))
    fit(0.01 * X[:4], 0.01 * X[:4] @ rotation(N).T, CCA(1e-3, "absolute"))


def test_dead_units_do_not_depend_on_rounding():
    x, y = (np.insert(z, [1, 3], 0.0, axis=1) for z in (X, np.tanh(X)))
    noise = 1e-9 * np.random.default_rng(1).standard_normal(x.shape)
    np.testing.assert_allclose(fit(x, y, CCA(0.1))[0].push, fit(x + noise, y - noise, CCA(0.1))[0].push, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("dead", [(True, False), (False, True), (True, True)])
def test_a_node_that_is_dead_as_a_whole_gives_a_moderate_map(gamma, dead):
    """Nothing can be learned from it, but one dead layer must not put 1e15 (or NaN) into the weights."""
    x, y = (np.zeros_like(X) if d else X for d in dead)
    m, _ = fit(x, y, CCA(gamma))
    assert np.isfinite(m.push).all() and np.isfinite(m.pull).all()
    assert max(np.abs(m.push).max(), np.abs(m.pull).max()) < 1e3


# ----------------------------------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_reparametrisation_of_a_linear_network_is_undone(gamma):
    """A merged with an invertible reparametrisation of A is A's function (full rank: no node is wider than the inputs).

    Of an orthogonal one for every gamma, for then whitening takes the same from both.
    """

    def apply(v, x):
        return networks.dense(v["out"], networks.dense(v["second"], networks.dense(v["first"], x)))

    sizes = {"first": (5, 5), "second": (5, 4), "out": (4, 3)}
    variables = {k: {"kernel": networks.data(*s, seed=1), "bias": networks.data(s[1])} for k, s in sizes.items()}
    x = networks.data(64, 5)
    apply = jax.jit(apply)
    graph = alignment.trace(apply, variables, x)
    planted = {
        n: np.asarray(networks.data(k, k, seed=k)) + 2 * np.eye(k, dtype=np.float32) for n, k in (("first", 5), ("second", 4))
    }
    planted = {n: polar(m).astype(np.float32) if gamma else m for n, m in planted.items()}
    maps = {n: alignment.general(m) for n, m in planted.items()}
    other = alignment.transport(graph, maps, variables)
    statistic = NodeMoments()
    measure = jax.jit(lambda models, x: statistic.measure(apply, graph, models, (x, None)))
    stats = {NodeMoments: statistic.finalise(measure([variables, other], x))}
    aligned = alignment.align(CCA(gamma), graph, [variables, other], stats=stats)

    def mean(a, b):
        return jax.tree.map(lambda a, b: (np.asarray(a) + np.asarray(b)) / 2, a, b)

    before = np.asarray(apply(variables, x))
    gap = np.abs(np.asarray(apply(mean(*aligned), x)) - before).max() / np.abs(before).max()
    assert gap < 1e-3
    assert np.abs(np.asarray(apply(mean(variables, other), x)) - before).max() > 0.1  # without aligning it is another function


def test_linear_nodes_inside_exchanged_heads_of_attention_are_recovered():
    """Queries and keys move by inverse transposes of each other; the map must be fitted on the features that push moves."""
    net = networks.network("attention")
    maps = networks.elements(net.graph, 1)
    maps["query#1"], maps["embed"] = alignment.permutation(np.array([1, 0])), alignment.identity(7)
    moved = alignment.transport(net.graph, maps, net.variables)
    stats = {NodeMoments: collect("attention", [net.variables, moved], BATCHES["attention"])}
    method = CCA(gamma=0.0)
    found = method.init(net.graph, [net.variables, moved], stats=stats)[1]
    np.testing.assert_array_equal(found["query#1"], [1, 0])
    for node in ("query#2", "value"):
        for place in range(2):  # their head is our other one, moved by its own matrix there
            both = found[node][place] @ maps[node].push[1 - place]
            np.testing.assert_allclose(both, np.eye(len(both)), atol=1e-2)
    aligned = alignment.align(method, net.graph, [net.variables, moved], stats=stats)[1]
    np.testing.assert_allclose(aligned["key"], net.variables["key"], atol=1e-2)


def heads_apart(method, turn, seed):
    """The planted order of four heads and the matrices inside them, and the maps that a method finds for them."""
    rng = np.random.default_rng(seed)
    x, order = rng.standard_normal((4, 300, 3)), rng.permutation(4)
    y = np.stack([x[h] @ turn(rng).T for h in order])  # their head p is our head order[p], turned
    graph = one_node(3, index=("heads",), copies=(4,), group="linear")
    graph = dataclasses.replace(graph, taps={"n": graph.taps["n"]})  # the heads are only known by what is inside
    stats = {NodeMoments: {"n": moments(*(np.concatenate(list(z), 1) for z in (x, y)))}}
    theta = method.init(graph, [None, None], stats=stats)
    found = jax.tree.map(np.asarray, method.maps(theta, graph)[1])
    return x, y, order, found


@pytest.mark.parametrize("method", [Procrustes(), CCA(0.01)], ids=["procrustes", "cca"])
@pytest.mark.parametrize(
    "turn",
    [
        lambda rng: rotation(3, int(rng.integers(100))),
        lambda rng: -np.eye(3),
    ],
    ids=["rotated", "negative"],
)
def test_heads_are_paired_by_what_is_inside_and_that_is_solved_between_the_paired(method, turn):
    for seed in range(5):
        x, y, order, found = heads_apart(method, turn, seed)
        np.testing.assert_array_equal(found["heads"].push.argmax(-1), np.argsort(order))
        back = np.einsum("pij,pnj->pni", found["n"].push, y)[np.argsort(order)]
        np.testing.assert_allclose(back, x, atol=0.1)


@pytest.mark.parametrize(("group", "order"), [("orthogonal", [0, 1]), ("linear", [1, 0])])
def test_heads_are_as_much_alike_as_their_group_can_make_them(group, order):
    """A loud direction is shared with one head, two faint ones with the other: rotations cannot make those loud."""
    loud, faint = np.random.default_rng(0).standard_normal((2, 300, 1)), np.random.default_rng(1).standard_normal((2, 300, 2))
    x, y = (np.concatenate([np.concatenate([10 * loud[h], f[h]], 1) for h in (0, 1)], 1) for f in (faint, faint[::-1]))
    graph = one_node(3, index=("heads",), copies=(2,), group=group)
    graph = dataclasses.replace(graph, taps={"n": graph.taps["n"]})
    stats = {NodeMoments: {"n": moments(np.float32(x), np.float32(y))}}
    for method in (Procrustes(approximate=True), CCA(0.01, approximate=True)):
        found = method.maps(method.init(graph, [None, None], stats=stats), graph)[1]
        np.testing.assert_array_equal(np.asarray(found["heads"].push).argmax(-1), order)


@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet"])
def test_between_relus_the_map_is_an_approximation_and_discrepancy_says_so(name):
    net = networks.network(name)
    models = [net.variables, net.another(1)]
    batches = [networks.data(64, 5)] if name == "mlp" else [networks.data(3, 8, 8, 3, seed=s) for s in range(2)]
    stats = {NodeMoments: collect(name, models, batches)}
    method = CCA(approximate=True)
    maps = method.maps(method.init(net.graph, models, stats=stats), net.graph)
    assert alignment.discrepancy(net.apply, net.graph, maps[1], models[1], net.inputs) > 1e-2
    assert alignment.discrepancy(net.apply, net.graph, maps[0], models[0], net.inputs) == 0  # the reference is not moved


@pytest.mark.parametrize("method", [CCA(), Procrustes()], ids=["cca", "procrustes"])
def test_nodes_outside_the_group_are_refused(method):
    """By name, unless an approximation is meant; heads are permuted, so their own group does not matter."""
    stats = {NodeMoments: {"n": moments(np.float32(X), np.float32(X))}}
    groups = {"permutation": False, "scale": False, "orthogonal": isinstance(method, Procrustes), "linear": True}
    for group, allowed in groups.items():
        if allowed:
            method.init(one_node(N, group=group), [None, None], stats=stats)
            continue
        with pytest.raises(ValueError, match=rf"{type(method).__name__} .* at 'n' \({group}\): pass approximate=True"):
            method.init(one_node(N, group=group), [None, None], stats=stats)
        dataclasses.replace(method, approximate=True).init(one_node(N, group=group), [None, None], stats=stats)
    heads = one_node(1, index=("heads",), copies=(5,), group="linear")
    assert heads.nodes["heads"].group == "permutation"
    method.init(heads, [None, None], stats=stats | {NodeMoments: stats[NodeMoments] | {"heads": stats[NodeMoments]["n"]}})


def test_learning_stays_within_the_group():
    """The pull follows the push; with both in theta the network left its function within a few steps."""
    net, x = networks.network("linear_mlp"), networks.data(64, 5)
    models = [net.variables, net.another(1)]
    theta = CCA().init(net.graph, models, stats={NodeMoments: collect("linear_mlp", models, [x])})
    for m, v in networks.learned(net, CCA(), theta, x, models):
        assert alignment.discrepancy(net.apply, net.graph, m, v, x) < 1e-4


def test_many_models_need_no_joint_covariance():
    """Three models: covariances of each and with the first, never the (3 n)^2 one; each as if it were alone."""
    net, x = networks.network("linear_mlp"), [networks.data(64, 5)]
    models = [net.variables, net.another(1), net.another(2)]
    taken = collect("linear_mlp", models, x)
    assert {leaf.shape for m in taken.values() for leaf in (m.covariance, m.cross)} == {(3, 8, 8), (3, 7, 7)}
    theta = CCA().init(net.graph, models, stats={NodeMoments: taken})
    pair = {NodeMoments: collect("linear_mlp", [models[0], models[2]], x)}
    chex.assert_trees_all_close(theta[2], CCA().init(net.graph, [models[0], models[2]], stats=pair)[1], atol=1e-4)


def test_bad_hyper_parameters_are_refused():
    for bad in (-1, float("nan"), float("inf"), "a"):
        with pytest.raises(ValueError, match=f"gamma must be a finite number of 0 or more, got {bad!r}"):
            CCA(gamma=bad)
    with pytest.raises(ValueError, match=r"scale must be .*, got 'both'"):
        CCA(scale="both")


def test_needs_and_printing():
    """Frozen dataclasses: they go into the record of a merge as they print."""
    assert CCA().needs == (NodeMoments,)
    assert repr(CCA()) == "CCA(gamma=0.1, scale='relative', approximate=False)"
    chex.assert_equal(CCA(), CCA(0.1, "relative"))
    assert hash(CCA()) == hash(CCA())
