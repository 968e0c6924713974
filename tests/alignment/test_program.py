"""The order in which a network uses its variables."""

import jax
import jax.numpy as jnp

from alignment.program import order_of_use

V = {"a": jnp.ones((3, 4)), "b": {"in": jnp.ones((2, 3)), "scale": jnp.ones(3)}, "unused": jnp.ones(2)}


def test_it_is_that_of_the_network_and_not_of_the_names():
    @jax.jit
    def layer(w, x):
        return jax.nn.relu(x @ w)

    def apply(v, x):
        half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), v)  # casts in the order of the names say nothing
        return layer(half["a"], layer(half["b"]["in"], x.astype(jnp.bfloat16)) * half["b"]["scale"][None])

    assert order_of_use(apply, V, jnp.ones((5, 2))) == ["b/in", "b/scale", "a", "unused"]


def test_what_is_made_of_variables_alone_is_used_where_it_meets_the_inputs():
    def apply(v, x):
        product = v["b"]["in"] @ v["a"]
        return (x * v["unused"][None]) @ product

    shapes = jax.eval_shape(lambda: V)
    assert order_of_use(apply, shapes, jax.ShapeDtypeStruct((5, 2), "float32")) == ["unused", "b/in", "a", "b/scale"]


def test_layers_of_a_scan_stand_in_the_order_of_the_tree():
    def apply(v, x):
        return jax.lax.scan(lambda h, w: (h @ w["z"] + w["b"][None], None), x, v["layers"])[0] @ v["head"]

    variables = {"head": jnp.ones((2, 2)), "layers": {"b": jnp.ones((3, 2)), "z": jnp.ones((3, 2, 2))}}
    assert order_of_use(apply, variables, jnp.ones((5, 2))) == ["layers/b", "layers/z", "head"]
