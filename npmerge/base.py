"""What a merge is: a value with two pure functions, `init` and `apply`."""

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.base import check_finite
from alignment.checks import check_flags, check_kinds, kind_of
from alignment.graph import PyTree, path_name
from alignment.names import is_statistic as is_statistic
from npmerge.lora import LoraStack
from npmerge.stack import Stack, check_is_stack, check_stack

Stats = Mapping[type, Any]


def _of_a_stack(init: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """An `init` that refuses anything but a stack."""

    @functools.wraps(init)
    def checked(self: "Merge", stack: Any, **options: Any) -> PyTree:
        if not isinstance(stack, LoraStack):
            check_is_stack(stack)
        return init(self, stack, **options)

    return checked


def _of_theta(apply: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """An `apply` that refuses what is likely to be passed by mistake: arguments in another order, the result of `fit` whole."""

    @functools.wraps(apply)
    def checked(self: "Merge", theta: PyTree, stack: Any) -> PyTree:
        if isinstance(theta, tuple) and hasattr(theta, "theta"):
            raise ValueError(f"{type(self).__name__}.apply takes (theta, stack): got {kind_of(theta)}, pass its .theta")
        check_kinds(f"{type(self).__name__}.apply takes (theta, stack)", (theta, object), (stack, Stack | LoraStack))
        return apply(self, theta, stack)

    return checked


class Merge(abc.ABC):
    """Several models in, one out.

    `init` computes the merge's own parameters theta in closed form (host code allowed); `apply` builds the merged model
    from theta: pure, traceable, differentiable in theta and in the stack. Subclasses are frozen dataclasses: every
    hyper-parameter is a field, everything differentiable is in theta.
    """

    needs: ClassVar[tuple[type, ...]] = ()
    """The statistics that `init` looks up in `stats`, by type."""

    needs_base: ClassVar[bool] = False
    """Whether differences from the base are merged rather than the models themselves."""

    models: ClassVar[tuple[int, int | None]] = (1, None)
    """The fewest and the most models that it merges; None is any number."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Every merge says alike what its `init` and its `apply` cannot take."""
        super().__init_subclass__(**options)
        if "init" in vars(cls):
            cls.init = _of_a_stack(cls.init)  # type: ignore[method-assign]
        if "apply" in vars(cls):
            cls.apply = _of_theta(cls.apply)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        check_flags(self)

    @property
    def random(self) -> bool:
        """Whether `init` draws at random, for which it needs a key."""
        return False

    @abc.abstractmethod
    def init(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """The closed form."""

    @abc.abstractmethod
    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """The merged model."""

    def __call__(self, stack: Stack, *, stats: Stats | None = None, key: Array | None = None) -> PyTree:
        """Merge in closed form: `apply` on what `init` gave.

        Raises:
            ValueError: models that are not a `Stack`, or a NaN or infinity in the models, the base or the result (the method
                and the tensor are named); values traced by `jit` or `grad`, which are passed over by these checks, where the
                closed form is found on the host.
        """
        name = type(self).__name__
        if isinstance(stack, LoraStack):
            return stack.merged(self, stats, key)
        check_stack(stack)
        check_finite(stack.params, f"the stack that {name} merges")
        check_finite(stack.base, f"the base that {name} starts from")
        try:
            theta = self.init(stack, stats=stats, key=key)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((stack, [*(stats or {}).values()]))):
                raise
            raise ValueError(f"{name} works on the host: call it outside jit and grad, which its apply can be in") from error
        merged = _applied(self, theta, stack)
        check_finite(merged, f"the result of {name}")
        return merged

    def require_base(self, stack: Stack) -> None:
        """Raise ValueError if the stack has no base."""
        if stack.base is None:
            raise ValueError(f"{type(self).__name__} needs a base: got none, use stack_models(models, base=...)")

    def require_models(self, stack: Stack) -> None:
        """Raise ValueError unless the stack is of as many models as the method merges."""
        least, most = self.models
        if stack.size < least or (most is not None and stack.size > most):
            raise ValueError(f"{type(self).__name__} merges {number_of_models(least, most)}, got {stack.size}")


@functools.partial(jax.jit, static_argnums=0)
def _applied(merge: Merge, theta: PyTree, stack: Stack) -> PyTree:
    """Compiled as a whole, which takes less time than tensor by tensor and runs ten times as fast."""
    return merge.apply(theta, stack)


class LinearMerge(Merge):
    """A merge that is a choice of coefficients: theta holds one array per leaf that broadcasts against (models, ...)."""

    def apply(self, theta: PyTree, stack: Stack) -> PyTree:
        """`combine`, with the base only where the method is defined by it."""
        return merged_by(theta, stack, needs_base=self.needs_base)


def merged_by(coefficients: PyTree, stack: Stack | LoraStack, *, needs_base: bool) -> PyTree:
    """The linear merge with these coefficients: of task vectors, or of the models themselves; of adapters in low rank."""
    if isinstance(stack, LoraStack):
        return stack.combined(coefficients, needs_base=needs_base)
    return combine(coefficients, stack if needs_base else Stack(stack.params))


def number_of_models(least: int, most: int | None) -> str:
    """In words, such as "exactly two models"."""
    words = {1: "one model", 2: "two models"}
    if least == most:
        return f"exactly {words.get(least, f'{least} models')}"
    return f"{words.get(least, f'{least} models')} or more" if most is None else f"{least} to {most} models"


def combine(coefficients: PyTree, stack: Stack) -> PyTree:
    """Base + sum_m c_m * (params_m - base), or sum_m c_m * params_m without a base.

    Computed in float32 (or wider) and rounded once to the stored dtype. Running statistics are averaged whatever the
    coefficients: they are no weights; re-estimate them from data afterwards (`reset_statistics`).

    Args:
        coefficients: for each leaf of the stack an array that broadcasts against its shape (models, ...).
        stack: the models, and the base.

    Raises:
        ValueError: coefficients of another number of models (the path is named).
    """

    def leaf(path: tuple, c: Array, x: Array, base: Array | None = None) -> Array:
        check_of_models(path_name(path), c, x)
        models = [wide(x[k]) for k in range(len(x))]
        if is_statistic(path_name(path)):
            return mean(models).astype(x.dtype)
        shares = jnp.unstack(jnp.broadcast_to(c, (len(x), *c.shape[1:])))  # c[k]: see `Constraint.mixed`
        if base is None:
            return _sum([s.astype(w.dtype) * w for s, w in zip(shares, models, strict=True)]).astype(x.dtype)
        origin = wide(base)
        return (origin + _sum([s.astype(w.dtype) * (w - origin) for s, w in zip(shares, models, strict=True)])).astype(x.dtype)

    bases = () if stack.base is None else (stack.base,)
    return jax.tree_util.tree_map_with_path(leaf, coefficients, stack.params, *bases)


def check_of_models(path: str, theta: PyTree, models: Array) -> None:
    """Raise ValueError unless theta at `path` is of as many models as the stack has there, or of one for all of them.

    JAX would clip an index that is not there, without a word.
    """
    for c in jax.tree.leaves(theta):
        if len(c) not in (1, len(models)):
            raise ValueError(f"theta at {path!r} is of {len(c)} models: the stack has {len(models)}")


def between(start: PyTree, end: PyTree, t: Float[Array, ""]) -> PyTree:
    """(1 - t) start + t end, leaf by leaf, running statistics too: the ends are the networks themselves.

    Leaves that are no floating-point numbers are those of the start.
    """

    def leaf(a: Array, b: Array) -> Array:
        if not jnp.issubdtype(a.dtype, jnp.floating):
            return a
        return ((1 - t) * a.astype(jnp.float32) + t * b.astype(jnp.float32)).astype(a.dtype)

    return jax.tree.map(leaf, start, end)


def _sum(terms: list[Array]) -> Array:
    """The sum written out: XLA fuses it into one loop, where on CPUs a reduction over the leading axis is far slower."""
    return functools.reduce(jnp.add, terms)


def mean(models: Sequence[Array] | Array) -> Array:
    """The plain mean over the models, written out as `combine` does."""
    return _sum(list(models)) / len(models)


def wide(x: Array) -> Array:
    """In float32, or float64 if it is: what merges compute in, to round once."""
    return x.astype(jnp.float64 if x.dtype == jnp.float64 else jnp.float32)


def constant(stack: Stack, value: float | Float[np.ndarray, " models"]) -> PyTree:
    """One coefficient per model and tensor: the same for all tensors, and for all models if it is one number."""
    c = np.broadcast_to(np.asarray(value, np.float32), stack.size)
    return jax.tree.map(lambda x: jnp.asarray(c.reshape(-1, *(1,) * (x.ndim - 1))), stack.params)
