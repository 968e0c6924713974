"""Programs that tell units apart in ways that are easily missed: found by fuzzing, kept so that they stay found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from tests.alignment.networks import data

KEY = jax.random.key(0)
X = data(3, 4)


def heads(v, x):
    return jnp.einsum("bi,ihd->bhd", x, v["w"])


def joined(v, h):
    return jnp.einsum("bhd,hdo->bo", h, v["o"])


def times_reversed(v, x):
    h = heads(v, x)
    return joined(v, h * h[:, ::-1])


def plus_running_sum(v, x):
    h = heads(v, x)
    return joined(v, jnp.tanh(h + jnp.cumsum(h, 1)))


def times_reordered(v, x):
    h = heads(v, x)
    return joined(v, h * h[:, np.array([1, 2, 0])])


def times_regrouped(v, x):
    """Six heads as two rows of three, read column by column."""
    h = heads(v, x)
    return joined(v, h * h.reshape(-1, 2, 3, 5).swapaxes(1, 2).reshape(-1, 6, 5))


def layers_in_both_directions(v, x):
    def step(h, w):
        return h + jnp.tanh(h @ w[0]) @ w[1].T, None

    return jax.lax.scan(step, x, (v["w"], v["w"][::-1]))[0]


def padded_with_ones(v, x):
    return jnp.pad(x @ v["w"], ((0, 1), (0, 0)), constant_values=1.0).sum(0) @ v["o"]


def filled_with_ones(v, x):
    return jnp.take(x @ v["w"], np.array([0, 7]), axis=0, mode="fill", fill_value=1.0) @ v["o"]


def regrouped_across_heads(v, x):
    return jnp.tanh(heads(v, x)).reshape(3, 3, 4) @ v["o"]


def random_numbers_of_a_shape(v, x):
    return jax.random.gamma(KEY, jnp.exp(x @ v["w"])) @ v["o"]


def scattered_in_batches(v, x):
    update = jnp.stack([x @ v["w"]] * 2, -1)
    index = jnp.broadcast_to(jnp.array([0, 2]), (3, 5, 2))
    z = jax.vmap(jax.vmap(lambda z, i, u: z.at[i].add(u)))(jnp.zeros((3, 5, 4)), index, update)
    return jnp.einsum("bnk,n->bk", z, v["o"])


def waves(x, function):
    return x[:, :, None] * jnp.broadcast_to(function(np.arange(3, dtype=np.float32)), (*x.shape, 3))


def sorted_by_another(v, x):
    a, b = waves(x @ v["w"], np.cos), waves(x @ v["w2"], np.sin)
    return jnp.einsum("bns,n->bs", jax.lax.sort((jnp.zeros((3, 5, 3)), a, b), dimension=2, num_keys=2)[2], v["o"])


def pooled_with_another(v, x):
    def larger(p, q):
        return jnp.where(p[0] > q[0], p[0], q[0]), jnp.where(p[0] > q[0], p[1], q[1])

    pair = waves(x @ v["w"], np.cos), waves(x @ v["w2"], np.sin)
    pooled = jax.lax.reduce_window(pair, (-jnp.inf, 0.0), larger, (1, 1, 2), (1, 1, 1), "VALID")[1]
    return jnp.einsum("bns,n->bs", pooled, v["o"])


def convolved(x, kernel):
    numbers = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), "VALID", dimension_numbers=numbers, feature_group_count=2)


def a_kernel_that_also_meets_a_constant(v, x):
    ones = jnp.broadcast_to(x[:, :1, None], (3, 1, 6))
    return (convolved((x @ v["w"])[:, None], v["w2"]) + convolved(ones, v["w2"]))[:, 0] @ v["o"]


def rows_that_meet_each_other(v, x):
    h = jnp.pad(jnp.tanh(x @ v["w"]), ((0, 0), (2, 2)))
    meet = (v["w2"][0] * v["w2"][1]).sum()
    y = (h @ v["w2"].T).sum(1) + h @ v["o"]
    return y + jnp.broadcast_to(meet, y.shape)


def summed_by_a_product(v, x):
    return (x @ v["w"]) @ jnp.full((5, 1), 2.0) @ v["o"]


def weighed_by_one_number_each(v, x):
    h = jnp.einsum("bn,n->bn", x @ v["w"], jnp.full(5, 2.0))
    return jnp.einsum("n,bn->bn", jnp.full(5, 2.0), jnp.tanh(h)) @ v["o"]


def behind_a_barrier(v, x):
    h, y = jax.lax.optimization_barrier((x @ v["w"], x @ v["w2"]))
    return jnp.tanh(h) @ v["o"] + y @ v["o2"]


def looked_at(v, x):
    h = x @ v["w"]
    jax.debug.callback(lambda h: None, h)
    return h @ v["o"]


def its_last_features_overwritten(v, x):
    h, y = x @ v["w"], x @ v["w2"]
    return jax.lax.dynamic_update_slice(h, y, (0, jnp.int32(3))) @ v["o"]


def its_last_rows_overwritten(v, x):
    h = jnp.tanh(x @ v["w"])
    return jax.lax.dynamic_update_slice(h, h[:1] * h[1:2], (jnp.int32(2), 0)) @ v["o"]


def ones_whose_last_rows_are_overwritten(v, x):
    return jax.lax.dynamic_update_slice(jnp.ones((4, 5)), x @ v["w"], (jnp.int32(1), 0)) @ v["o"]


def the_largest_by_index(v, x):
    return jnp.zeros((2, 5)).at[jnp.array([0, 1, 0])].max(x @ v["w"]) @ v["o"]


def its_bits(v, x):
    bits = jax.lax.bitcast_convert_type(x @ v["w"], jnp.int32)
    return jax.lax.bitcast_convert_type(bits & 0x7FFF0000, jnp.float32) @ v["o"]


def the_middle_of_heads(v, x):
    return heads(v, x).reshape(3, 15)[:, 2:12] @ v["o"]


def split_into_thirds(v, x):
    """Queries, keys and values of one kernel, as ViTs of timm have them."""
    q, k, y = (jnp.squeeze(part, 1) for part in jax.lax.split(heads(v, x), (1, 1, 1), axis=1))
    return jnp.einsum("bd,cd->bc", q, k) @ jnp.tanh(y) @ v["o"]


def split_in_two_parts(v, x):
    """Of which one holds two places, which stay together."""
    two, one = jax.lax.split(heads(v, x), (2, 1), axis=1)
    return (jnp.tanh(two).sum(1) + jnp.squeeze(one, 1)) @ v["o"]


PROGRAMS = {
    times_reversed: {"w": (4, 3, 5), "o": (3, 5, 2)},
    plus_running_sum: {"w": (4, 3, 5), "o": (3, 5, 2)},
    times_reordered: {"w": (4, 3, 5), "o": (3, 5, 2)},
    times_regrouped: {"w": (4, 6, 5), "o": (6, 5, 2)},
    layers_in_both_directions: {"w": (3, 4, 5)},
    padded_with_ones: {"w": (4, 5), "o": (5, 2)},
    filled_with_ones: {"w": (4, 5), "o": (5, 2)},
    regrouped_across_heads: {"w": (4, 2, 6), "o": (4, 2)},
    random_numbers_of_a_shape: {"w": (4, 5), "o": (5, 2)},
    scattered_in_batches: {"w": (4, 5), "o": (5,)},
    sorted_by_another: {"w": (4, 5), "w2": (4, 5), "o": (5,)},
    pooled_with_another: {"w": (4, 5), "w2": (4, 5), "o": (5,)},
    a_kernel_that_also_meets_a_constant: {"w": (4, 6), "w2": (1, 3, 4), "o": (4, 2)},
    rows_that_meet_each_other: {"w": (4, 3), "w2": (2, 7), "o": (7,)},
    summed_by_a_product: {"w": (4, 5), "o": (1, 2)},
    weighed_by_one_number_each: {"w": (4, 5), "o": (5, 2)},
    behind_a_barrier: {"w": (4, 5), "w2": (4, 6), "o": (5, 2), "o2": (6, 2)},
    looked_at: {"w": (4, 5), "o": (5, 2)},
    its_last_features_overwritten: {"w": (4, 5), "w2": (4, 2), "o": (5, 2)},
    its_last_rows_overwritten: {"w": (4, 5), "o": (5, 2)},
    ones_whose_last_rows_are_overwritten: {"w": (4, 5), "o": (5, 2)},
    the_largest_by_index: {"w": (4, 5), "o": (5, 2)},
    its_bits: {"w": (4, 5), "o": (5, 2)},
    the_middle_of_heads: {"w": (4, 3, 5), "o": (10, 2)},
    split_into_thirds: {"w": (4, 3, 5), "o": (5, 2)},
    split_in_two_parts: {"w": (4, 3, 5), "o": (5, 2)},
}
GROUPS = {
    summed_by_a_product: {5: "permutation"},
    weighed_by_one_number_each: {5: "permutation"},
    behind_a_barrier: {5: "permutation", 6: "linear"},
    looked_at: {5: "linear"},
    its_last_features_overwritten: {},
    its_last_rows_overwritten: {5: "permutation"},
    ones_whose_last_rows_are_overwritten: {5: "permutation"},
    the_largest_by_index: {5: "permutation"},
    its_bits: {5: "permutation"},
}
"""What units of these sizes may be moved by: no more than keeps the function, which is tried below, and no less."""


@pytest.mark.filterwarnings("ignore:no rule for primitive")  # it does not guess, which is the point
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_no_group_element_changes_the_function(program):
    variables = {name: data(*shape, seed=k) for k, (name, shape) in enumerate(PROGRAMS[program].items())}
    apply = jax.jit(program)
    graph = alignment.trace(apply, variables, X)
    assert alignment.verify(apply, graph, variables, X, key=KEY) < 1e-5
    assert max(alignment.verify_each(apply, graph, variables, X, key=KEY).values(), default=0) < 1e-5


@pytest.mark.parametrize("program", GROUPS, ids=lambda program: program.__name__)
def test_the_largest_group_is_found(program):
    variables = {name: data(*shape, seed=k) for k, (name, shape) in enumerate(PROGRAMS[program].items())}
    found = alignment.trace(jax.jit(program), variables, X).nodes.values()
    assert {node.size: node.group for node in found} == GROUPS[program]


def test_places_that_a_split_takes_apart_have_nodes_of_their_own():
    variables = {name: data(*shape) for name, shape in PROGRAMS[split_into_thirds].items()}
    found = alignment.trace(split_into_thirds, variables, X).nodes.values()
    assert sorted((node.size, node.group) for node in found) == [(5, "linear"), (5, "permutation")]


def test_a_squared_norm_is_not_where_features_are_read():
    """Its axes are those of the features, its values are not."""

    def apply(v, x):
        h = x @ v["w"]
        return h @ v["o"] * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True))

    variables = {"w": data(4, 5), "o": data(5, 2, seed=1)}
    graph = alignment.trace(apply, variables, X)
    assert graph.nodes["w"].group == "orthogonal"
    np.testing.assert_allclose(alignment.capture(apply, graph, variables, X).nodes["w"], X @ variables["w"], atol=1e-6)


def test_variables_of_another_network_are_named_before_they_are_moved():
    variables = {"w": data(4, 5), "o": data(5, 2, seed=1)}
    graph = alignment.trace(weighed := lambda v, x: x @ v["w"] @ v["o"], variables, X)
    for wrong in ({"w": variables["w"]}, variables | {"o": data(5, 3)}):
        with pytest.raises(ValueError, match="variables do not fit the graph at 'o'"):
            alignment.discrepancy(weighed, graph, {}, wrong, X)


def test_a_wrong_graph_is_seen_in_complex_outputs_too():
    variables = {"w": data(4, 5), "o": data(5, 2, seed=1)}
    graph = alignment.trace(lambda v, x: jax.nn.relu(x @ v["w"]) @ v["o"], variables, X)

    def other(v, x):
        return jnp.complex64(1j) * (jnp.tanh(x @ v["w"]) @ v["o"]).astype(jnp.complex64)

    assert alignment.verify(other, graph, variables, X, key=KEY) > 1e-2


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"a/w": data(4, 5), "a": {"w": data(4, 5)}}, "two leaves have the path 'a/w'"),
        ({"a": {"w": "weights"}}, "variables must be arrays, got str at 'a/w'"),
        ({}, "reads none of its variables"),
    ],
)
def test_variables_that_are_no_tree_of_arrays_are_refused(variables, message):
    with pytest.raises(ValueError, match=message):
        alignment.trace(lambda v, x: x, variables, X)


def test_moments_that_hold_a_nan_are_refused_by_name():
    variables = {"w": data(4, 5), "o": data(5, 2, seed=1)}

    def apply(v, x):
        return jnp.tanh(x @ v["w"]) @ v["o"]

    graph, moments = alignment.trace(apply, variables, X), alignment.NodeMoments()
    spoilt = moments.finalise(moments.measure(apply, graph, [variables, variables], (X.at[0, 0].set(jnp.nan), None)))
    with pytest.raises(ValueError, match="non-finite moments of node 'w'"):
        alignment.align(alignment.ActivationMatching(), graph, [variables, variables], stats={alignment.NodeMoments: spoilt})


def test_units_told_apart_one_by_one_are_pinned_with_that_reason():
    variables = {"w": data(4, 5), "o": data(5, 2, seed=1)}
    graph = alignment.trace(lambda v, x: (lambda h: (h * jnp.roll(h, 1, -1)) @ v["o"])(x @ v["w"]), variables, X)
    assert ("w", 1, "its units are told apart one by one") in {(p.path, p.axis, p.reason) for p in graph.pinned}
