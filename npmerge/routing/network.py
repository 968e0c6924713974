"""Several networks that are one outside some blocks, in each of which the experts of all are weighed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.checks import kind_of
from alignment.graph import PyTree, Signature, flatten, signature
from alignment.layer_groups.groups import Apply
from npmerge.arithmetic import summed, wide
from npmerge.routing.blocks import Block
from npmerge.routing.plan import Plan, plan_of
from npmerge.routing.routers import Weighing
from npmerge.routing.usage import RoutingUsage, usage_of


class Parts(NamedTuple):
    """The variables of a routed network by path: of what is computed once, of each expert, of the router."""

    trunk: dict[str, Array]
    experts: list[dict[str, Array]]
    router: dict[str, Array]


@dataclass(frozen=True)
class RoutedNetwork:
    """`routed(variables, inputs) -> outputs`: each block's output is sum_k w_k f(x; p_k) over the experts of its pool.

    The variables are `{"trunk": {path: array}, "experts": [{path: array}, ...], "router": {path: array}}`, with an entry of
    `experts` for each model. Steps of calls are inlined, so `jax.checkpoint` inside the network is lost; `nm.remat(routed)`
    stands around it.

    Attributes:
        apply: the network of one model.
        blocks: the pattern of the blocks.
        router: who weighs.
        models: how many experts of each block there are.
        like: the structure of a model's variables, with their shapes.
        router_only: whether trunk and experts are frozen.

    Example:
        >>> apply = lambda v, x: jnp.tanh(x @ v["a"]["w"]) @ v["b"]["w"]
        >>> models = [{name: {"w": k * jnp.eye(2)} for name in "ab"} for k in (1.0, 2.0)]
        >>> routed = nm.route(apply, models, "^[ab]", jnp.eye(2), nm.Router(layers=2))
        >>> gradient = jax.grad(lambda v: routed.apply(v, jnp.eye(2))[0, 0])(routed.variables)
        >>> {name: bool(jnp.any(x)) for name, x in gradient["router"].items()}, bool(jnp.any(gradient["experts"][1]["a/w"]))
        ({'a/kernel': True, 'b/kernel': True}, False)
        >>> {name: w.shape for name, w in routed.apply.weights(routed.variables, jnp.eye(2)).items()}  # 2 x 2 experts
        {'a': (2, 4), 'b': (2, 4)}
    """

    apply: Apply
    blocks: str
    router: Weighing
    models: int
    like: Signature
    router_only: bool = True

    def __call__(self, variables: PyTree, inputs: PyTree) -> PyTree:
        """What the network returns. Raises ValueError for variables that `route` has not made."""
        return self._run(variables, inputs)[0]

    def weights(self, variables: PyTree, inputs: PyTree) -> dict[str, Float[Array, "*places experts"]]:
        """The weights of the experts of each block, by its name.

        Of a `Router` per token they are (examples, positions, experts), per example (examples, experts), of
        `FeatureAveraging` (experts,). The experts of a pool are those of all models at its own depth, then those at the next.
        """
        return self._run(variables, inputs)[1]

    def usage(self, variables: PyTree, batches: Iterable[tuple]) -> RoutingUsage:
        """Mean weight and entropy by block over data.

        Args:
            variables: of the routed network.
            batches: `(inputs, targets)`, or `(inputs, targets, mask)` of what is no padding, examples or positions of them.
                Inputs go into the network as they are: padding by negative tokens is for `NextToken` only.

        Raises:
            ValueError: no batches, batches that do not end.
        """
        return usage_of(self, variables, batches)

    def frozen(self, path: str) -> bool:
        """Whether `fit` leaves a leaf of the variables as it is."""
        return self.router_only and not path.startswith("router/")

    def plan(self, inputs: PyTree, dtypes: Mapping[str, Any] | None = None) -> Plan:
        """How it is computed for inputs of these shapes, where leaves may have other dtypes than `like`."""
        structure, leaves = self.like
        if dtypes is not None:
            names = flatten(jax.tree.unflatten(structure, range(len(leaves))))
            leaves = tuple((leaves[k][0], dtypes[name]) for name, k in names.items())
        return plan_of(self.apply, (structure, leaves), signature(inputs), self.blocks, self.router.layers)

    def _run(self, variables: PyTree, inputs: PyTree) -> tuple[PyTree, dict[str, Array]]:
        trunk, experts, router = self._parts(variables)
        dtypes = {path: jnp.result_type(x) for path, x in {**experts[0], **trunk}.items()}
        plan = self.plan(inputs, dtypes)
        program, weights = plan.flow.program, dict[str, Array]()
        numbers = dict(zip(plan.flow.names, program.inputs, strict=False))
        env: dict[int, Any] = {**program.constants, **{numbers[path]: x for path, x in trunk.items()}}
        env.update(zip(plan.inputs, map(jnp.asarray, jax.tree.leaves(inputs)), strict=True))
        for unit in plan.units:
            if isinstance(unit, int):
                block = plan.blocks[unit]
                read = [env[v] for v in block.reads]
                w = weights[block.name] = self._weighed(router, block, read, weights)
                if w.shape[-1] != len(plan.pools[unit]) * self.models:
                    raise ValueError(
                        f"the router has weights for {w.shape[-1]} experts, the pool of the block {block.name!r} has "
                        f"{len(plan.pools[unit]) * self.models}"
                    )
                outs = _mixed(w, block, self._experts(plan, unit, experts, read))
                env.update(zip(block.made(program, block.makes), outs, strict=True))
            else:
                env.update(zip(unit.outs, unit.call(*(env[v] for v in unit.ins)), strict=True))
        return jax.tree.unflatten(plan.structure, [env[v] for v in program.outputs]), weights

    def _weighed(self, router: dict[str, Array], block: Block, read: Sequence[Array], earlier: dict[str, Array]) -> Array:
        if self.router.shared and earlier:
            return next(iter(earlier.values()))
        gate = None if block.gate is None else jnp.moveaxis(read[block.gate], block.axis, -1)
        try:
            return self.router(router, block.name, gate)
        except KeyError as error:
            raise ValueError(f"the variables have no leaf router/{error.args[0]} for the block {block.name!r}") from None

    def _experts(self, plan: Plan, i: int, experts: list[dict[str, Array]], read: Sequence[Array]) -> Iterable[list[Array]]:
        """What each expert of a pool makes of what the block reads."""
        numbers = dict(zip(plan.flow.names, plan.flow.program.inputs, strict=False))
        for j in plan.pools[i]:
            own = plan.blocks[j]
            for expert in experts:
                leaves = {numbers[path]: expert[path] for path in own.leaves}
                yield plan.parts[i, j].run({**leaves, **dict(zip(own.reads, read, strict=True))})

    def _parts(self, variables: PyTree) -> Parts:
        if not isinstance(variables, Mapping) or variables.keys() != {"trunk", "experts", "router"}:
            raise ValueError(
                "expected the variables that route made, {'trunk': ..., 'experts': [...], 'router': ...}: got "
                f"{kind_of(variables)}"
            )
        trunk, router = flatten(variables["trunk"]), flatten(variables["router"])
        held = variables["experts"]
        experts = [flatten(x) for x in (held.values() if isinstance(held, Mapping) else held)]
        if len(experts) != self.models:
            raise ValueError(f"expected the variables of {self.models} experts, got {len(experts)}")
        if self.router_only:
            trunk, experts = jax.lax.stop_gradient((trunk, experts))
        return Parts(trunk, experts, router)


def _mixed(weights: Float[Array, "*places experts"], block: Block, made: Iterable[list[Array]]) -> list[Array]:
    """sum_k w_k y_k of each value that a block makes, in float32 or wider, rounded once."""
    by_value = zip(*made, strict=True)
    return [_mean(weights, block, list(ys)) for ys in by_value]


def _mean(weights: Array, block: Block, ys: Sequence[Array]) -> Array:
    w = _over(weights, block, ys[0].shape)
    return summed([w[..., k].astype(wide(y).dtype) * wide(y) for k, y in enumerate(ys)]).astype(ys[0].dtype)


def _over(weights: Array, block: Block, shape: tuple[int, ...]) -> Array:
    """Weights (*places, experts) that broadcast against what a block makes, experts last.

    Raises:
        ValueError: where that has other places than what the block reads.
    """
    places, experts = weights.shape[:-1], weights.shape[-1]
    axis = block.axis % len(shape) if block.axis >= 0 and len(places) > 1 else len(shape)
    expected = (*shape[:axis], *shape[axis + 1 :])[: len(places)]
    if places != expected:
        raise ValueError(
            f"the block {block.name!r} has weights for places {places} and makes values of shape {shape}: take "
            'per="example", which has one weight for all places of an example'
        )
    ones = (1,) * (len(shape) - len(places) - (axis < len(shape)))
    spread = (*places[:axis], *(1,) * (axis < len(shape)), *places[axis:], *ones)
    return weights.reshape(*spread, experts)
