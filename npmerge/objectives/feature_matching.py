"""Layer by layer: the features of the merged network as those of the models that it is merged from."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignment.activations.masked import masked_features
from alignment.activations.taps import capture
from alignment.checks import check_flags, check_kinds, unknown
from alignment.graph import Graph, PyTree
from npmerge.arithmetic import mean
from npmerge.linear_layers import layers_of
from npmerge.objectives.base import Apply, Check, Objective
from npmerge.objectives.of_user import outputs_of
from npmerge.objectives.teachers import Teacher, check_teacher, teachers
from npmerge.stack import Stack
from npmerge.statistics.one_by_one import alone, one_by_one, samples_of


class Seen(NamedTuple):
    """Features, and which of the samples count; None for all."""

    values: Float[Array, "*copies samples units"]
    counts: Bool[Array, " samples"] | None


@dataclass(frozen=True)
class FeatureMatching(Objective):
    """Mean over the layers of ||h - t||^2 / ||t||^2, h the features of the merged network, t its teacher's; needs no labels.

    The models must be aligned, so that the same unit is the same feature in all of them (`align` first; not the loss of an
    `Aligned` merge). `sequential` compares the features of every node of the graph, each network on what its own earlier
    layers make of the data, so errors add up over the layers and are undone by later ones (hints of Romero et al. 2015,
    "FitNets", of all layers). Without, layers are teacher-forced: every linear site, with its bias, gets the inputs that it
    has in the teacher, and its outputs are compared with the teacher's, as in the layerwise regressions of RegMean (Jin et al.
    2023) and PLeaS (Nasery et al. 2024). Then layers learn apart, what is no linear site (norms, embeddings) is not seen, and
    of convolutions all patches are in memory.

    The sums are over all samples and units of a layer, so layers weigh alike and the value has no unit; it is a ratio of means
    over the batch, not a mean over examples. What the network returns is no node: add `Distillation` for it.

    Attributes:
        graph: that of the network, `trace(apply, variables, inputs)`.
        teacher: "mean" for the mean of what all models make, the number of a model, or "own" inside `Joint`: on the data of
            each task the model of that task.
        sequential: whether inputs of a layer are what the merged network makes, else those of the teacher.
        names: the nodes (sequential) or sites to compare, all that can be by default. Of what is not asked for nothing is kept.

    Raises:
        ValueError: no graph, another teacher, names that it does not have (the nearest is named), nothing to compare.

    Example:
        >>> apply, x = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"], jnp.eye(2)
        >>> model = {"w": jnp.eye(2), "u": jnp.eye(2)}
        >>> objective = nm.FeatureMatching(nm.trace(apply, model, x))
        >>> twice, stack = {**model, "w": 2 * jnp.eye(2)}, nm.stack_models([model, model])
        >>> print(objective(apply, model, stack, (x, None)), objective(apply, twice, stack, (x, None)))
        0.0 1.0
    """

    graph: Graph
    teacher: Teacher = "mean"
    sequential: bool = True
    names: tuple[str, ...] | None = None

    masks = True

    def __post_init__(self) -> None:
        check_kinds("FeatureMatching takes (graph)", (self.graph, Graph))
        check_teacher("FeatureMatching", self.teacher)
        check_flags(self)
        kind, known = ("node", list(self.graph.taps)) if self.sequential else ("site", [s.name for s in self.graph.sites])
        names = known if self.names is None else [self.names] if isinstance(self.names, str) else self.names
        if wrong := [name for name in names if name not in known]:
            raise ValueError(unknown(kind, wrong[0], known))
        if not names:
            raise ValueError(f"FeatureMatching has nothing to compare: the graph has no {kind} that was asked for")
        object.__setattr__(self, "names", tuple(names))

    def __call__(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Float[Array, ""]:
        """The mean over the layers. Raises ValueError without a stack, or where the graph is not that of the network."""
        models = teachers("FeatureMatching", self.teacher, stack)
        compare = self._nodes if self.sequential else self._sites
        errors = [_relative(*pair) for pair in compare(apply, params, models, batch).values()]
        return mean(errors)

    def of_task(self, task: int) -> "FeatureMatching":
        """A task's own teacher, if each has its own."""
        return dataclasses.replace(self, teacher=task) if self.teacher == "own" else self

    def checker(self, apply: Apply, params: PyTree, stack: Stack | None, batch: tuple) -> Check:
        """The graph must be that of the network, the teachers must be there."""
        self.check(batch, None)
        self.graph.check(params)
        outputs_of(apply, params, batch[0])
        jax.eval_shape(functools.partial(self, apply), params, stack, batch)
        return functools.partial(self.check, outputs=None)

    def _nodes(self, apply: Apply, params: PyTree, models: list[PyTree], batch: tuple) -> dict[str, tuple[Seen, Array]]:
        """By name the features of the merged network, and the teacher's."""

        def features(variables: PyTree) -> dict[str, Seen]:
            if len(batch) == 3:
                every = masked_features(apply, self.graph, variables, batch[0], jnp.asarray(batch[2]))
                return {name: Seen(*every[name]) for name in self.names or ()}
            found = capture(apply, self.graph, variables, batch[0], nodes=self.names).nodes
            return {name: Seen(x, None) for name, x in found.items()}

        theirs = [features(model) for model in models]
        return {name: (x, _mean([t[name].values for t in theirs])) for name, x in features(params).items()}

    def _sites(self, apply: Apply, params: PyTree, models: list[PyTree], batch: tuple) -> dict[str, tuple[Seen, Array]]:
        """By name what the merged site makes of the teacher's inputs, and what the teacher makes of them."""
        layers = layers_of(apply, self.graph, params, batch[0])
        read = [_inputs(apply, self.graph, self.names or (), model, batch) for model in models]
        found = {}
        for name in self.names or ():
            inputs = [seen[name].values for seen in read]
            outputs = [layers.layer(name, model).outputs(x) for model, x in zip(models, inputs, strict=True)]
            found[name] = Seen(layers.layer(name, params).outputs(_mean(inputs)), read[0][name].counts), _mean(outputs)
        return found


def _inputs(apply: Apply, graph: Graph, names: tuple[str, ...], variables: PyTree, batch: tuple) -> dict[str, Seen]:
    """What sites read in a network."""
    if len(batch) < 3:
        found = capture(apply, graph, variables, batch[0], nodes=(), sites=names).sites
        return {name: Seen(x.inputs, None) for name, x in found.items()}
    inputs, mask = jax.tree.map(jnp.asarray, batch[0]), jnp.asarray(batch[2])
    small = one_by_one(apply, graph, variables, inputs).graph
    sites = {site.name: site for site in small.sites}
    found = jax.vmap(lambda one: capture(apply, small, variables, *alone(one), nodes=(), sites=names).sites)(inputs)
    seen = {}
    for name, (x, _) in found.items():
        joined = jnp.moveaxis(x, 0, -3).reshape(*x.shape[1:-2], -1, x.shape[-1])
        seen[name] = Seen(joined, samples_of(sites[name], mask, x.shape[-2]).ravel())
    return seen


def _mean(features: list[Array]) -> Float[Array, "*copies samples units"]:
    """In float32, as something to learn from: no gradient goes through it."""
    return jax.lax.stop_gradient(mean([x.astype(jnp.float32) for x in features]))


def _relative(ours: Seen, theirs: Float[Array, "*copies samples units"]) -> Float[Array, ""]:
    """The squared distance as a share of the squares of the teacher; where those are zero, the mean square itself."""

    def total(x: Array) -> Any:
        squares = jnp.square(x)
        if ours.counts is None:
            return squares.mean()
        counts = jnp.broadcast_to(ours.counts[:, None], x.shape)
        return jnp.where(counts, squares, 0).sum() / jnp.maximum(counts.sum(dtype=jnp.float32), 1)

    scale = total(theirs)
    return total(ours.values.astype(jnp.float32) - theirs) / jnp.where(scale > 0, scale, 1)
