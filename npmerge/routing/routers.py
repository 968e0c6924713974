"""Who weighs the experts of a block: constants, or a router that looks at what the block reads."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.checks import check_choice, check_count, check_finite_number, check_flags
from npmerge.arithmetic import wide


class Weighing(abc.ABC):
    """Weights of the experts of each block. Its arrays are a flat dict, by path.

    Attributes:
        layers: how many blocks, of neighbouring depths, a pool has the experts of.
        shared: whether the weights found in the first block are those of all.
    """

    layers: int
    shared: bool

    @abc.abstractmethod
    def init(self, gates: Mapping[str, int | None], experts: int) -> dict[str, Array]:
        """Where to start.

        Args:
            gates: by block, in the order of the network, how many features it reads; None if those are none.
            experts: in the pool of a block.
        """

    @abc.abstractmethod
    def __call__(self, params: Mapping[str, Array], block: str, features: Array | None) -> Float[Array, "*places experts"]:
        """The weights of the experts of a block.

        Args:
            params: as `init` has them.
            block: its name.
            features: what it reads, features last.
        """


@dataclass(frozen=True)
class Router(Weighing):
    """Softmax of a linear function of what a block reads: w(x) = softmax(x W), W (features, experts), in float32.

    W starts at zero, where every expert has the same weight. The weights are dense, without a choice of the largest (k = E
    of Pari et al. 2024, arXiv 2411.02207, section 5), and nothing balances them.

    Attributes:
        layers: the pool of a block has the experts of so many blocks: its own, those behind it and, where there are no more,
            those in front of it ("multi-layer routing"); 1 is its own alone ("full-layer routing").
        shared: whether there is one router, on what the first block reads, whose weights all blocks use ("single router").
        per: "token": each position of what the block reads has weights of its own; "example": the features are averaged over
            the positions first, for blocks that make others than they read, as convolutions with strides.

    Raises:
        ValueError: fewer than one layer, another `per`.

    Example:
        >>> apply = lambda v, x: x @ v["w"]
        >>> models = [{"w": jnp.eye(2)}, {"w": 3 * jnp.eye(2)}]
        >>> routed = nm.route(apply, models, "w", jnp.ones((1, 2)), nm.Router())
        >>> print(routed.apply(routed.variables, jnp.eye(2)))  # the mean, as long as the router is zero
        [[2. 0.]
         [0. 2.]]
        >>> router = {"w/kernel": jnp.array([[50.0, 0.0], [0.0, 50.0]])}  # the first feature asks for the first expert
        >>> print(routed.apply({**routed.variables, "router": router}, jnp.eye(2)))
        [[1. 0.]
         [0. 3.]]
    """

    layers: int = 1
    shared: bool = False
    per: Literal["token", "example"] = "token"

    def __post_init__(self) -> None:
        check_count("layers of a Router", self.layers)
        check_flags(self)
        check_choice("per of a Router", self.per, ("token", "example"))

    def init(self, gates: Mapping[str, int | None], experts: int) -> dict[str, Array]:
        """Zeros. Raises ValueError for a block that reads no features."""
        wanted = dict(list(gates.items())[:1]) if self.shared else gates
        for name, features in wanted.items():
            if features is None:
                raise ValueError(
                    f"the block {name!r} reads no floating-point features that a router could look at: begin behind it, or "
                    "take FeatureAveraging()"
                )
        return {self._path(name): jnp.zeros((size or 0, experts), jnp.float32) for name, size in wanted.items()}

    def __call__(self, params: Mapping[str, Array], block: str, features: Array | None) -> Float[Array, "*places experts"]:
        """(*places, experts), or (examples, experts) per example."""
        assert features is not None
        x = wide(features)
        if self.per == "example":
            x = x.mean(tuple(range(1, x.ndim - 1)))
        return jax.nn.softmax(x @ params[self._path(block)].astype(x.dtype), axis=-1)

    def _path(self, block: str) -> str:
        return "kernel" if self.shared else f"{block}/kernel"


@dataclass(frozen=True)
class FeatureAveraging(Weighing):
    """What the experts make of one input is averaged, with the same weights for all tokens of all blocks.

    Mixes behind each block, sum_k w_k f(x; p_k), where `WeightedAverage` mixes weights, f(x; sum_k w_k p_k) (Pari et al. 2024,
    arXiv 2411.02207, section 3). The weights are the leaf `router/weights`, so that a sweep compiles once and `fit` can learn
    them. They need not sum to one.

    Attributes:
        weights: one for each expert of a pool, those of other layers behind those of the first; None for equal ones.
        layers: as in `Router`.

    Raises:
        ValueError: weights that are no finite numbers, fewer than one layer.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["mlp"]["w"], 0) @ v["mlp"]["u"]
        >>> models = [{"mlp": {"w": w, "u": jnp.eye(2)}} for w in (jnp.eye(2), -jnp.eye(2))]
        >>> x = jnp.array([[1.0, -1.0]])
        >>> routed = nm.route(apply, models, "mlp", x, nm.FeatureAveraging())
        >>> print(routed.apply(routed.variables, x), apply(nm.Average()(nm.stack_models(models)), x))
        [[0.5 0.5]] [[0. 0.]]
        >>> for w in (0.0, 0.5, 1.0):
        ...     print(routed.apply({**routed.variables, "router": {"weights": jnp.array([w, 1 - w])}}, x))
        [[0. 1.]]
        [[0.5 0.5]]
        [[1. 0.]]
    """

    weights: tuple[float, ...] | None = None
    layers: int = 1
    shared: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_count("layers of FeatureAveraging", self.layers)
        if self.weights is not None:
            object.__setattr__(self, "weights", _numbers(self.weights))

    def init(self, gates: Mapping[str, int | None], experts: int) -> dict[str, Array]:
        """The weights. Raises ValueError for another number of them than of experts."""
        weights = (1 / experts,) * experts if self.weights is None else self.weights
        if len(weights) != experts:
            raise ValueError(f"FeatureAveraging has {len(weights)} weights for a pool of {experts} experts")
        return {"weights": jnp.array(weights, jnp.float32)}

    def __call__(self, params: Mapping[str, Array], block: str, features: Array | None) -> Float[Array, " experts"]:
        """(experts,)."""
        return params["weights"]


def pools(blocks: int, layers: int) -> list[list[int]]:
    """For each of so many blocks those whose experts it has: itself, those behind it, then those in front, the nearest first.

    Raises:
        ValueError: more layers than blocks.
    """
    if layers > blocks:
        raise ValueError(f"a pool of {layers} layers needs as many blocks, got {blocks}")
    return [[*range(i, min(i + layers, blocks)), *range(i - 1, blocks - layers - 1, -1)][:layers] for i in range(blocks)]


def _numbers(weights: Any) -> tuple[float, ...]:
    values: Sequence[Any] = np.asarray(weights).tolist() if hasattr(weights, "shape") else weights
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise ValueError(f"FeatureAveraging takes a weight for each expert, got {weights!r}")
    for k, value in enumerate(values):
        check_finite_number(f"weight {k} of FeatureAveraging", value)
    return tuple(float(value) for value in values)
