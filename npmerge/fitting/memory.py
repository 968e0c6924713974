"""Bytes that a step of `fit` holds on a device, predicted from shapes before anything is allocated.

With N models of P parameters in s bytes each, merged on the simplex, a step holds throughout

    models       N P s, and P s more for a base
    theta        4 bytes for each latent; R P latents, with R = 1 row for two models and R = N for more; and as much for the
                 best on held-out data, or the latest good ones
    moments      what the optimizer's `init` makes: 2 theta for Adam, rows and columns only where they are factored
    batch        its arrays

and besides these at most the larger of what it needs to find the gradient and to use it:

    gradient     P c of the merged network in the c bytes of its dtype, the gradient of theta, and the activations of the
                 network alone, forward and backward; where coefficients are shared, theta is small and about half of the merged
                 network's gradient waits to be summed up (its largest tensor, if that is more)
    update       the gradient of theta, and what the optimizer makes besides what it writes in the place of theta and moments:
                 nothing of their size for SGD and Adam, theta once more where the update is scaled by a norm of its own

For two models and Adam that is N P s + P c + 5 P 4 and the activations, where fine-tuning one network takes 5 P 4 and the same
activations: merging costs the models and their merge, no more. A step that turns out bad is undone without a second copy of
moments, see `npmerge.fitting.updates`. XLA reports up to 15 % more or less. Coefficients per channel, of other constraints or
of task vectors are multiplied with all models first: N P 4 in the place of the gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignment.checks import check_count, kind_of
from alignment.graph import PyTree, flatten
from npmerge.cost import scaled
from npmerge.fitting.updates import Run, State, stepped
from npmerge.memory import bytes_of, peak_bytes
from npmerge.objectives import FineTuningLoss, WeightSpaceLoss
from npmerge.sharding import Layout


class FitMemory(NamedTuple):
    """Bytes of one step, by what holds them; see the formulas of this module.

    Attributes:
        models: the stack with its base; 0 where a network itself is learned.
        theta: what is learned, the best or latest good of it, and what stays fixed.
        moments: the optimizer's state.
        batch: inputs and targets.
        merged: the merged network.
        gradient: of theta, and what it is made of.
        activations: of the network, forward and backward.
        update: the gradient, and what the optimizer needs to use it.
    """

    models: int
    theta: int
    moments: int
    batch: int
    merged: int
    gradient: int
    activations: int
    update: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        held = self.models + self.theta + self.moments + self.batch
        return held + max(self.merged + self.gradient + self.activations, self.update)

    def on(self, devices: int, *, features: bool) -> "FitMemory":
        """What one of several devices holds: a part of the examples, and of all else if features are divided."""
        parts = {name: devices if features or name in ("batch", "activations") else 1 for name in self._fields}
        parts["merged"] = 1  # put together where it runs
        return FitMemory(**{name: -(-value // parts[name]) for name, value in self._asdict().items()})

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_text(value)}" for name, value in self._asdict().items())
        return f"{_text(self.total)}: {parts}"


def predicted_bytes(
    loss: WeightSpaceLoss | FineTuningLoss,
    optimizer: optax.GradientTransformation,
    theta: PyTree,
    stack: PyTree,
    batch: tuple,
    *,
    compute: Any = None,
    plan: bool = True,
) -> FitMemory:
    """What a step of `fit(theta, loss, stack, [batch], optimizer, ...)` will hold on one device that holds all of it.

    Args:
        loss: of `weight_space` or `fine_tuning`.
        optimizer: an Optax transformation.
        theta: arrays or `jax.ShapeDtypeStruct`, as everything that follows; nothing is allocated.
        stack: the models; None for `fine_tuning`.
        batch: one as they will come.
        compute: the dtype in which the network runs, if it is another than the models'.
        plan: whether XLA plans the activations, by compiling the network's gradient, which takes seconds; otherwise they are
            counted on the jaxpr as it is written.

    Raises:
        ValueError: another kind of loss.
    """
    if not isinstance(loss, WeightSpaceLoss | FineTuningLoss):
        raise ValueError(f"bytes are predicted for weight_space(...) or fine_tuning(...): got {kind_of(loss)}")
    theta, stack, batch = (jax.tree.map(_shape_of, tree) for tree in (theta, stack, batch))
    frozen = loss.frozen if isinstance(loss, FineTuningLoss) else lambda _: False
    learned = [x for path, x in flatten(theta).items() if jnp.issubdtype(x.dtype, jnp.floating) and not frozen(path)]
    moments = jax.eval_shape(optimizer.init, learned)
    is_merge = isinstance(loss, WeightSpaceLoss)
    network = jax.eval_shape(loss.merge.apply, theta, stack) if isinstance(loss, WeightSpaceLoss) else theta
    if compute is not None:
        network, batch = (jax.tree.map(lambda x: _cast(x, compute), tree) for tree in (network, batch))
    return FitMemory(
        models=bytes_of(stack),
        theta=bytes_of(theta) + bytes_of(learned),
        moments=bytes_of(moments),
        batch=bytes_of(batch),
        merged=bytes_of(network) if is_merge else 0,
        gradient=max(bytes_of(learned), _waiting(loss, network, stack)),
        activations=_activations(loss, network, stack, batch, plan),
        update=_stepping(optimizer, learned, plan),
    )


def check_step(run: Run, theta: PyTree, stack: PyTree, batch: tuple) -> None:
    """Raise ValueError, with what would help, where the devices say how much they hold and a step of `fit` needs more.

    Other losses than those of `predicted_bytes` are not predicted.
    """
    limit = device_limit(run.layout)
    if limit is None or not isinstance(run.loss, WeightSpaceLoss | FineTuningLoss):
        return
    predicted = predicted_bytes(run.loss, run.optimizer, theta, stack, batch, plan=False)
    check_fits(on_each(predicted, run.layout, run.accumulate), limit)


def on_each(found: FitMemory, layout: Layout, accumulate: int) -> FitMemory:
    """What each device of a layout holds, activations of one part of the batch at a time."""
    found = found.on(layout.parts * jax.process_count(), features=layout.features)
    return found._replace(activations=-(-found.activations // accumulate))


def device_limit(layout: Layout) -> int | None:
    """Bytes that a device may hold, where it says so: accelerators do."""
    device = next(iter(getattr(layout, "devices", ())), jax.devices()[0])
    statistics = device.memory_stats() if device.process_index == jax.process_index() else None
    return (statistics or {}).get("bytes_limit")


def check_fits(predicted: FitMemory, device_bytes: int) -> None:
    """Raise ValueError, with what would help, for a step that a device of so many bytes cannot hold."""
    check_count("device_bytes", device_bytes)
    if predicted.total <= device_bytes:
        return
    raise ValueError(
        f"a step needs {_text(predicted.total)} and the device has {_text(device_bytes)} ({predicted}). "
        f"{'; '.join(_remedies(predicted))}"
    )


def _remedies(found: FitMemory) -> list[str]:
    """Three ways out, each with the bytes that it acts on."""
    state = found.models + found.theta + found.moments + max(found.merged + found.gradient, found.update)
    return [
        f'1. shard the features (shard="features") over several devices, which divides {_text(state)} by their number',
        "2. models in bfloat16, moments in bfloat16 (optax.adam(..., mu_dtype=jnp.bfloat16)) or factored (optax.adafactor): "
        f"models are {_text(found.models)}, moments {_text(found.moments)}",
        "3. a coarser granularity (PerChannel, PerTensor) for fewer latents, or fewer examples in a batch or at once "
        "(accumulate=): theta is "
        f"{_text(found.theta)}, activations are {_text(found.activations)}",
    ]


def _activations(loss: Any, network: PyTree, stack: PyTree, batch: tuple, plan: bool) -> int:
    """What the network's gradient takes besides what goes in and comes out."""

    def value(params: PyTree, stack: PyTree, batch: tuple) -> jax.Array:
        return loss.objective(loss.apply, params, stack, batch)

    traced = jax.jit(jax.value_and_grad(value)).trace(network, stack, batch)
    analysis = traced.lower().compile().memory_analysis() if plan else None
    if analysis is not None:
        return int(analysis.temp_size_in_bytes)
    return max(0, peak_bytes(traced.jaxpr.jaxpr) - bytes_of((network, network, stack, batch)))


def _waiting(loss: WeightSpaceLoss | FineTuningLoss, network: PyTree, stack: PyTree) -> int:
    """What is held for the gradient of theta besides it."""
    if isinstance(loss, WeightSpaceLoss) and not getattr(loss.merge, "lean", True):
        return 4 * sum(x.size for x in jax.tree.leaves(stack.params))
    sizes = [bytes_of(x) for x in jax.tree.leaves(network)]
    return max(*sizes, sum(sizes) // 2, 0)


def _stepping(optimizer: optax.GradientTransformation, learned: PyTree, plan: bool) -> int:
    """The gradient, and what a step of the optimizer takes besides it and what it changes; theta once more without a plan."""

    def step(state: State, other: PyTree) -> State:
        gradient = jax.tree.map(lambda x: jnp.sort(x) if x.ndim else x, other)  # held once, as a gradient is
        return stepped(optimizer, state, gradient)

    if plan:
        state = jax.eval_shape(lambda x: State(x, optimizer.init(x), jnp.array(True), x), learned)
        analysis = jax.jit(step, donate_argnums=0).lower(state, learned).compile().memory_analysis()
        if analysis is not None:
            return int(analysis.temp_size_in_bytes)
    return 2 * bytes_of(learned)


def _cast(x: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))


def _text(count: float) -> str:
    return scaled(count, "B")
