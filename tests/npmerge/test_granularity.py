import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from npmerge import PerChannel, PerLayer, PerModel, PerParameter, PerTensor
from tests.npmerge.toys import normal

TREE = {
    "params": {"a": {"kernel": (2, 3), "bias": (3,)}, "b": {"kernel": (3, 3, 3, 4), "bias": (4,)}, "gain": ()},
    "batch_stats": {"a": {"mean": (3,)}},
}
PARAMS = jax.tree.map(lambda s: jnp.asarray(normal(0, 2, *s), jnp.float32), TREE, is_leaf=lambda x: isinstance(x, tuple))
A, B = "params/a", "params/b"
LEAVES = {f"{A}/kernel": (2, 3), f"{A}/bias": (3,), f"{B}/kernel": (3, 3, 3, 4), f"{B}/bias": (4,), "params/gain": ()}

EXPECTED = {
    PerModel(): {"all": ()},
    PerLayer(): {A: (), B: (), "params": ()},
    PerLayer(r"^params/(a|b)"): {"a": (), "b": (), "params/gain": ()},
    PerLayer(r"kernel|bias"): {"kernel": (), "bias": (), "params/gain": ()},
    PerTensor(): dict.fromkeys(LEAVES, ()),
    PerChannel(): {
        f"{A}/kernel": (1, 3),
        f"{A}/bias": (3,),
        f"{B}/kernel": (1, 1, 1, 4),
        f"{B}/bias": (4,),
        "params/gain": (),
    },
    PerParameter(): LEAVES,
}
granularities = pytest.mark.parametrize("granularity", EXPECTED, ids=str)


@granularities
def test_shapes(granularity):
    assert granularity.shapes(PARAMS) == EXPECTED[granularity]


@granularities
def test_expand_broadcasts_against_the_stack_and_reduce_undoes_it(granularity):
    shapes = granularity.shapes(PARAMS)
    compact = {name: jnp.asarray(normal(k, 2, *shape), jnp.float32) for k, (name, shape) in enumerate(shapes.items())}
    expanded = granularity.expand(compact, PARAMS)
    chex.assert_trees_all_equal_structs(expanded, PARAMS)
    for c, x in zip(jax.tree.leaves(expanded), jax.tree.leaves(PARAMS), strict=True):
        assert c.ndim == x.ndim
        assert np.broadcast_shapes(c.shape, x.shape) == x.shape
    chex.assert_trees_all_equal(granularity.reduce(expanded, PARAMS), jax.tree.map(np.asarray, compact))
    chex.assert_trees_all_equal(expanded["batch_stats"]["a"]["mean"], jnp.full((2, 1), 0.5))


@granularities
def test_every_parameter_gets_the_coefficient_of_its_group(granularity):
    shapes = granularity.shapes(PARAMS)
    compact = {name: jnp.full((2, *shape), k, jnp.float32) for k, (name, shape) in enumerate(shapes.items())}
    numbers = {name: k for k, name in enumerate(shapes)}
    expanded = granularity.expand(compact, PARAMS)["params"]
    for path in LEAVES:
        leaf = expanded
        for key in path.split("/")[1:]:
            leaf = leaf[key]
        assert set(np.unique(leaf)) == {numbers[granularity.group(path)]}, path


def full(value: float) -> dict:
    return jax.tree.map(lambda x: jnp.full(x.shape, value, jnp.float32), PARAMS)


def changed(value: float, path: str, index: tuple) -> dict:
    """Equal coefficients everywhere but for one entry of one leaf."""
    tree = full(value)
    leaf, keys = tree, path.split("/")
    for key in keys[:-1]:
        leaf = leaf[key]
    leaf[keys[-1]] = leaf[keys[-1]].at[index].add(0.01)
    return tree


@pytest.mark.parametrize(
    ("granularity", "path", "index"),
    [
        (PerModel(), f"{B}/bias", (1,)),
        (PerLayer(), f"{A}/bias", (1,)),
        (PerTensor(), f"{A}/kernel", (1, 0, 2)),
        (PerChannel(), f"{A}/kernel", (1, 0, 2)),
    ],
    ids=["model", "layer", "tensor", "channel"],
)
def test_coefficients_that_differ_inside_a_group_are_refused(granularity, path, index):
    granularity.reduce(full(0.3), PARAMS)
    told = rf"{type(granularity).__name__}.*cannot represent the start.*{path[:8]}.*in a recipe per_parameter, per_tensor"
    with pytest.raises(ValueError, match=told):
        granularity.reduce(changed(0.3, path, index), PARAMS)


@pytest.mark.parametrize(
    ("granularity", "path", "index"),
    [
        (PerLayer(), f"{A}/bias", slice(None)),
        (PerTensor(), f"{A}/kernel", (1,)),
        (PerChannel(), f"{A}/kernel", (1, slice(None), 2)),
        (PerParameter(), f"{A}/kernel", (1, 0, 2)),
    ],
    ids=["layer", "tensor", "channel", "parameter"],
)
def test_coefficients_may_differ_between_groups(granularity, path, index):
    coefficients = changed(0.3, path, index)
    if isinstance(granularity, PerLayer):
        coefficients["params"]["a"]["kernel"] += 0.01
    expanded = granularity.expand(granularity.reduce(coefficients, PARAMS), PARAMS)
    broadcast = jax.tree.map(lambda c, x: jnp.broadcast_to(c, x.shape), expanded["params"], PARAMS["params"])
    chex.assert_trees_all_close(broadcast, coefficients["params"], rtol=1e-6)


def test_running_statistics_never_stand_in_the_way():
    PerModel().reduce(changed(0.3, "batch_stats/a/mean", (0, 1)), PARAMS)


def test_layer_patterns():
    with pytest.raises(ValueError, match=r"PerLayer pattern 'a\(' is not a regular expression"):
        PerLayer("a(")
    with pytest.raises(ValueError, match=r"PerLayer pattern 'conv' matches none of 5 paths, such as"):
        PerLayer("conv").check(PARAMS)
    with pytest.raises(ValueError, match="matches none of 1 paths"):
        PerLayer().check({"w": jnp.ones((2, 3))})
    PerLayer().check(PARAMS)
    assert PerLayer().group("params/a/kernel") == "params/a"
    assert PerLayer(r"layer(\d+)?").group("params/layer") == ""  # a group that took no part
