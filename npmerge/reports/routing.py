"""How a routed network uses its experts, as a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.checks import check_kinds
from npmerge.reports.charts import depth_ticks, legend, literal
from npmerge.reports.drawing import new_figure
from npmerge.routing.usage import RoutingUsage

STYLES = ("-", "--", ":", "-.")


def routing_figure(usage: RoutingUsage, names: Sequence[str] | None = None) -> Any:
    """By block, the mean weight of each expert, and how sharply they are weighed.

    Left a line for each model, in its colour; those of neighbouring layers are dashed and dotted, in the order of the pool.
    Right the mean entropy, with a dotted line where all experts of the pool have the same weight. Save it with `.savefig`.

    Args:
        usage: what `RoutedNetwork.usage` returns.
        names: of the models; None for "model 0" and so on.

    Raises:
        ValueError: something else, or another number of names than of models.

    Example:
        >>> apply = lambda v, x: x @ v["w"]
        >>> routed = nm.route(apply, [{"w": jnp.eye(2)}, {"w": -jnp.eye(2)}], "w", jnp.eye(2))
        >>> usage = routed.apply.usage(routed.variables, [(jnp.eye(2), None)])
        >>> left, right = nm.routing_figure(usage, names=["code", "prose"]).axes
        >>> [(line.get_label(), [float(y) for y in line.get_ydata()]) for line in left.lines]
        [('code', [0.5]), ('prose', [0.5])]
    """
    check_kinds("routing_figure takes (usage, names)", (usage, RoutingUsage), (names, Sequence | None))
    _, layers, models = usage.weights.shape
    names = [f"model {k}" for k in range(models)] if names is None else list(names)
    if len(names) != models:
        raise ValueError(f"routing_figure takes a name for each of {models} models, got {len(names)}")
    drawing, (left, right) = new_figure(2)
    for layer in range(layers):
        for k, name in enumerate(names):
            label = literal(name if not layer else f"{name}, neighbour {layer}")
            style = STYLES[layer % len(STYLES)]
            left.plot(usage.weights[:, layer, k], style, marker=".", color=f"C{k}", label=label)
    right.plot(usage.entropy, "-", marker=".", color="black", label="of the weights")
    right.axhline(np.log(layers * models), color="grey", linestyle=":", label="of equal weights")
    for axes, label in ((left, "mean weight"), (right, "mean entropy (nats)")):
        depth_ticks(axes, usage.blocks)
        axes.set(ylabel=label, xlabel="block", ylim=(0, None))
        legend(axes)
    return drawing
