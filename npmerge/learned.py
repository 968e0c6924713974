"""Learned merges: any linear merge as a start, its coefficients as the parameters."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from alignment.checks import check_kinds, kind_of
from alignment.graph import PyTree, path_name
from alignment.names import is_statistic
from npmerge.arithmetic import mean, wide
from npmerge.base import Merge, Stats, check_of_models
from npmerge.constraints import Constraint, Simplex
from npmerge.granularity import Granularity, PerChannel
from npmerge.linear import LinearMerge, merged_by
from npmerge.stack import Stack
from npmerge.task_vectors.bits import packed, unpacked


@dataclass(frozen=True)
class Learned(Merge):
    """Coefficients that start at a closed form and are learned from there.

    `Learned(Average(), PerParameter(), Simplex())` is NP Merge (Orozco Camacho et al. 2024), `Learned(TaskArithmetic(0.3),
    PerTensor(), Clip())` is layer-wise AdaMerging (Yang et al. 2024): `published.py` names them. Zero steps of learning
    reproduce the start.

    Theta is a flat dictionary, an array of latents for each group (by default a tensor, called by its path), so that Optax can
    treat groups apart, as to freeze some.

    Attributes:
        start: the closed form to start from.
        granularity: which parameters share a coefficient.
        constraint: where coefficients may live.
        masks: entries of task vectors to which this merge gives no coefficient have none, whatever is learned: the task vectors
            are those as `Ties(merge="sum")` leaves them, say. Only where they are zero matters, not its other coefficients.

    Raises:
        ValueError: a start or masks that are no linear merges, masks of merges that are not of task vectors, arguments of other
            kinds.

    Example:
        >>> merge = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
        >>> stack = nm.stack_models([{"w": jnp.array([1.0, 3.0])}, {"w": jnp.array([3.0, 5.0])}])
        >>> theta = merge.init(stack)
        >>> print(theta, merge.apply(theta, stack)["w"])  # zero steps of learning: the average
        {'w': Array([0.], dtype=float32)} [2. 4.]
        >>> print(merge.apply({"w": jnp.array([1.1])}, stack)["w"].round(2))
        [1.5 3.5]
        >>> apply = lambda v, x: jnp.maximum(x @ v["w"], 0) @ v["u"]
        >>> stack = nm.stack_models([{"w": k * jnp.ones((2, 3)), "u": k * jnp.ones((3, 2))} for k in (1.0, 3.0)])
        >>> merge = nm.Learned(nm.Average(), nm.PerTensor(), nm.Simplex())
        >>> loss = nm.weight_space(merge, apply, nm.PerExample(lambda y, t: (y - t) ** 2))
        >>> data = [(jnp.ones((4, 2)), jnp.full((4, 2), 19.2))]  # what w = 1.6 makes where u stays at 2
        >>> kinds = {"learned": optax.adam(0.1), "frozen": optax.set_to_zero()}
        >>> optimizer = optax.multi_transform(kinds, {"w": "learned", "u": "frozen"})
        >>> result = nm.fit(merge.init(stack), loss, stack, data, optimizer, steps=50)
        >>> for path, share in sorted(merge.coefficients(result.theta, stack).items()):
        ...     print(path, share.ravel().round(1))
        u [0.5 0.5]
        w [0.7 0.3]
    """

    start: LinearMerge
    granularity: Granularity
    constraint: Constraint
    masks: LinearMerge | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.start, LinearMerge):
            raise ValueError(f"Learned starts from a linear merge (one with coefficients), got {kind_of(self.start)}")
        call = "Learned takes (start, granularity, constraint)"
        check_kinds(call, (self.start, LinearMerge), (self.granularity, Granularity), (self.constraint, Constraint))
        masks = self.masks
        if masks is not None and not (isinstance(masks, LinearMerge) and masks.needs_base and self.start.needs_base):
            raise ValueError(f"masks are of task vectors: both they and the start must be merges of those, got {masks!r}")

    @property
    def needs(self) -> tuple[type, ...]:  # type: ignore[override]
        """What the start and the masks need."""
        return tuple(dict.fromkeys(self.start.needs + (self.masks.needs if self.masks else ())))

    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Latents by group, (rows, ...): those whose coefficients are the start's.

        With masks `{"latents": those, "masks": bits}`; learning moves the latents only.

        Raises:
            ValueError: if the granularity or the constraint cannot represent the start.
        """
        coefficients = self.start.init(stack, stats=stats, key=key)
        groups = self.granularity.reduce(coefficients, stack.params)
        for c in groups.values():
            self.constraint.check(c)
        latents = _latents(self.constraint, tuple(self.granularity.shapes(stack.params).items()), groups)
        if self.masks is None:
            return latents
        masks = _masks(self.masks.init(stack, stats=stats, key=key), stack.params)
        return {"latents": latents, "masks": masks}

    def coefficients(self, theta: PyTree, stack: Stack) -> PyTree:
        """The coefficients that theta stands for, one array per leaf that broadcasts against (models, ...)."""
        latents = self._latents(theta, stack)
        found = self.granularity.expand({name: self.constraint.forward(x) for name, x in latents.items()}, stack.params)
        if self.masks is None:
            return found
        return jax.tree.map(lambda c, m, x: jnp.where(unpacked(m, x.shape[1:]), c, 0), found, theta["masks"], stack.params)

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """`combine` with the coefficients of theta. Where the models are mixed as they are, no coefficients are held.

        Raises:
            ValueError: a theta of another granularity, of other tensors, of another number of models, or of a constraint with
                other rows (which is named). Theta has no memory of the order of the models, nor of the constraint: of three
                models or more it has the same shapes under all constraints. Keep it with the merge and the models' names.
        """
        if self._of_task_vectors or not isinstance(stack, Stack):
            return merged_by(self.coefficients(theta, stack), stack, needs_base=self.start.needs_base)
        latents = self.granularity.expand(self._latents(theta, stack), stack.params)
        return jax.tree_util.tree_map_with_path(self._mixed, latents, stack.params)

    def _latents(self, theta: PyTree, stack: Stack) -> dict[str, Array]:
        """The latents in theta. Raises ValueError for those of other groups or shapes than this merge has for the stack."""
        latents = theta.get("latents") if self.masks and isinstance(theta, Mapping) else theta
        if not isinstance(latents, Mapping):
            raise ValueError(
                f"theta of Learned holds latents by group: got {kind_of(latents)}, expected what init(stack) gives"
            )
        shapes = self.granularity.shapes(stack.params)
        for name in [*shapes, *latents]:
            if wrong := _difference(name, latents, shapes):
                raise ValueError(f"theta is not of {self.granularity} of these models: {wrong}")
            self._check_rows(latents[name], stack.size)
        return dict(latents)

    def _check_rows(self, latent: Array, models: int) -> None:
        """Raise ValueError for a latent of another constraint. One of another number of models is refused where it is used."""
        rows, expected = len(latent), _rows(self.constraint, models)
        if rows == expected or jax.eval_shape(self.constraint.forward, latent).shape[0] not in (1, models):
            return
        raise ValueError(
            f"theta has {rows} row{'s' * (rows > 1)} for each group, {self.constraint} of {models} models has {expected}: was "
            f"it learned under {'Simplex(), of two models' if rows == 1 else 'another constraint'}?"
        )

    @property
    def _of_task_vectors(self) -> bool:
        return self.masks is not None or self.start.needs_base

    @property
    def lean(self) -> bool:
        """Whether a gradient holds no coefficients of the models' size: those of a simplex over the models as they are."""
        columns = isinstance(self.granularity, PerChannel)
        return isinstance(self.constraint, Simplex) and not columns and not self._of_task_vectors

    def _mixed(self, path: tuple, latent: Array, models: Array) -> Array:
        """One leaf of the merge; running statistics are averaged, as `combine` does."""
        name = path_name(path)
        if is_statistic(name):
            return mean([wide(x) for x in models]).astype(models.dtype)
        check_of_models(name, jax.eval_shape(self.constraint.forward, latent), models)
        return self.constraint.mixed(latent, models).astype(models.dtype)


def _difference(name: str, latents: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """How theta differs from what it should be at a group; nothing where it does not."""
    if name not in latents:
        return f"it has no group {name!r}, expected one with {shapes[name]} for each model"
    if name not in shapes:
        return f"it has a group {name!r}, expected one of {', '.join(list(shapes)[:3])}{', ...' * (len(shapes) > 3)}"
    got = np.shape(latents[name])[1:]
    return "" if got == shapes[name] else f"at {name!r} got {got} for each model, expected {shapes[name]}"


@functools.cache
def _rows(constraint: Constraint, models: int) -> int:
    """How many rows the latents of so many models have."""
    return jax.eval_shape(constraint.inverse, jax.ShapeDtypeStruct((models, 1), jnp.float32)).shape[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _latents(constraint: Constraint, shapes: tuple, groups: dict[str, Array]) -> dict[str, Array]:
    """The inverse on the compact coefficients, then one latent for each of their places."""
    compact = {name: constraint.inverse(c) for name, c in groups.items()}
    return {name: jnp.broadcast_to(compact[name], (compact[name].shape[0], *shape)) for name, shape in shapes}


@jax.jit
def _masks(coefficients: PyTree, params: PyTree) -> PyTree:
    return jax.tree.map(lambda c, x: packed(jnp.broadcast_to(c != 0, x.shape)), coefficients, params)
