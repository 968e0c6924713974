"""Linear sites: what a weight meets times the weight as a matrix is what it makes of it, however that is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import alignment
from tests.alignment import networks
from tests.alignment.networks import data


def convolve(x, kernel, stride=(1, 1), padding="SAME", numbers=("NHWC", "HWIO", "NHWC"), **options):
    return jax.lax.conv_general_dilated(x, kernel, stride, padding, dimension_numbers=numbers, **options)


def scanned(x, w):
    return jax.lax.scan(lambda h, k: (jnp.tanh(h @ k), None), x, w)[0]


def scanned_in_groups(x, w):
    """Loops in loops, and experts inside: (groups, steps, experts, in, out)."""

    def one(h, k):
        return jnp.tanh(jnp.einsum("ebi,eij->ebj", h, k)), None

    return jax.lax.scan(lambda h, group: (jax.lax.scan(one, h, group)[0], None), x, w)[0]


CASES = {
    # name: (function of x and w, shapes of both, shapes of inputs, matrix and outputs)
    "dense": (lambda x, w: x @ w, (6, 4), (4, 5), [(6, 4), (4, 5), (6, 5)]),
    "positions": (lambda x, w: jnp.tensordot(x, w, 1), (2, 3, 4), (4, 5), [(6, 4), (4, 5), (6, 5)]),
    "heads out": (lambda x, w: jnp.einsum("bti,ihd->bthd", x, w), (2, 3, 4), (4, 2, 5), [(6, 4), (4, 10), (6, 10)]),
    "heads in": (lambda x, w: jnp.einsum("bthd,hdo->bto", x, w), (2, 3, 2, 5), (2, 5, 4), [(6, 10), (10, 4), (6, 4)]),
    "scattered axes": (lambda x, w: jnp.einsum("ibj,joi->bo", x, w), (2, 6, 3), (3, 5, 2), [(6, 6), (6, 5), (6, 5)]),
    "weight on the left": (lambda x, w: jnp.einsum("oi,ib->ob", w, x), (4, 6), (5, 4), [(6, 4), (4, 5), (6, 5)]),
    "transposed": (lambda x, w: x @ w.T, (6, 4), (5, 4), [(6, 4), (4, 5), (6, 5)]),
    "a slice": (lambda x, w: x @ w[:, 2:5], (6, 4), (4, 9), [(6, 4), (4, 3), (6, 3)]),
    "a split": (lambda x, w: x @ jnp.split(w, 3, axis=1)[1], (6, 4), (4, 9), [(6, 4), (4, 3), (6, 3)]),
    "one of a stack": (lambda x, w: x @ w[1], (6, 4), (3, 4, 5), [(6, 4), (4, 5), (6, 5)]),
    "reshaped": (lambda x, w: x @ w.reshape(4, 10), (6, 4), (4, 2, 5), [(6, 4), (4, 10), (6, 10)]),
    "cast": (lambda x, w: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (6, 4), (4, 5), [(6, 4), (4, 5), (6, 5)]),
    "experts": (lambda x, w: jnp.einsum("bi,eio->beo", x, w), (6, 4), (3, 4, 5), [(6, 4), (4, 15), (6, 15)]),
    "batched experts": (
        lambda x, w: jnp.einsum("ebi,eio->ebo", x, w),
        (3, 6, 4),
        (3, 4, 5),
        [(3, 6, 4), (3, 4, 5), (3, 6, 5)],
    ),
    "batched, weight on the left": (
        lambda x, w: jnp.einsum("eoi,eib->eob", w, x),
        (3, 4, 6),
        (3, 5, 4),
        [(3, 6, 4), (3, 4, 5), (3, 6, 5)],
    ),
    "per example": (
        lambda x, w: jax.vmap(lambda row: row @ w)(x),
        (6, 4),
        (4, 5),
        [(6, 4), (4, 5), (6, 5)],
    ),
    "scanned": (scanned, (6, 4), (3, 4, 4), [(3, 6, 4), (3, 4, 4), (3, 6, 4)]),
    "shared in a scan": (
        lambda x, w: jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=3)[0],
        (6, 4),
        (4, 4),
        [(18, 4), (4, 4), (18, 4)],
    ),
    "scanned experts in groups": (
        scanned_in_groups,
        (2, 6, 4),
        (3, 5, 2, 4, 4),
        [(3, 5, 2, 6, 4), (3, 5, 2, 4, 4), (3, 5, 2, 6, 4)],
    ),
    "convolution": (convolve, (2, 5, 6, 3), (3, 2, 3, 4), [(60, 18), (18, 4), (60, 4)]),
    "strided": (
        lambda x, w: convolve(x, w, (2, 2), "VALID"),
        (2, 5, 6, 3),
        (3, 2, 3, 4),
        [(12, 18), (18, 4), (12, 4)],
    ),
    "dilated": (
        lambda x, w: convolve(x, w, padding=((2, 1), (0, 3)), rhs_dilation=(2, 1)),
        (2, 5, 6, 3),
        (3, 2, 3, 4),
        [(64, 18), (18, 4), (64, 4)],
    ),
    "transposed convolution": (
        lambda x, w: jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
        (2, 3, 3, 3),
        (3, 2, 3, 4),
        [(72, 18), (18, 4), (72, 4)],
    ),
    "transposed convolution, kernel of the forward one": (
        lambda x, w: jax.lax.conv_transpose(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
        ),
        (2, 3, 3, 3),
        (3, 2, 4, 3),
        [(72, 18), (18, 4), (72, 4)],
    ),
    "grouped": (
        lambda x, w: convolve(x, w, feature_group_count=2),
        (2, 4, 4, 6),
        (3, 3, 3, 8),
        [(2, 32, 27), (2, 27, 4), (2, 32, 4)],
    ),
    "depthwise": (
        lambda x, w: convolve(x, w, feature_group_count=6),
        (2, 4, 4, 6),
        (3, 3, 1, 12),
        [(6, 32, 9), (6, 9, 2), (6, 32, 2)],
    ),
    "channels first": (
        lambda x, w: convolve(x, w, numbers=("NCHW", "OIHW", "NCHW")),
        (2, 3, 5, 6),
        (4, 3, 3, 2),
        [(60, 18), (18, 4), (60, 4)],
    ),
    "grouped, channels first": (
        lambda x, w: convolve(x, w, numbers=("NCHW", "OIHW", "NCHW"), feature_group_count=2),
        (2, 6, 4, 4),
        (8, 3, 3, 3),
        [(2, 32, 27), (2, 27, 4), (2, 32, 4)],
    ),
    "one pixel": (
        lambda x, w: convolve(x, w, (2, 3), "VALID"),
        (2, 5, 6, 3),
        (1, 1, 3, 4),
        [(12, 3), (3, 4), (12, 4)],
    ),
    "one pixel, grouped, in another layout": (
        lambda x, w: convolve(x, w, (2, 1), "VALID", numbers=("NCHW", "OIHW", "HNWC"), feature_group_count=2),
        (2, 6, 5, 4),
        (4, 3, 1, 1),
        [(2, 24, 3), (2, 3, 2), (2, 24, 2)],
    ),
    "one pixel, padded": (
        lambda x, w: convolve(x, w, padding=((1, 0), (0, 2))),
        (2, 3, 4, 3),
        (1, 1, 3, 4),
        [(48, 3), (3, 4), (48, 4)],
    ),
    "one dimension": (
        lambda x, w: convolve(x, w, (1,), numbers=("NWC", "WIO", "NWC")),
        (2, 5, 3),
        (3, 3, 4),
        [(10, 9), (9, 4), (10, 4)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_inputs_times_matrix_are_the_outputs(name):
    function, x_shape, w_shape, shapes = CASES[name]

    def apply(v, x):
        return function(x, v["w"])

    variables, x = {"w": data(*w_shape, seed=1)}, data(*x_shape, seed=2)
    graph = alignment.trace(apply, variables, x)
    (site,) = graph.sites
    assert (site.name, site.path) == ("w", "w")
    pair = alignment.capture(apply, graph, variables, x, nodes=(), sites=["w"]).sites["w"]
    matrix = jax.jit(site.matrix)(variables["w"])
    assert [pair.inputs.shape, matrix.shape, pair.outputs.shape] == shapes
    inputs, matrix, outputs = (np.asarray(z, np.float64) for z in (pair.inputs, matrix, pair.outputs))
    np.testing.assert_allclose(inputs @ matrix, outputs, atol=0.1 if name == "cast" else 1e-4)
    assert np.abs(outputs).max() > 0.5


@pytest.mark.parametrize("name", CASES)
def test_a_matrix_put_back_is_the_matrix_that_is_read(name):
    """And the leaf itself comes back if its own matrix is put in; what the site does not read stays."""
    function, x_shape, w_shape, _ = CASES[name]
    leaf, x = data(*w_shape, seed=1), data(*x_shape, seed=2)
    (site,) = alignment.trace(lambda v, x: function(x, v["w"]), {"w": leaf}, x).sites

    @jax.jit
    def both(leaf, other):
        return site.replaced(leaf, site.matrix(leaf)), site.replaced(leaf, other), site.matrix(site.replaced(leaf, other))

    other = data(*jax.eval_shape(site.matrix, leaf).shape, seed=3)
    same, new, read = (np.asarray(z, np.float32) for z in both(leaf, other))
    np.testing.assert_allclose(same, leaf, atol=0.02 if name == "cast" else 1e-6)
    np.testing.assert_allclose(read, other, atol=0.05 if name == "cast" else 1e-5)
    changed = np.abs(new - np.asarray(leaf)) > 1e-6
    assert changed.sum() <= other.size
    assert changed.mean() > 0.9 * other.size / leaf.size


def test_a_matrix_put_back_is_not_rounded():
    (site,) = alignment.trace(lambda v, x: x @ v["w"], {"w": data(4, 5)}, data(6, 4)).sites
    small = 1e-3 * np.asarray(data(4, 5, seed=3))
    np.testing.assert_array_equal(site.replaced(1e4 * np.asarray(data(4, 5)), small), small)


def test_replacing_differentiates():
    site = alignment.trace(lambda v, x: x @ v["w"][:, 1:3], {"w": data(4, 5)}, data(6, 4)).sites[0]
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(site.replaced(data(4, 5), m) * data(4, 5, seed=3))))(data(4, 2))
    np.testing.assert_allclose(gradient, data(4, 5, seed=3)[:, 1:3], atol=1e-6)


def frozen(v, x):
    return x @ jax.lax.stop_gradient(v["w"])


def test_frozen_weights_can_be_replaced():
    (site,) = alignment.trace(frozen, {"w": data(4, 5)}, data(6, 4)).sites
    np.testing.assert_allclose(site.matrix(site.replaced(data(4, 5), data(4, 5, seed=3))), data(4, 5, seed=3), atol=1e-6)


def test_a_tied_table_is_two_sites_or_one():
    """Read by index on the way in, which is no contraction; multiplied on the way out, and once more inside."""

    def apply(v, tokens):
        h = v["table"][tokens]
        h = h + jnp.tensordot(jnp.tanh(jnp.tensordot(h, v["table"].T, 1)), v["table"], 1)
        return jnp.tensordot(h, v["table"].T, 1)

    variables, tokens = {"table": data(9, 5)}, np.arange(12).reshape(3, 4) % 9
    graph = alignment.trace(apply, variables, tokens)
    assert [site.name for site in graph.sites] == ["table", "table#2", "table#3"]
    found = alignment.capture(apply, graph, variables, tokens, sites=[site.name for site in graph.sites])
    for site, transposed in zip(graph.sites, (True, False, True), strict=True):
        matrix = np.asarray(site.matrix(variables["table"]))
        np.testing.assert_array_equal(matrix, variables["table"].T if transposed else variables["table"])
        pair = found.sites[site.name]
        np.testing.assert_allclose(pair.inputs @ matrix, pair.outputs, atol=1e-4)


def test_what_is_no_site():
    """Products of weights alone, of data alone, and of weights that were changed on the way."""

    def apply(v, x):
        kernel = jnp.tanh(v["changed"]) + v["left"] @ v["right"]
        return (x @ kernel) * (x @ x.T).sum() + v["bias"].reshape(1, 5)

    variables = {"changed": data(4, 5), "left": data(4, 2), "right": data(2, 5), "bias": data(5)}
    assert alignment.trace(apply, variables, data(6, 4)).sites == ()


def test_loops_count_as_samples_where_the_weight_is_shared_and_as_copies_where_it_is_not():
    """One scan with a stacked weight and a shared one, its inputs of every step by hand."""

    def apply(v, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) @ v["shared"], None), x, v["stacked"])[0]

    variables, x = {"stacked": data(3, 4, 5), "shared": data(5, 4, seed=1)}, data(6, 4)
    graph = alignment.trace(apply, variables, x)
    assert {site.name: site.stacked for site in graph.sites} == {"stacked": (True,), "shared": (False,)}
    found = alignment.capture(apply, graph, variables, x, sites=["stacked", "shared"]).sites
    h, stacked, shared = (np.asarray(z) for z in (x, variables["stacked"], variables["shared"]))
    for k in range(3):
        np.testing.assert_allclose(found["stacked"].inputs[k], h, atol=1e-4)
        between = np.tanh(h @ stacked[k])
        np.testing.assert_allclose(found["shared"].inputs.reshape(3, 6, 5)[k], between, atol=1e-4)
        h = between @ shared
    np.testing.assert_allclose(found["shared"].outputs.reshape(3, 6, 4)[2], h, atol=1e-4)


def test_sites_of_whole_networks_in_the_order_of_the_network():
    expected = {
        "mlp": ["first/kernel", "second/kernel", "out/kernel"],
        "attention": ["embed", "query", "key", "value", "mix", "head"],
        "towers": ["embed", "layers/into", "layers/out", "head"],
    }
    for name, sites in expected.items():
        assert [site.name for site in networks.network(name).graph.sites] == sites


def test_the_batch_size_may_differ_from_the_traced_one():
    net = networks.network("towers")
    names = [site.name for site in net.graph.sites]
    found = alignment.capture(net.apply, net.graph, net.variables, data(3, 5), nodes=(), sites=names).sites
    assert {name: pair.inputs.shape for name, pair in found.items()} == {
        "embed": (3, 5),
        "layers/into": (3, 3, 7),
        "layers/out": (3, 3, 8),
        "head": (3, 7),
    }
