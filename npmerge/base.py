"""What a merge is: a value with two pure functions, `init` and `apply`."""

import abc
import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
from jaxtyping import Array

from alignment.checks import check_flags, check_kinds, kind_of
from alignment.finite import check_finite
from alignment.graph import PyTree
from alignment.names import is_statistic as is_statistic
from npmerge.lora_stack import LoraStack
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

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass(frozen=True)
        ... class Median(nm.Merge):
        ...     def init(self, stack, *, stats=None, key=None):
        ...         return None  # nothing to learn
        ...     def apply(self, theta, stack):
        ...         return jax.tree.map(lambda x: jnp.median(x, 0), stack.params)
        >>> stack = nm.stack_models([{"w": jnp.array([w])} for w in (1.0, 2.0, 9.0)])
        >>> print(Median()(stack)["w"])
        [2.]
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

    @property
    def program(self) -> Hashable:
        """What `apply` depends on besides its arguments: merges that are equal in it share a compiled one.

        The merge itself, unless theta has all of its hyper-parameters: then a search over them compiles once.
        """
        return self

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
            return _of_adapters(self, stack, stats, key)
        check_stack(stack)
        check_finite(stack.params, f"the stack that {name} merges")
        check_finite(stack.base, f"the base that {name} starts from")
        try:
            theta = self.init(stack, stats=stats, key=key)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((stack, [*(stats or {}).values()]))):
                raise
            raise ValueError(f"{name} works on the host: call it outside jit and grad, which its apply can be in") from error
        merged = _applied(_Program(self.program, self), theta, stack)
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


def number_of_models(least: int, most: int | None) -> str:
    """In words, such as "exactly two models"."""
    words = {1: "one model", 2: "two models"}
    if least == most:
        return f"exactly {words.get(least, f'{least} models')}"
    return f"{words.get(least, f'{least} models')} or more" if most is None else f"{least} to {most} models"


def check_of_models(path: str, theta: PyTree, models: Array) -> None:
    """Raise ValueError unless theta at `path` is of as many models as the stack has there, or of one for all of them.

    JAX would clip an index that is not there, without a word.
    """
    for c in jax.tree.leaves(theta):
        if len(c) not in (1, len(models)):
            raise ValueError(f"theta at {path!r} is of {len(c)} models: the stack has {len(models)}")


@dataclass(frozen=True)
class _Program:
    """An `apply`, by which a compiled one is found again.

    Attributes:
        key: `Merge.program`.
        merge: one that has it.
    """

    key: Hashable
    merge: Merge = field(compare=False)


@functools.partial(jax.jit, static_argnums=0)
def _applied(program: _Program, theta: PyTree, stack: Stack | LoraStack) -> PyTree:
    """Compiled as a whole, which takes less time than tensor by tensor and runs ten times as fast."""
    return program.merge.apply(theta, stack)  # type: ignore[arg-type]


def _of_adapters(merge: Merge, stack: LoraStack, stats: Stats | None, key: Array | None) -> PyTree:
    """Raises ValueError for a method that needs the weights themselves."""
    try:
        theta = merge.init(stack, stats=stats, key=key)  # type: ignore[arg-type]
        return _applied(_Program(merge.program, merge), theta, stack)
    except (TypeError, AttributeError) as error:
        name = type(merge).__name__
        raise ValueError(f"{name} needs the weights themselves: merge stack.whole() instead of adapters") from error
