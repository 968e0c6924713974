"""Model fusion by optimal transport: networks of any widths, merged at the width that is asked for."""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array, Float

from alignment.activations.collected import joint_moments
from alignment.activations.moments import Joint, JointMoments
from alignment.base import MapAlignment, Stats, Theta
from alignment.checks import check_choice, check_number
from alignment.graph import Graph, PyTree
from alignment.maps import NodeMap, identity
from alignment.methods.activation_matching import ActivationMatching
from alignment.methods.couplings import coupling, masses_of, support
from alignment.methods.heads import families, permuted
from alignment.methods.incoming import IncomingWeights
from alignment.per_model import Graphs, graphs_of
from alignment.separability import rigid
from alignment.widths import Width, check_width, new_widths

Plan = Float[np.ndarray, "*copies new old"]
Source = Callable[[str, Theta], Joint | None]
"""A node and the maps found so far -> the second moments of its features in all models, if there are any."""


@dataclass(frozen=True)
class OptimalTransport(MapAlignment):
    """Couple the units of every model with those of one network by optimal transport, softly or not, whatever their numbers.

    "Model Fusion via Optimal Transport" (Singh and Jaggi 2020). At each node, T_k minimises <T, C> over the couplings of the
    new units with those of model k, where C_ij is the Euclidean distance of the features of i and j. Then
        push = diag(1 / T 1) T       each new unit is the mean of the old ones coupled with it,
        pull = diag(1 / T' 1) T'     each old unit is read off as the mean of the new ones coupled with it.
    Rows of both sum to 1: what is read from units that are merged is summed, what is read from a unit that is split is divided
    among its parts, and so the function stays as it is wherever coupled units are equal (the published formula divides by the
    masses of the new units on both sides, the same at equal widths, and n_new / n_old of the pull here at others). The plain
    average of the transported models is the merged network.

    The new units of a node are those of the first model that has them in the number wanted, which is model 0 by default, and
    masses are uniform: 1 / n and 1 / n_k. Where no model has that number they are made of model 0's: to widen, its units stand
    in turn until there are enough; to narrow, units are chosen greedily so that the sum of all distances to the nearest chosen
    one falls most, and the others join the nearest. A new unit then has the mass of what it is made of, for then copies of
    model 0 are transported as model 0 is; when every unit is split or joined as often, that is the uniform one again.

    Nodes whose units are read just as they are written (`separability.rigid`) keep their width and are only permuted, as by
    `ActivationMatching("euclidean")`: heads, with what is inside them, and an embedding that is the output layer too.
    Theta is, for each model, node -> `NodeMap`; learned, its matrices are free. Running statistics are averaged as units are:
    re-estimate them afterwards. Networks of other widths than their code has run through `resize`.

    Attributes:
        cost: what a unit's features are. "activations", over the samples of `JointMoments`, which it needs; each node is
            solved for on its own. "weights", all that makes the unit, in the new units of the nodes before it, node after
            node in the order of the network: of a residual stream what is written first, of heads what no two nodes inside
            them make together.
        regularisation: the weight of the entropy of T, in units of the mean of each node's C; 0 for exact transport.
        width: the units of every merged node that may change, or (node, units) for some of them; None for those of model 0.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> narrow = {"up": jnp.array([[1.0, 3.0]]), "down": jnp.array([[1.0], [3.0]])}
        >>> wide = {"up": jnp.array([[3.0, 1.0, 3.0, 1.0]]), "down": jnp.array([[1.5], [0.5], [1.5], [0.5]])}
        >>> models, x = [narrow, wide], jnp.ones((1, 1))
        >>> graphs = [alignment.trace(apply, model, x) for model in models]
        >>> moved = alignment.align(alignment.OptimalTransport("weights"), graphs, models)
        >>> moved[1]["up"].tolist(), moved[1]["down"].tolist()  # four units in the places of two, the same function
        ([[1.0, 3.0]], [[1.0], [3.0]])
    """

    cost: Literal["activations", "weights"] = "activations"
    regularisation: float = 0
    width: Width = None

    def __post_init__(self) -> None:
        check_choice("cost", self.cost, ("activations", "weights"))
        check_number("regularisation", self.regularisation)
        check_width(self.width)

    @property
    def needs(self) -> tuple[type, ...]:
        """`JointMoments` for the cost "activations"."""
        return (JointMoments,) if self.cost == "activations" else ()

    def init(self, graph: Graphs, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> Theta:
        """For each model, node -> its map (*copies, new, old) and back. A single model that keeps its widths has none.

        Args:
            graph: that of all models, or one for each.
            models: their variables.
            stats: what `npmerge.collect` returned for `needs`.
            key: unused.

        Raises:
            ValueError: missing statistics, or those of other models; graphs with other nodes; another number of heads, or of
                units inside them; a width for a node that cannot change or that the graph does not have.

        Warns:
            UserWarning: nodes without features (a tap, or weights that make them) stay as they are.
        """
        graphs = graphs_of(graph, models)
        widths = new_widths(graphs, self.width)
        theta: Theta = [{} for _ in models]
        if len(models) == 1 and all(node.size == widths[name] for name, node in graphs[0].nodes.items()):
            return theta
        source = self._source(graphs, models, stats)
        left, seen, before = families(graphs[0]), set[str](), -1
        while len(left) != before:  # by weights, a node waits until some of those that make it are settled
            before = len(left)
            found = [self._settle(family, source, graphs, widths, theta) for family in left]
            left = [family for family, names in zip(left, found, strict=True) if not names]
            seen.update(*found)
        if (missing := _unseen(seen, graphs, widths)) and self.cost == "weights":  # by activations, this has been told
            warnings.warn(
                f"OptimalTransport leaves nodes without weights to compare as they are: {', '.join(missing)}", stacklevel=3
            )
        return jax.device_put(theta)

    def _source(self, graphs: Sequence[Graph], models: Sequence[PyTree], stats: Stats | None) -> Source:
        if self.cost == "weights":
            return IncomingWeights(graphs, models).joint
        moments = joint_moments(stats, self, graphs, graphs[0].nodes)
        return lambda name, theta: moments.get(name)

    def _settle(
        self, family: Sequence[str], source: Source, graphs: Sequence[Graph], widths: Mapping[str, int], theta: Theta
    ) -> list[str]:
        """Find the maps of one node, or of heads and what is inside them. Returns those that have features by now."""
        found = {name: source(name, theta) for name in family}
        seen = {name: m for name, m in found.items() if m is not None}
        if not seen:
            return []
        if len(family) > 1 or family[0] in rigid(graphs[0]):
            still = {name: identity(graphs[0].nodes[name].size, graphs[0].nodes[name].copies) for name in family}
            matching = ActivationMatching("euclidean")
            maps = [still | moved for moved in permuted(graphs[0], family, seen, len(graphs), matching)]
        else:
            (name,) = family
            plans = self._plans(seen[name], [graph.nodes[name].size for graph in graphs], widths[name])
            maps = [{name: _map(plan)} for plan in plans]
        for model, new in zip(theta, maps, strict=True):
            model.update(new)
        return list(seen)

    def _plans(self, moments: Joint, sizes: Sequence[int], width: int) -> list[Plan]:
        """For each model the coupling of one node, copies in front."""
        mean, covariance = np.asarray(moments.mean, np.float64), np.asarray(moments.covariance, np.float64)
        square = covariance + mean[..., :, None] * mean[..., None, :]
        each = [self._of_copy(square[c], sizes, width) for c in np.ndindex(*mean.shape[:-1])]
        return [np.stack(plans).reshape(*mean.shape[:-1], *plans[0].shape) for plans in zip(*each, strict=True)]

    def _of_copy(self, square: Float[np.ndarray, "all all"], sizes: Sequence[int], width: int) -> list[Plan]:
        """The couplings of the units of every model with the new ones, from the second moments of all of them."""
        ends = np.cumsum(sizes)
        of = [slice(end - n, end) for end, n in zip(ends, sizes, strict=True)]
        chosen = sizes.index(width) if width in sizes else 0
        own = square[of[chosen], of[chosen]]
        made = support(_distances(own, own, own), width)
        push, masses = made / made.sum(1, keepdims=True), masses_of(made)
        new = push @ own @ push.T
        plans = []
        for k, n in enumerate(sizes):
            if k == chosen:
                plans.append(made)
                continue
            cost = _distances(new, push @ square[of[chosen], of[k]], square[of[k], of[k]])
            plans.append(coupling(cost, masses, np.ones(n, int), regularisation=self.regularisation * cost.mean()))
        return plans


def _map(plan: Plan) -> NodeMap:
    push, pull = (p / p.sum(-1, keepdims=True) for p in (plan, plan.swapaxes(-1, -2)))
    return NodeMap(push.astype(np.float32), pull.astype(np.float32))


def _distances(
    ours: Float[np.ndarray, "n n"], cross: Float[np.ndarray, "n m"], theirs: Float[np.ndarray, "m m"]
) -> Float[np.ndarray, "n m"]:
    """sqrt(E[(a - b)^2]) from second moments."""
    return np.sqrt(np.maximum(np.add.outer(np.diagonal(ours), np.diagonal(theirs)) - 2 * cross, 0))


def _unseen(seen: Collection[str], graphs: Sequence[Graph], widths: Mapping[str, int]) -> list[str]:
    """Nodes without features, which stay as they are. Raises ValueError if they cannot."""
    through = {index for name in seen for index in graphs[0].nodes[name].index}  # matched by what is inside them
    missing = [name for name in graphs[0].nodes if name not in seen and name not in through]
    for name in missing:
        if any(graph.nodes[name].size != widths[name] for graph in graphs):
            raise ValueError(f"node {name!r} has no features to compare, so it cannot become {widths[name]} units wide")
    return missing
