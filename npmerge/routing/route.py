"""From several networks to one whose blocks are routed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from alignment.checks import check_kinds
from alignment.graph import PyTree, flatten, signature
from alignment.layer_groups.groups import Apply
from npmerge.arithmetic import summed, wide
from npmerge.routing.network import RoutedNetwork
from npmerge.routing.routers import FeatureAveraging, Router
from npmerge.stack import check_models

DEFAULT = Router()


class Routed(NamedTuple):
    """What `route` returns.

    Attributes:
        apply: the routed network in evaluation mode.
        variables: of all of it: `{"trunk": ..., "experts": [...], "router": ...}`, flat dicts by path.

    Example:
        >>> models = [{"w": jnp.eye(2), "b": jnp.ones(2)}, {"w": -jnp.eye(2), "b": jnp.ones(2)}]
        >>> apply, variables = nm.route(lambda v, x: x @ v["w"] + v["b"][None], models, "w", jnp.eye(2))
        >>> print(variables["trunk"], nm.parameters(variables))  # 2 of the trunk, 2 x 4 of the experts, 2 x 2 of the router
        {'b': Array([1., 1.], dtype=float32)} 14
    """

    apply: RoutedNetwork
    variables: dict[str, Any]


def route(
    apply: Apply,
    models: Sequence[PyTree],
    blocks: str,
    inputs: PyTree,
    router: Router | FeatureAveraging = DEFAULT,
    *,
    trunk: PyTree | None = None,
    router_only: bool = True,
) -> Routed:
    r"""Merge networks in function space: one trunk, in whose blocks the experts of all models are weighed.

    A block is the part of the network from the first to the last use of its leaves, everything in between included: for
    `blocks/(\d+)/feed_forward/` of a transformer the two layers and the nonlinearity, so that what is mixed is the branch,
    before it is added to the stream, and what a router reads is the normalised stream (Pari et al. 2024, "Collective Model
    Intelligence Requires Compatible Specialization", arXiv 2411.02207, sections 3 and 5). Every block reads what the mixed
    ones before it have made. All other leaves are the trunk.

    Args:
        apply: the network in evaluation mode, `apply(variables, inputs) -> outputs`.
        models: the variables of each, of one structure. Align them first if they were trained from different seeds.
        blocks: a regular expression that is searched in the paths of the variables, as that of `PerLayer`: leaves with the same
            first group (or whole match) are of one block.
        inputs: a batch, of arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.
        router: who weighs the experts of a block: `Router()` is full-layer routing, `Router(shared=True)` a single router,
            `Router(layers=L)` multi-layer routing; `FeatureAveraging(weights)` has the same weights everywhere.
        trunk: a network whose leaves outside the blocks are taken; None for the mean of the models, exact where they agree.
        router_only: whether trunk and experts are frozen: they have no gradient, and `fit` leaves them as they are.

    Raises:
        ValueError: models that differ in structure or are not finite; a pattern that matches nothing (the nearest parts of the
            network are named), or that is inside a scan; blocks that need each other or share a step; layers of a pool that
            are more than the blocks, or of other shapes; weights that are not as many as the experts of a pool; blocks that
            make other places than they read with a router per token.

    Example:
        >>> apply = lambda v, x: x + jnp.maximum(x @ v["mlp"]["up"], 0) @ v["mlp"]["down"]
        >>> models = [{"mlp": {"up": k * jnp.eye(2), "down": jnp.eye(2)}} for k in (2.0, -2.0)]
        >>> x = jnp.array([[1.0, 0.0], [0.0, -1.0]])
        >>> routed = nm.route(apply, models, "mlp", x)  # both layers are one block, x is added behind it
        >>> print(routed.apply(routed.variables, x))
        [[2. 0.]
         [0. 0.]]
        >>> batches = [(x, np.array([0, 0]))]
        >>> loss = nm.fine_tuning(routed.apply, nm.CrossEntropy())
        >>> found = nm.fit(routed.variables, loss, None, batches, optax.adam(0.5), steps=20).theta
        >>> [f"{nm.evaluate(routed.apply, v, batches).loss:.2f}" for v in (routed.variables, found)]
        ['0.41', '0.18']
    """
    check_kinds("route takes (apply, models, blocks, inputs, router)", *_kinds(apply, models, blocks, router))
    check_models(models)
    like = signature(models[0])
    network = RoutedNetwork(apply, blocks, router, len(models), like, router_only)
    plan = network.plan(inputs)
    gates = {block.name: plan.features(block) for block in plan.blocks}
    leaves = [flatten(model) for model in models]
    variables = {
        "trunk": _trunk(leaves, plan.trunk, trunk, like),
        "experts": [{path: jnp.asarray(x[path]) for path in plan.experts} for x in leaves],
        "router": router.init(gates, len(models) * router.layers),
    }
    jax.eval_shape(network, variables, inputs)  # tells of weights that do not fit what blocks make
    return Routed(network, variables)


def _kinds(apply: Any, models: Any, blocks: Any, router: Any) -> list[tuple[Any, Any]]:
    return [(apply, Callable), (models, Sequence), (blocks, str), (router, Router | FeatureAveraging)]


def _trunk(models: list[dict[str, Array]], paths: Sequence[str], given: PyTree | None, like: Any) -> dict[str, Array]:
    """The leaves outside the blocks."""
    if given is not None:
        check_models([jax.tree.unflatten(like[0], list(models[0].values())), given])
        models = [flatten(given)]
    return {path: _mean([jnp.asarray(model[path]) for model in models]) for path in paths}


def _mean(leaves: list[Array]) -> Array:
    """The first, and the mean of how far all are from it: exact where they are equal."""
    first = wide(leaves[0])
    return (first + summed([wide(x) - first for x in leaves]) / len(leaves)).astype(leaves[0].dtype)
