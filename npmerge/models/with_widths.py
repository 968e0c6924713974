"""An architecture whose nodes have other widths than its own configuration can say."""

import functools
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
from flax import nnx
from jaxtyping import Array

from alignment.checks import check_kinds, unknown
from alignment.graph import Graph, PyTree, path_name
from alignment.labels import new_size
from alignment.resizing.resize import resize
from alignment.tracing.trace import trace
from alignment.widths import check_widths
from npmerge.models.build import Config, abstract, example


@dataclass(frozen=True)
class WithWidths(Config):
    """The network of `config` with other widths, node by node, as merges that narrow or widen networks leave it.

    `WithWidths.of(config, widths_of(graph, merged))` for variables that were merged. It builds, runs, trains, saves, loads and
    merges like any other architecture.

    Attributes:
        config: the architecture.
        widths: the units of each node that has changed, by name, as (node, units) in the order of the names.

    Raises:
        ValueError: a node that the architecture does not have (the nearest is named), a width below 1, widths upon widths.

    Example:
        >>> from npmerge.models import Mlp, WithWidths, abstract
        >>> config = Mlp(inputs=4, hidden=(8,), classes=3)
        >>> (node,) = nm.trace(abstract(config).apply, abstract(config).variables, jnp.ones((1, 4))).nodes
        >>> narrow = WithWidths.of(config, {node: 5})
        >>> [layer["kernel"].shape for layer in abstract(narrow).variables["params"]["layers"].values()]
        [(4, 5), (5, 3)]
    """

    config: Config
    widths: tuple[tuple[str, int], ...]

    def __post_init__(self) -> None:
        check_kinds("WithWidths takes (config, widths)", (self.config, Config), (self.widths, object))
        check_widths("widths", self.widths)
        if isinstance(self.config, WithWidths):
            raise ValueError("the widths of a network that has other widths already: give them all at once")
        own = _graph(self.config).nodes
        for name, _ in self.widths:
            if name not in own:
                raise ValueError(unknown("node", name, own))

    @classmethod
    def of(cls, config: Config, widths: Mapping[str, int]) -> Config:
        """The architecture with these widths: `config` itself where none of them differs."""
        plain, known = (config.config, dict(config.widths)) if isinstance(config, WithWidths) else (config, {})
        nodes = _graph(plain).nodes
        changed = {name: n for name, n in {**known, **widths}.items() if name not in nodes or nodes[name].size != n}
        return cls(plain, tuple(sorted(changed.items()))) if changed else plain

    @property
    def input_dtype(self) -> str:  # type: ignore[override]
        """That of `config`."""
        return self.config.input_dtype

    @property
    def input_shape(self) -> tuple[int, ...]:
        """That of `config`."""
        return self.config.input_shape

    @property
    def vocabulary(self) -> int:
        """That of `config`, where its inputs are tokens."""
        return self.config.vocabulary  # type: ignore[attr-defined]

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        """The module of `config`, with the widths that it has."""
        return self.config.module(rngs)

    def functions(self) -> tuple[Callable, Callable]:
        """Those of `config`, rewritten for the new widths."""
        network, graph, shapes = abstract(self.config), _graph(self.config), self.shapes()
        evaluate, train = (resize(f, graph, shapes, dict(self.widths)) for f in (network.apply, network.train_apply))
        return evaluate, train

    def initial(self, key: Array) -> PyTree:
        """Variables drawn leaf by leaf from those that `config` starts with: the same distribution, whatever the fan-in."""
        old = self.config.initial(key)

        def leaf(path: tuple, old: Array, new: jax.ShapeDtypeStruct) -> Array:
            own = jax.random.fold_in(key, zlib.crc32(path_name(path).encode()))
            return old if old.shape == new.shape else jax.random.choice(own, old.ravel(), new.shape)

        return jax.tree_util.tree_map_with_path(leaf, old, self.shapes())

    def shapes(self) -> PyTree:
        """The variables as `jax.ShapeDtypeStruct`."""
        graph, widths = _graph(self.config), dict(self.widths)

        def leaf(path: tuple, old: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(tuple(new_size(label, widths) for label in graph.axes[path_name(path)]), old.dtype)

        return jax.tree_util.tree_map_with_path(leaf, abstract(self.config).variables)


@functools.lru_cache(maxsize=128)
def _graph(config: Config) -> Graph:
    network = abstract(config)
    return trace(network.apply, network.variables, example(config))
