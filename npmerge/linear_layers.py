"""The linear layers of a network as matrices: read, run by themselves, and put back."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from alignment.biases import channel_biases
from alignment.graph import Graph, PyTree, Signature, as_shapes, flatten, path_name, signature
from alignment.sites import Site


class Layer(NamedTuple):
    """The weight of a site as a matrix, float32, and the bias that is added to what it makes, if there is one."""

    matrix: Float[Array, "*copies rows columns"]
    bias: Float[Array, "*copies columns"] | None

    def outputs(
        self, inputs: Float[Array, "*copies samples rows"], precision: jax.lax.Precision | None = None
    ) -> Float[Array, "*copies samples columns"]:
        """What the layer makes of its inputs."""
        made = jnp.matmul(inputs, self.matrix, precision=precision)
        return made if self.bias is None else made + jnp.broadcast_to(self.bias[..., None, :], made.shape)


@dataclass(frozen=True)
class Layers:
    """The layers of a network; `layers_of` makes them.

    Attributes:
        graph: of the network.
        added: the sites with a bias, and its path.
    """

    graph: Graph
    added: tuple[tuple[str, str], ...]

    @functools.cached_property
    def sites(self) -> dict[str, Site]:
        """The sites in the order of the network."""
        return {site.name: site for site in self.graph.sites}

    @functools.cached_property
    def biases(self) -> dict[str, str]:
        """For each site with a bias the path of that."""
        return dict(self.added)

    def layer(self, name: str, variables: PyTree) -> Layer:
        """The layer of a site in a network."""
        site, leaves = self.sites[name], flatten(variables)
        matrix = site.matrix(leaves[site.path]).astype(jnp.float32)
        if name not in self.biases:
            return Layer(matrix, None)
        bias = jnp.asarray(leaves[self.biases[name]]).astype(jnp.float32)
        return Layer(matrix, bias.reshape(*matrix.shape[:-2], matrix.shape[-1]))

    def several(self, names: tuple[str, ...], variables: PyTree) -> dict[str, Layer]:
        """The layers of these sites in a network."""
        found = _taken(self, names, self._leaves(names, variables))
        return {name: found[name] for name in names}  # jit sorts them

    def replaced(self, layers: Mapping[str, Layer], variables: PyTree) -> PyTree:
        """A network with these layers, rounded once to its dtypes."""
        new = _replaced(self, dict(layers), self._leaves(layers, variables))
        return jax.tree_util.tree_map_with_path(lambda path, x: new.get(path_name(path), x), variables)

    def _leaves(self, names: Iterable[str], variables: PyTree) -> dict[str, Array]:
        """What these layers are made of."""
        leaves = flatten(variables)
        return {path: leaves[path] for name in names for path in (self.sites[name].path, self.biases.get(name)) if path}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _taken(layers: Layers, names: tuple[str, ...], leaves: Mapping[str, Array]) -> dict[str, Layer]:
    """Compiled once, like `_replaced`."""
    return {name: layers.layer(name, leaves) for name in names}


@functools.partial(jax.jit, static_argnums=0)
def _replaced(layers: Layers, new: Mapping[str, Layer], leaves: Mapping[str, Array]) -> dict[str, Array]:
    """The leaves that these layers are in, with them: compiled once, where every step of it would be by itself."""
    found = dict(leaves)
    for name, layer in new.items():
        site = layers.sites[name]
        found[site.path] = site.replaced(leaves[site.path], layer.matrix)
        if layer.bias is not None:
            old = leaves[layers.biases[name]]
            found[layers.biases[name]] = jnp.asarray(layer.bias).reshape(old.shape).astype(old.dtype)
    return found


def layers_of(apply: Callable[..., PyTree], graph: Graph, variables: PyTree, inputs: PyTree) -> Layers:
    """The layers of a network, remembered: with the same function and shapes nothing is traced anew. Traceable.

    Args:
        apply: the network.
        graph: its graph.
        variables: arrays or `jax.ShapeDtypeStruct`, as `inputs`.
        inputs: a batch.
    """
    return _layers(apply, graph, signature(variables), signature(inputs))


@functools.lru_cache(maxsize=32)
def _layers(apply: Callable[..., PyTree], graph: Graph, variables: Signature, inputs: Signature) -> Layers:
    with jax.ensure_compile_time_eval():  # it looks at numbers, also while a loss is traced
        return Layers(graph, tuple(channel_biases(apply, graph, as_shapes(variables), as_shapes(inputs)).items()))
