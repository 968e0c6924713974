"""Parameter competition balancing."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array

from npmerge.arithmetic import over_models, ratio
from npmerge.task_vectors.composed import Composed
from npmerge.task_vectors.transforms import Model, Scope, Tensors, Transform, Trim, by_scope, current, where


@dataclass(frozen=True)
class Pcb(Composed):
    """base + scale * sum_m b_m * (params_m - base) / sum_m b_m elementwise (PCB-Merging, Du et al. 2024).

    With t_m the task vectors, norm(x) = x / |x| and softmax both over all parameters, a model's score of a parameter is
    softmax(N norm(t_m^2)) * sum_j softmax(norm(t_m t_j)); b_m is the score where it is among its model's largest, else zero.
    Needs a base.

    Where implementations disagree: the paper scores the whole model, some each tensor (`scope`); some divide by the sum over
    parameters too, which leaves next to nothing of the task vectors, and some clip them first; we follow the paper.

    Attributes:
        density: the fraction of entries that is kept of each model.
        scale: lambda.
        scope: what parameters compete with, "model" or "tensor".

    Example:
        >>> models = [{"w": jnp.array([4.0, 1.0, 0.0])}, {"w": jnp.array([1.0, 1.0, 3.0])}]
        >>> stack = nm.stack_models(models, base={"w": jnp.zeros(3)})
        >>> print(np.array(nm.Pcb(density=2 / 3)(stack)["w"]).round(2))  # 4 all but drives 1 out, 3 is alone
        [3.69 1.   3.  ]
    """

    density: float = 0.2
    scale: float = 1.0
    scope: Scope = "model"

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """One step, the competition."""
        return (Compete(self.density, self.scope),)


@dataclass(frozen=True)
class Compete(Transform):
    """Weigh entries by their score, the weights of a parameter summing to one, or to zero where no model keeps it."""

    density: float
    scope: Scope

    def __post_init__(self) -> None:
        Trim(self.density, self.scope)  # which checks them

    def __call__(self, coefficients: Tensors, vectors: Tensors, key: Array) -> Tensors:
        """Coefficients times weights."""
        scores = by_scope(_scores, current(coefficients, vectors), self.scope)
        kept = where(Trim(self.density, self.scope).masks(scores), scores)
        return {path: c * ratio(kept[path], over_models(kept[path])) for path, c in coefficients.items()}


def _scores(group: Tensors) -> Tensors:
    scaled = jax.lax.map(_scaled, group)  # the norms divide it out again, but squares of tiny entries would vanish
    return jax.lax.map(lambda model: _score(model, scaled), scaled)


def _score(model: Model, group: Tensors) -> Model:
    """Its competition within the model times that between the models, up to one factor for all."""
    within = _softmax(jax.tree.map(jnp.square, model), len(next(iter(group.values()))))
    between = jax.lax.map(lambda other: _softmax(jax.tree.map(jnp.multiply, model, other), 1), group)
    return {path: x * between[path].sum(0) for path, x in within.items()}


def _scaled(model: Model) -> Model:
    top = jnp.stack([jnp.abs(x).max() for x in model.values()]).max()
    return jax.tree.map(lambda x: ratio(x, top), model)


def _softmax(x: Model, times: int) -> Model:
    """softmax(times * x / |x|) over all entries, relative to their mean: the number of entries may be large."""
    norm = jnp.sqrt(sum(jnp.square(v).sum() for v in x.values()))
    e = {path: jnp.exp(times * (ratio(v, norm) - 1)) for path, v in x.items()}
    mean = sum(v.sum() for v in e.values()) / sum(v.size for v in e.values())
    return {path: v / mean for path, v in e.items()}
