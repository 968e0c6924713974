"""What each linear site of a merged network reads, and what it should make of it: the least squares' data."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.activations.taps import SiteFeatures, capture
from alignment.graph import Graph, PyTree
from alignment.site_maps import FeatureMaps, Side, moved
from npmerge.linear_layers import Layers

Apply = Callable[..., PyTree]


class Networks(NamedTuple):
    """The networks whose features are taken.

    Attributes:
        models: the originals.
        maps: how the units of each come into the merged network.
        shifts: the biases that targets have, by site.
        merged: the merged network, where its sites read what it computes itself; None where they read the originals' inputs,
            averaged.
    """

    models: tuple[PyTree, ...]
    maps: tuple[FeatureMaps, ...]
    shifts: dict[str, Float[Array, "*copies columns"]]
    merged: PyTree | None = None


@dataclass(frozen=True)
class Targets:
    """A merged network and the originals as functions.

    Attributes:
        applies: the function of each original; `graphs` theirs.
        apply: the function of the merged network, `resize`d.
        layers: its layers.
    """

    applies: tuple[Apply, ...]
    graphs: tuple[Graph, ...]
    apply: Apply
    layers: Layers

    def pairs(
        self, names: Iterable[str], networks: Networks, inputs: PyTree, wanted: Mapping[str, Array] | None = None
    ) -> dict[str, SiteFeatures]:
        """What sites of the merged network read and what they should make of it, in float32; pure and traceable.

        Targets are Z_out = mean_k push_k (y_k + b_k), the outputs of the originals with their biases. Inputs are Z_in =
        mean_k push_k x_k, or those of the network `merged`.

        Args:
            names: of the sites.
            networks: whose features are taken.
            inputs: a batch.
            wanted: the targets, where they are known and `merged` has the inputs: then the originals are not run.
        """
        names = tuple(names)
        if networks.merged is None:
            mean = self._of_originals(("inputs", "outputs"), names, networks, inputs)
            return {name: SiteFeatures(mean["inputs"][name], mean["outputs"][name]) for name in names}
        made = self.wanted(names, networks, inputs) if wanted is None else wanted
        seen = capture(self.apply, self.layers.graph, networks.merged, inputs, nodes=(), sites=names).sites
        return {name: SiteFeatures(seen[name].inputs.astype(jnp.float32), made[name]) for name in names}

    def wanted(self, names: Iterable[str], networks: Networks, inputs: PyTree) -> dict[str, Array]:
        """What sites should make, as in `pairs`; pure and traceable."""
        return self._of_originals(("outputs",), tuple(names), networks, inputs)["outputs"]

    def _of_originals(
        self, sides: Sequence[Side], names: tuple[str, ...], networks: Networks, inputs: PyTree
    ) -> dict[Side, dict[str, Array]]:
        """The means over the originals, in the units of the merged network, targets with their biases."""
        graph = self.layers.graph
        sums: dict[Side, dict[str, Array]] = {side: {} for side in sides}
        for apply, its, model, maps in zip(self.applies, self.graphs, networks.models, networks.maps, strict=True):
            found = capture(apply, its, model, inputs, nodes=(), sites=names).sites
            for site in (s for s in its.sites if s.name in found):
                for side, total in sums.items():
                    x = moved(its, maps, site, side, graph)(getattr(found[site.name], side)).astype(jnp.float32)
                    total[site.name] = total[site.name] + x if site.name in total else x
        mean = {side: {name: x / len(networks.models) for name, x in total.items()} for side, total in sums.items()}
        for name, shift in networks.shifts.items():
            if name in names:
                y = mean["outputs"][name]
                mean["outputs"][name] = y + jnp.broadcast_to(shift[..., None, :], y.shape)
        return mean

    def pieces(
        self, names: tuple[str, ...], networks: Networks, batches: Sequence[PyTree], memory_limit: float
    ) -> Iterator[PyTree]:
        """Inputs in pieces of which memory holds the features, all of one batch of nearly the same size.

        Args:
            names: the sites whose features are held, those of each model and the merged ones.
            networks: the models.
            batches: of inputs.
            memory_limit: in bytes.
        """
        pairs = jax.eval_shape(functools.partial(self.pairs, names), networks, batches[0])
        size = sum(4 * leaf.size for leaf in jax.tree.leaves(pairs)) * (1 + len(networks.models))
        examples = max(1, int(memory_limit * len(jax.tree.leaves(batches[0])[0]) // max(size, 1)))
        for batch in batches:
            count = len(jax.tree.leaves(batch)[0])
            ends = np.linspace(0, count, -(-count // examples) + 1).round().astype(int)
            for a, b in itertools.pairwise(ends):
                yield jax.tree.map(lambda x, a=a, b=b: x[a:b], batch)
