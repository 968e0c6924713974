"""From a configuration to pure functions of a tree of arrays."""

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx
from jaxtyping import Array

from alignment.graph import PyTree


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
        apply: `(variables, inputs) -> outputs`, evaluation mode.
        variables: `{"params": ..., "batch_stats": ...}`, nested dicts of arrays.
        train_apply: `(variables, inputs) -> (outputs, variables with new statistics)`.

    Example:
        >>> from npmerge.models import Vgg, abstract
        >>> network, x = abstract(Vgg(((4,), (8,)), dense=(), classes=3, side=4, norm="batch")), jnp.ones((2, 4, 4, 3))
        >>> outputs, new = jax.eval_shape(network.train_apply, network.variables, x)  # and new statistics
        >>> outputs.shape, sorted(new), jax.eval_shape(network.apply, network.variables, x).shape
        ((2, 3), ['batch_stats', 'params'], (2, 3))
    """

    apply: Callable[[PyTree, Array], Array]
    variables: PyTree
    train_apply: Callable[[PyTree, Array], tuple[Array, PyTree]]


class Config(abc.ABC):
    """An architecture: a frozen dataclass of sizes that can build its Flax NNX module.

    Attributes:
        input_dtype: dtype of an example; a network on tokens says "int32".

    Example:
        >>> import dataclasses
        >>> from flax import nnx
        >>> from npmerge.models import Config, abstract
        >>> @dataclasses.dataclass(frozen=True)
        ... class Linear(Config):  # an architecture of one's own
        ...     classes: int = 3
        ...     input_shape = (4,)
        ...     def module(self, rngs):
        ...         return nnx.Linear(4, self.classes, rngs=rngs)
        >>> {path: x.shape for path, x in abstract(Linear()).variables["params"].items()}
        {'bias': (3,), 'kernel': (4, 3)}
    """

    input_dtype: ClassVar[str] = "float32"

    @abc.abstractmethod
    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module, freshly initialised."""

    @property
    @abc.abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example."""

    def functions(self) -> tuple[Callable, Callable]:
        """`apply` and `train_apply` of a network."""

        def apply(variables: PyTree, inputs: Array) -> Array:
            return _module(self, variables, training=False)(inputs)

        def train_apply(variables: PyTree, inputs: Array) -> tuple[Array, PyTree]:
            module = _module(self, variables, training=True)
            outputs = module(inputs)
            return outputs, {"params": variables["params"], "batch_stats": _variables(module)["batch_stats"]}

        return apply, train_apply

    def initial(self, key: Array) -> PyTree:
        """Freshly initialised variables. Traceable."""
        return _variables(self.module(nnx.Rngs(key)))

    def shapes(self) -> PyTree:
        """The variables as `jax.ShapeDtypeStruct`."""
        _, params, statistics = _skeleton(self, False)
        return _pure(params, statistics)


def build(config: Config, *, seed: int = 0) -> Network:
    """Initialise a network. Equal configurations share their functions, so nothing is compiled twice.

    Args:
        config: the architecture.
        seed: of the initialisation.

    Example:
        >>> from npmerge.models import Mlp, build
        >>> one, two = (build(Mlp(4, (8,), 3), seed=seed) for seed in (0, 1))
        >>> one.apply is two.apply, nm.parameters(one.variables), one.apply(one.variables, jnp.ones((5, 4))).shape
        (True, 67, (5, 3))
    """
    apply, train_apply = _functions(config)
    return Network(apply, _initialise(config, jax.random.key(seed)), train_apply)


def abstract(config: Config) -> Network:
    """The network with `jax.ShapeDtypeStruct` for variables: enough to trace it, whatever its size, and nothing allocated.

    Example:
        >>> from npmerge.models import Mlp, abstract, example
        >>> config = Mlp(inputs=10**6, hidden=(10**6,), classes=10)  # four terabytes
        >>> network = abstract(config)
        >>> f"{nm.parameters(network.variables):,}", len(nm.trace(network.apply, network.variables, example(config)).nodes)
        ('1,000,011,000,010', 1)
    """
    apply, train_apply = _functions(config)
    return Network(apply, _shapes(config), train_apply)


def example(config: Config, batch: int = 2) -> jax.ShapeDtypeStruct:
    """An abstract input of the architecture: all that `trace` needs.

    Args:
        config: the architecture.
        batch: the number of examples.

    Example:
        >>> from npmerge.models import Gpt2, ResNetCifar, example
        >>> [(x.shape, str(x.dtype)) for x in (example(ResNetCifar()), example(Gpt2(), batch=1))]
        [((2, 32, 32, 3), 'float32'), ((1, 1024), 'int32')]
    """
    return jax.ShapeDtypeStruct((batch, *config.input_shape), config.input_dtype)


@functools.lru_cache(maxsize=128)
def _functions(config: Config) -> tuple[Callable, Callable]:
    return config.functions()


@functools.lru_cache(maxsize=128)
def _shapes(config: Config) -> PyTree:
    return config.shapes()


@functools.partial(jax.jit, static_argnums=0)
def _initialise(config: Config, key: Array) -> PyTree:
    return config.initial(key)


def _variables(module: nnx.Module) -> dict[str, PyTree]:
    _, params, statistics = nnx.split(module, nnx.Param, nnx.BatchStat)
    return _pure(params, statistics)


def _pure(params: nnx.State, statistics: nnx.State) -> dict[str, PyTree]:
    return {"params": nnx.to_pure_dict(params), "batch_stats": nnx.to_pure_dict(statistics)}


def _module(config: Config, variables: PyTree, *, training: bool) -> Any:
    graph, params, statistics = jax.tree.map(lambda x: x, _skeleton(config, training))  # a copy to fill in
    nnx.replace_by_pure_dict(params, variables["params"])
    nnx.replace_by_pure_dict(statistics, variables["batch_stats"])
    return nnx.merge(graph, params, statistics)


@functools.lru_cache(maxsize=128)
def _skeleton(config: Config, training: bool, /) -> tuple:
    """The module taken apart: its definition, and its parameters and statistics as shapes."""
    module = nnx.eval_shape(lambda: config.module(nnx.Rngs(0)))
    module.set_attributes(use_running_average=not training, raise_if_not_found=False)
    return nnx.split(module, nnx.Param, nnx.BatchStat)
