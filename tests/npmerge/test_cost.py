"""What merges and statistics cost, against counts by hand and XLA's own."""

import functools
import tracemalloc

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import npmerge as nm
from alignment import NodeMoments
from npmerge.cost import Cost, collected, cost_table, merged
from npmerge.operations import operations
from npmerge.task_vectors.spectral import svd
from tests.npmerge.toys import normal


def counted(function, *shapes: tuple[int, ...]) -> float:
    return operations(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)))


def test_operations_by_hand():
    assert counted(jnp.matmul, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
    assert counted(lambda x: jnp.sin(x) * x.sum(), (3, 4)) == 3 * 12
    assert counted(lambda x: x.T.reshape(2, 6)[:1].astype(jnp.float16), (3, 4)) == 0
    assert counted(lambda x: jax.lax.fori_loop(0, 7, lambda _, y: y @ x, x), (3, 3)) == 7 * (54 + 1)  # the counter too
    assert counted(lambda x: jax.lax.cond(x[0] > 0, lambda y: y + y * y, lambda y: y, x), (5,)) == 1 + 10
    assert counted(svd, (2, 6, 3)) == counted(svd, (2, 3, 6)) == 2 * (14 * 6 * 9 + 8 * 27)
    for kind, bits in ((jnp.uint16, 16), (jnp.uint32, 32)):  # 56 operations make 32 bits
        drawn = jax.make_jaxpr(functools.partial(jax.random.bits, shape=(10,), dtype=kind))(jax.random.key(0))
        assert operations(drawn) == 56 * 10 * bits / 32
    rest = 5 * 36  # made symmetric before, and one triangle chosen after
    assert counted(jnp.linalg.cholesky, (6, 6)) == 72 + rest


def test_operations_of_convolutions_leave_out_the_padding():
    def convolved(x, w):
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((2, 5, 5, 3), (3, 3, 3, 4))]
    xla = jax.jit(convolved).lower(*shapes).cost_analysis()["flops"]
    assert operations(jax.make_jaxpr(convolved)(*shapes)) == xla == 2 * 2 * 4 * 3 * 7 * 7


SHAPES = {"dense": {"kernel": (6, 8), "bias": (8,)}}


def models(n: int) -> nm.Stack:
    trees = [
        jax.tree.map(lambda s, k=k: jnp.asarray(normal(k, *s) + 1, jnp.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple))
        for k in range(n + 1)
    ]
    return nm.stack_models(trees[1:], trees[0])


PLAIN = (nm.Average(), nm.TaskArithmetic(), nm.Dare(1.0, elect=True), nm.Sce(1.0), nm.ConsensusTA(), nm.Della(1.0))
ONCE = (nm.Dare(), nm.Della(), nm.Ties(), nm.Breadcrumbs(), nm.Pcb(), nm.IsoC(), nm.IsoCTS(), nm.TsvM(), nm.Wudi())


@pytest.mark.parametrize("merge", PLAIN + ONCE, ids=repr)
def test_counts_agree_with_xla(merge):
    """To a third; where there are loops and decompositions, of which XLA counts one step and nothing, ours is the larger."""
    stack, key = models(3), jax.random.key(0)

    def closed_form(stack: nm.Stack) -> dict:
        return merge.apply(merge.init(stack, key=key), stack)

    traced = jax.jit(closed_form).trace(stack)
    xla = traced.lower().cost_analysis()
    ours, theirs = operations(traced.jaxpr), xla["flops"] + max(xla.get("transcendentals", 0), 0)
    assert theirs < 1.34 * ours
    assert merge in ONCE or ours < 1.34 * theirs


def test_a_merge_and_its_cost():
    stack = models(2)
    variables, cost = merged(nm.TaskArithmetic(0.3), stack)
    chex.assert_trees_all_close(variables, nm.TaskArithmetic(0.3)(stack), rtol=1e-6)
    assert cost.flops == cost.xla_flops == 7 * 56 - 56  # of each model a difference, a product and a sum
    assert cost.bytes == 2 * 2 * 4  # two coefficients for each tensor
    assert cost.peak_bytes >= (2 + 1 + 1) * 56 * 4
    assert cost.seconds > 0
    assert not cost.uncounted
    with pytest.raises(ValueError, match="needs a base"):
        merged(nm.TaskArithmetic(), nm.Stack(stack.params))


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (jax.lax.linalg.householder_product, [(6, 4), (4,)], 2 * 4**2 * (6 - 4 / 3)),
        (lambda a: jax.lax.linalg.lu(a)[0], [(2, 5, 5)], 2 * 5**2 * (5 - 5 / 3)),
        (lambda a, b: jax.lax.linalg.triangular_solve(a, b, left_side=True), [(4, 4), (4, 3)], 4**2 * 3),
        (lambda a: jax.lax.linalg.eigh(a, symmetrize_input=False), [(4, 4)], 9 * 4**3),
        (lambda a: jax.lax.linalg.svd(a, full_matrices=False), [(6, 4)], 14 * 6 * 4**2 + 8 * 4**3),
    ],
)
def test_factorisations_count_as_in_textbooks(function, shapes, expected):
    """Golub and Van Loan, Matrix Computations (4th ed. 2013): leading terms of real matrices."""
    assert counted(function, *shapes) == pytest.approx(expected)


def test_host_code_tells_what_it_does():
    stack = models(2)
    variables, cost = merged(nm.Slerp(0.3), stack)
    chex.assert_trees_all_close(variables, nm.Slerp(0.3)(stack), rtol=1e-6)
    assert cost.flops == 2 * 4 * 56 + 3 * 56  # the Gram matrices of two models, and their combination
    assert not cost.uncounted
    assert cost.peak_bytes > 2 * 56 * 8  # in float64
    assert not tracemalloc.is_tracing()  # it slows all that comes after

    class Silent(nm.Average):
        def init(self, stack, *, stats=None, key=None):
            return jax.tree.map(lambda x: jnp.asarray(np.asarray(x) * 0), stack.params)

    _, cost = merged(Silent(), stack)
    assert cost.uncounted
    assert "at least" in cost_table({"silent": cost})[2]


def test_statistics_and_their_cost():
    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"]

    networks = [{"a": jnp.asarray(normal(k, 3, 4)), "b": jnp.asarray(normal(k + 9, 4, 2))} for k in range(2)]
    networks = jax.tree.map(lambda x: x.astype(jnp.float32), networks)
    x = np.float32(normal(3, 10, 3))
    graph, batches = nm.trace(apply, networks[0], x[:2]), nm.in_order(x, x, 4)
    stats, cost = collected(apply, graph, networks, iter(batches), [NodeMoments])
    chex.assert_trees_all_close(stats, nm.collect(apply, graph, networks, batches, [NodeMoments]), rtol=1e-5)
    forward = 2 * 2 * 10 * (3 * 4 + 4 * 2)  # of both networks
    products = 3 * 2 * 10 * 4 * 4  # a covariance each, and one between them
    assert forward + products < cost.flops < 2 * (forward + products)
    assert cost.bytes == sum(x.nbytes for x in jax.tree.leaves(stats[NodeMoments]))
    assert cost.peak_bytes > cost.bytes
    assert cost.xla_flops == pytest.approx(cost.flops, rel=0.3)


def test_costs_of_statistics_take_what_collect_takes():
    """Merges for what they need, masks and a limit of memory."""

    def apply(v, x):
        return x @ v["a"]

    networks = [{"a": jnp.asarray(normal(k, 3, 4), jnp.float32)} for k in range(2)]
    x = np.float32(normal(3, 10, 3))
    graph, batches = nm.trace(apply, networks[0], x[:2]), [(x, np.zeros(10, int), np.arange(10) < 7)]
    stats, cost = collected(apply, graph, networks, batches, [nm.RegMean(), nm.InputGram(4), nm.Fisher()])
    expected = nm.collect(apply, graph, networks, batches, [nm.InputGram(4), nm.DiagonalFisher()])
    assert set(stats) == set(expected)
    for kind, value in expected.items():
        chex.assert_trees_all_close(jax.tree.leaves(stats[kind]), jax.tree.leaves(value), rtol=1e-6)
    assert cost.bytes == sum(x.nbytes for value in stats.values() for x in jax.tree.leaves(value))
    assert cost.flops >= 2 * 2 * 10 * 3 * 3
    with pytest.raises(ValueError, match="more than memory_limit=10 bytes"):
        collected(apply, graph, networks, batches, [nm.RegMean()], memory_limit=10)
    with pytest.raises(ValueError, match="collect takes a list of statistics"):
        collected(apply, graph, networks, batches, [nm.RegMean])


def test_a_table_of_costs():
    lines = cost_table({"a": Cost(999.6, 12, 0.5, 1_500_000), "b": Cost(1.2e10, 0, 1.0, 2)})
    assert lines[2:] == ["| a | 1 k | 12 B | 1.5 MB | 0.5 |", "| b | 12 G | 0 B | 2 B | 1 |"]


def test_host_solves_of_collected_statistics_are_counted():
    def apply(v, x):
        return x @ v["a"]

    networks = [{"a": jnp.asarray(normal(k, 5, 4), jnp.float32)} for k in range(2)]
    x = np.float32(normal(3, 40, 5))
    graph, stack = nm.trace(apply, networks[0], x[:2]), nm.stack_models(networks)
    rounds = nm.RegMean(), nm.RegMeanPlusPlus(), nm.MaTS("gram")
    stats = nm.collect(apply, graph, networks, nm.in_order(x, x, 20), rounds)
    solved, chained, matched = (merged(merge, stack, stats)[1] for merge in rounds)
    solve = 5**3 / 3 + 2 * 5 * (5 * 2 * 5)  # a factor, and forth and back for the Gram matrices of both
    weighing = 2 * 2 * 5 * 5 * 4
    assert solve + weighing < solved.flops < 1.5 * (solve + weighing)
    assert chained.flops > solved.flops + 2 * 2 * 40 * 5 * 5  # the products of what both read besides
    assert matched.flops > 10 * weighing  # iterations
    assert not (solved.uncounted or chained.uncounted or matched.uncounted)


def test_the_score_of_a_greedy_soup_counts_where_it_tells_what_it_does():
    def apply(v, x):
        return x @ v["a"]

    networks = [{"a": jnp.asarray(normal(k, 5, 4), jnp.float32)} for k in range(2)]
    x, y = np.float32(normal(3, 40, 5)), np.arange(40) % 4
    batches = nm.in_order(x, y, 20)
    score = lambda v: nm.evaluate(apply, v, batches).accuracy  # noqa: E731
    _, cost = merged(nm.GreedySoup(score), nm.stack_models(networks))
    once = 2 * 40 * 5 * 4  # the network; the loss besides takes less than twice as much
    assert 3 * once < cost.flops < 9 * once
    assert not cost.uncounted
    _, cost = merged(nm.GreedySoup(lambda v: -float(np.square(v["a"]).sum())), nm.stack_models(networks))
    assert cost.uncounted
    assert 0 < cost.flops < once


def test_what_is_done_with_singular_systems_is_noted():
    """Of one of two layers some inputs are never seen; the merge warns, and the report names method and tensor."""

    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"]

    networks = [jax.tree.map(jnp.float32, {"a": normal(k, 3, 4), "b": normal(k + 9, 4, 2)}) for k in range(2)]
    x = np.float32(normal(3, 40, 3)) * np.float32([1, 1, 0])
    graph, stack = nm.trace(apply, networks[0], x[:2]), nm.stack_models(networks)
    stats = nm.collect(apply, graph, networks, nm.in_order(x, x, 20), [nm.RegMean(), nm.ChainOfMerges()])
    for merge in (nm.RegMean(), nm.ChainOfMerges()):
        name = type(merge).__name__
        with pytest.warns(UserWarning, match=f"{name}: the data leave directions open at 1 of 2 sites"):
            _, cost = merged(merge, stack, stats)
        assert cost.notes == (f"{name}, a: the data leave directions open, along which weights are averaged",)
        assert cost_table({"ours": cost})[-2:] == ["", f"- ours: {cost.notes[0]}"]
    assert merged(nm.Average(), stack)[1].notes == ()
