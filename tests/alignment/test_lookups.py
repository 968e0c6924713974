"""Lookups: rows of a weight that are read by numbers of the data, however that is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import alignment

IDS = jnp.asarray([[0, 5, 2], [5, 5, 1]], jnp.int32)
TABLE = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32), np.float32)
BEYOND = IDS + 2

CASES = {
    # name: (function of table and numbers, the table, the numbers, their rows)
    "index": (lambda t, x: t[x], TABLE, IDS, IDS),
    "take": (lambda t, x: jnp.take(t, x, axis=0), TABLE, IDS, IDS),
    "clipped": (lambda t, x: jnp.take(t, x, axis=0, mode="clip"), TABLE, BEYOND, np.minimum(BEYOND, 5)),
    "from behind": (lambda t, x: t[x - 6], TABLE, IDS, IDS),
    "another axis": (lambda t, x: jnp.take(t, x, axis=1).transpose(1, 2, 0), TABLE.T, IDS, IDS),
    "cast": (lambda t, x: t.astype(jnp.bfloat16)[x], TABLE, IDS, IDS),
    "a slice": (lambda t, x: t[:, 1:3][x], TABLE, IDS, IDS),
    "one by one": (lambda t, x: jax.vmap(jax.vmap(lambda one: t[one]))(x), TABLE, IDS, IDS),
    "in a loop": (lambda t, x: jax.lax.map(lambda each: t[each], x), TABLE, IDS, IDS),
    "one for each step": (lambda t, x: jax.lax.map(lambda each: each[x], t), TABLE.reshape(2, 3, 4), IDS % 3, [IDS % 3] * 2),
    "matrices": (lambda t, x: t[x], TABLE.reshape(6, 2, 2), IDS, IDS),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_reads_are_one_hot_inputs_times_the_matrix(case):
    read, table, x, rows = CASES[case]
    graph = alignment.trace(lambda v, x: read(v["t"], x), {"t": table}, x)
    (lookup,) = graph.lookups
    assert (lookup.name, lookup.path) == ("t", "t")
    assert not graph.sites
    found = alignment.capture(lambda v, x: read(v["t"], x), graph, {"t": table}, x, nodes=(), lookups="t").lookups["t"]
    copies = sum(lookup.stacked)
    np.testing.assert_array_equal(found, np.reshape(rows, (*found.shape[:copies], -1)))
    matrix = np.asarray(lookup.matrix(table))
    made = np.asarray(read(table, x))
    each = [m[r] for m, r in zip(matrix, found, strict=True)] if copies else matrix[found]
    np.testing.assert_array_equal(np.ravel(each), made.ravel())
    np.testing.assert_array_equal(lookup.replaced(jnp.zeros_like(table), lookup.matrix(table)) != 0, lookup_mask(lookup, table))


def lookup_mask(lookup, table) -> np.ndarray:
    mask = np.zeros(table.size, bool)
    mask[np.ravel(lookup.places(table.shape))] = True
    return mask.reshape(table.shape)


def test_what_is_no_lookup_of_rows():
    def apply(v, x):
        return v["places"][None, jnp.arange(3)] + v["pairs"][x, x][..., None] + v["held"][x]

    v = {"places": TABLE, "pairs": jnp.ones((6, 6)), "held": TABLE}
    graph = alignment.trace(apply, v, IDS)
    assert [lookup.name for lookup in graph.lookups] == ["held"]
    with pytest.raises(ValueError, match="no lookup named 'places'; the graph has held"):
        alignment.capture(apply, graph, v, IDS, lookups="places")


def test_a_tied_embedding_is_a_site_and_a_lookup():
    graph = alignment.trace(lambda v, x: v["t"][x] @ v["t"].T, {"t": TABLE}, IDS)
    assert [use.name for use in (*graph.sites, *graph.lookups)] == ["t", "t#2"]


def test_an_embedding_of_flax():
    definition, state = nnx.split(nnx.Embed(6, 4, rngs=nnx.Rngs(0)))
    graph = alignment.trace(lambda v, x: nnx.merge(definition, v)(x), state, IDS)
    assert [lookup.axis for lookup in graph.lookups] == [0]
