"""What every alignment keeps, over ALIGNMENTS. A new one needs one entry in INSTANCES."""

import dataclasses
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment import (
    ALIGNMENTS,
    CCA,
    ActivationMatching,
    CycleConsistent,
    GroupMatching,
    NodeMoments,
    OptimalTransport,
    PartialMatching,
    Procrustes,
    Scale,
    SoftPermutation,
    StraightThrough,
    WeightMatching,
    ZipIt,
    align,
    trace,
)
from alignment.base import Alignment
from npmerge import collect

INSTANCES: dict[type[Alignment], Alignment] = {
    WeightMatching: WeightMatching(),
    ActivationMatching: ActivationMatching(),
    Procrustes: Procrustes(approximate=True),
    CCA: CCA(0.1, approximate=True),
    Scale: Scale(),
    GroupMatching: GroupMatching(),
    SoftPermutation: SoftPermutation(),
    StraightThrough: StraightThrough(),
    CycleConsistent: CycleConsistent(),
    ZipIt: ZipIt(),
    PartialMatching: PartialMatching(ratio=0.0),  # other ratios change widths: tests/alignment/methods/test_partial.py
    OptimalTransport: OptimalTransport(),
}
TOGETHER = (
    CycleConsistent,
    WeightMatching,
    Scale,
    StraightThrough,
    ZipIt,
    PartialMatching,
)  # all models decide where each goes, or do at the start
alignments = pytest.mark.parametrize("kind", ALIGNMENTS, ids=lambda a: a.__name__)
WIDTHS = (5, 6, 4, 3)


def apply(variables: Any, x: jax.Array) -> jax.Array:
    for k, layer in enumerate(variables["layers"]):
        y = jnp.tensordot(x, layer["kernel"], 1)
        y = y + jnp.broadcast_to(layer["bias"], y.shape)
        x = jax.nn.relu(y) if k + 1 < len(variables["layers"]) else y
    return x


def model(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    layers = []
    for n, m in itertools.pairwise(WIDTHS):
        kernel, bias = rng.standard_normal((n, m)), rng.uniform(0.2, 1, m)
        layers.append({"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)})
    return {"layers": layers}


def permuted(variables: Any, seed: int) -> Any:
    """The same function with every hidden layer in another order."""
    rng = np.random.default_rng(seed)
    before, layers = np.arange(WIDTHS[0]), []
    for k, layer in enumerate(variables["layers"]):
        m = layer["bias"].shape[0]
        after = rng.permutation(m) if k + 1 < len(variables["layers"]) else np.arange(m)
        layers.append({"kernel": layer["kernel"][before][:, after], "bias": layer["bias"][after]})
        before = after
    return {"layers": layers}


@pytest.fixture(scope="module")
def graph():
    return trace(apply, model(0), jnp.zeros((2, WIDTHS[0])))


BATCH = (jnp.asarray(np.random.default_rng(1).standard_normal((256, WIDTHS[0])).astype(np.float32), np.float32), None)


def stats_for(alignment: Alignment, graph: Any, models: list) -> Any:
    return collect(apply, graph, models, [BATCH], alignment.needs) if alignment.needs else None


def instance(kind: type[Alignment]) -> Alignment:
    if kind not in INSTANCES:
        pytest.fail(f"{kind.__name__} is in ALIGNMENTS but not in INSTANCES of {__file__}: say how to instantiate it")
    return INSTANCES[kind]


def test_every_alignment_is_in_the_table():
    missing = [a.__name__ for a in ALIGNMENTS if a not in INSTANCES]
    assert not missing, f"add {missing} to INSTANCES of {__file__}"
    assert set(INSTANCES) == set(ALIGNMENTS)
    assert all(type(a) is kind for kind, a in INSTANCES.items())


@alignments
def test_values_compare_by_their_fields(kind):
    alignment = instance(kind)
    again = dataclasses.replace(alignment)
    assert again is not alignment
    assert (again, hash(again)) == (alignment, hash(alignment))


@alignments
def test_identical_models_stay_identical(kind, graph):
    models = [model(0)] * 3
    aligned = align(instance(kind), graph, models, stats=stats_for(instance(kind), graph, models))
    assert len(aligned) == 3
    for other in aligned:
        chex.assert_trees_all_close(other, models[0], rtol=1e-4, atol=1e-4)
    average = jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(x), *aligned)
    chex.assert_trees_all_close(average, models[0], rtol=1e-4, atol=1e-4)


@alignments
def test_the_reference_is_unchanged_and_the_others_keep_structure(kind, graph):
    models = [model(k) for k in range(3)]
    before = jax.tree.map(np.array, models)
    aligned = align(instance(kind), graph, models, stats=stats_for(instance(kind), graph, models))
    if not kind.resizes:  # then it is mapped like the others
        chex.assert_trees_all_equal(aligned[0], models[0])
    chex.assert_trees_all_equal(jax.tree.map(np.array, models), before)
    for other in aligned:
        chex.assert_trees_all_equal_shapes_and_dtypes(other, models[0])
        chex.assert_tree_all_finite(other)
    assert all(bool(jnp.any(aligned[k]["layers"][0]["kernel"] != models[k]["layers"][0]["kernel"])) for k in (1, 2))


@alignments
def test_permuted_copies_come_back(kind, graph):
    models = [model(0), permuted(model(0), 1), permuted(model(0), 2)]
    assert bool(jnp.any(models[1]["layers"][1]["kernel"] != models[0]["layers"][1]["kernel"]))
    aligned = align(instance(kind), graph, models, stats=stats_for(instance(kind), graph, models))
    average = jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(x), *aligned)
    for other in [average] if kind.resizes else aligned[1:]:  # of maps of several widths only the average counts
        chex.assert_trees_all_close(other, models[0], rtol=1e-3, atol=1e-3)


def apply_heads(variables: Any, x: jax.Array) -> jax.Array:
    """Three heads of four units: the heads may be exchanged, and the units inside each."""
    h = jnp.einsum("bi,ihd->bhd", x, variables["up"])
    h = jax.nn.relu(h + jnp.broadcast_to(variables["bias"], h.shape))
    return jnp.einsum("bhd,hdo->bo", h, variables["down"])


@alignments
def test_exchanged_heads_with_exchanged_units_come_back(kind):
    rng = np.random.default_rng(0)
    shapes = {"up": (5, 3, 4), "bias": (3, 4), "down": (3, 4, 2)}
    first = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    heads, units = np.array([2, 0, 1])[:, None], np.array([[1, 2, 3, 0], [3, 2, 1, 0], [0, 2, 1, 3]])
    other = {"up": first["up"][:, heads, units], "bias": first["bias"][heads, units], "down": first["down"][heads, units]}
    graph = trace(apply_heads, first, jnp.zeros((2, 5)))
    assert [node.copies for node in graph.nodes.values() if node.index] == [(3,)]
    needs = instance(kind).needs
    stats = collect(apply_heads, graph, [first, other], [BATCH], needs) if needs else None
    aligned = align(instance(kind), graph, [first, other], stats=stats)
    chex.assert_trees_all_close(aligned[1], first, rtol=1e-3, atol=1e-3)


@alignments
@pytest.mark.parametrize("seed", [None, 3], ids=["without a key", "for a key"])
def test_the_outcome_is_deterministic(kind, seed, graph):
    models = [model(0), model(1)]
    stats = stats_for(instance(kind), graph, models)
    keys = [None if seed is None else jax.random.key(seed) for _ in range(2)]
    first, second = (align(dataclasses.replace(instance(kind)), graph, models, stats=stats, key=key) for key in keys)
    chex.assert_trees_all_equal(first, second)


@alignments
def test_each_model_is_aligned_independently_of_the_others(kind, graph):
    if kind in TOGETHER:
        pytest.skip("aligns all models together")
    models = [model(k) for k in range(3)]
    alignment = instance(kind)
    both = align(alignment, graph, models, stats=stats_for(alignment, graph, models))
    alone = align(alignment, graph, [models[0], models[2]], stats=stats_for(alignment, graph, [models[0], models[2]]))
    chex.assert_trees_all_close(both[2], alone[1], rtol=1e-4, atol=1e-4)


@alignments
def test_one_model_comes_back_as_it_is(kind, graph):
    (alone,) = align(instance(kind), graph, [model(0)])
    chex.assert_trees_all_equal(alone, model(0))


@alignments
def test_no_models_are_an_error(kind, graph):
    with pytest.raises(ValueError, match="at least one model, got an empty list"):
        align(instance(kind), graph, [])


@alignments
def test_missing_statistics_are_named(kind, graph):
    alignment = instance(kind)
    if not alignment.needs:
        pytest.skip("needs no statistics")
    for stats in (None, {}):
        with pytest.raises(
            ValueError, match=rf"{kind.__name__} needs activations: pass stats=npmerge.collect.*{alignment.needs[0].__name__}"
        ):
            align(alignment, graph, [model(0), model(1)], stats=stats)
    with pytest.raises(ValueError, match=rf"{kind.__name__} got 3 models, but the statistics are of 2"):
        align(alignment, graph, [model(0)] * 3, stats=stats_for(alignment, graph, [model(0)] * 2))


@alignments
def test_statistics_of_other_networks_are_named(kind, graph):
    alignment, models = instance(kind), [model(0), model(1)]
    if NodeMoments not in alignment.needs:
        pytest.skip("needs no moments of nodes")
    moments = dict(stats_for(alignment, graph, models)[NodeMoments])
    wide = moments | {"layers/0": jax.tree.map(lambda x: jnp.zeros([9 if n == 6 else n for n in x.shape]), moments["layers/0"])}
    for wrong, message in (
        ({}, "only one of them has the node 'layers/0'"),
        (moments | {"other": moments["layers/0"]}, "only one of them has the node 'other'"),
        (wide, r"'layers/0' has \(9,\) units, the graph \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            align(alignment, graph, models, stats={NodeMoments: wrong})


@alignments
def test_broken_models_are_named(kind, graph):
    bad = model(1)
    bad["layers"][1]["bias"] = bad["layers"][1]["bias"].at[2].set(jnp.nan)
    with pytest.raises(ValueError, match="model 1 has 1 non-finite values of 4 in 'layers/1/bias'"):
        align(instance(kind), graph, [model(0), bad])
    smaller = model(1)
    smaller["layers"][0]["bias"] = smaller["layers"][0]["bias"][:-1]
    with pytest.raises(ValueError, match=r"'layers/0/bias'.*got \(5,\), traced with \(6,\)"):
        align(instance(kind), graph, [model(0), smaller])


@alignments
def test_a_number_of_python_is_a_weight(kind):
    """What `trace` accepts."""

    def scaled(variables: Any, x: jax.Array) -> jax.Array:
        return variables["temperature"] * apply(variables, x)

    models = [{**model(0), "temperature": 2.0}, {**permuted(model(0), 1), "temperature": 2.0}]
    graph = trace(scaled, models[0], jnp.zeros((2, WIDTHS[0])))
    needs = instance(kind).needs
    stats = collect(scaled, graph, models, [BATCH], needs) if needs else None
    aligned = align(instance(kind), graph, models, stats=stats)[1]
    chex.assert_trees_all_close(aligned["layers"], model(0)["layers"], rtol=1e-3, atol=1e-3)
    assert float(aligned["temperature"]) == 2
