"""ZipIt: the units of all models, within and across them, into the slots of one network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np
from jaxtyping import Array

from alignment.activations.collected import joint_moments
from alignment.activations.moments import Joint, JointMoments
from alignment.base import MapAlignment, Stats, Theta
from alignment.checks import check_choice, check_fraction, check_number, unknown
from alignment.graph import Graph, Node, PyTree
from alignment.maps import NodeMap, identity
from alignment.methods.activation_matching import ActivationMatching
from alignment.methods.heads import families, permuted
from alignment.methods.matchers import Slots, exact, greedy, inside_budget, k_means, similarity
from alignment.per_model import Graphs, of_one_width
from alignment.separability import rigid


@dataclass(frozen=True)
class ZipIt(MapAlignment):
    """Zip the units that are most alike, of several models or of one, into one unit each (Stoica et al. 2024, "ZipIt!").

    At each node the units of all N models are matched by their correlation, until `width` of them remain. With P the 0/1
    matrix of units by slots and P_k its rows of model k, M = P^T with rows divided by their sums merges and U_k = P_k unmerges:
    W = sum_k M_k W_k U_k. The plain average of the transported models is that network: the maps are push_k = N M_k and
    pull_k = U_k. Two units of one model in a slot are averaged where they are made and read by the sum of what read them.
    Run the result by `resize(apply, graph, merged)` where the width changes, and re-estimate BatchNorm statistics, which
    are mapped as weights are. Needs `JointMoments`, and models of one width.

    The greedy matcher joins the two slots of the highest correlation, again and again; a joined slot is as like another as
    the less alike of the two was, times alpha. Ties go to the first pair. Published searches went over alpha in 1e-4 .. 1 and
    beta in 0 .. 1 (best on CIFAR-50: 1e-4 and 0.075). A discount makes a third model's unit less welcome than a second
    match inside a model: with more than two models prefer alpha = 1 or beta = 0. Where no pair is left that may be joined,
    a round ends and joined slots may be joined again; if still none is (three or more models), the smallest slot is dissolved
    and its units go each to the slot without their model's which they are most alike. Units that do not vary are paired with
    those of the other models in ascending order.

    Nodes whose units are read just as they are written (`separability.rigid`) keep their width and are permuted to model 0, as
    by `ActivationMatching`: heads and whatever else indexes nodes, together with what is inside, and an embedding that is the
    output layer too.

    Attributes:
        width: what remains of the units of all models together, in (0, 1]; None for 1 / N, the width of one model.
        alpha: what a slot's correlations are multiplied by when it has been joined, in [0, 1]; at 0 it is not joined again
            while other pairs are left.
        beta: the share, in [0, 1], of what each model gives up that may be matched inside it, rounded down; 0 for none. A
            slot counts as of the model of its first unit. Below the width of one model some of it is needed.
        matcher: "greedy"; "exact", the best pairs of two models by linear assignment; "k-means" of the rows of the
            correlation matrix; "identity", unit i with unit i, the plain average, without data. The last three know no alpha
            and beta.
        start: the first node to zip, in the order of `graph.nodes`; None for the first of all.
        stop: the last. Nodes outside have no map: the models keep their own units there, `npmerge.multi_head` runs them with a
            stem and a head each.

    Example:
        >>> apply = lambda v, x: jnp.maximum(x @ v["up"], 0) @ v["down"]
        >>> a = {"up": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[0.0, 2.0], [2.0, 0.0]]), "down": jnp.ones((2, 1))}
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> graph, zipping = alignment.trace(apply, a, x), alignment.ZipIt()
        >>> stats = nm.collect(apply, graph, [a, b], [(x, None)], zipping.needs)
        >>> nm.Average()(nm.stack_models(alignment.align(zipping, graph, [a, b], stats=stats)))["up"].tolist()
        [[1.5, 0.0], [0.0, 1.5]]
    """

    width: float | None = None
    alpha: float = 0.3
    beta: float = 0.125
    matcher: Literal["greedy", "exact", "k-means", "identity"] = "greedy"
    start: str | None = None
    stop: str | None = None

    needs = (JointMoments,)

    def __post_init__(self) -> None:
        if self.width is not None:
            check_fraction("width, the share of all units that remains,", self.width)
            check_number("width", self.width, positive=True)
        check_fraction("alpha", self.alpha)
        check_fraction("beta", self.beta)
        check_choice("matcher", self.matcher, ("greedy", "exact", "k-means", "identity"))
        for field, name in (("start", self.start), ("stop", self.stop)):
            if not isinstance(name, str | None):
                raise ValueError(f"{field} must be the name of a node or None, got {name!r}")

    def init(self, graph: Graphs, models: Sequence[PyTree], *, stats: Stats | None = None, key: Array | None = None) -> Theta:
        """For each model, node -> its map: push (*copies, new, old) and pull (*copies, old, new), float32.

        Raises:
            ValueError: nodes of several widths, an unknown `start` or `stop`, missing statistics, or a width that cannot be
                reached.
        """
        own, count = of_one_width(self, graph, models), len(models)
        nodes, kept = self.nodes(own), rigid(own)
        widths = {name: self._remaining(own.nodes[name], count) for name in nodes if name not in kept}
        if self.matcher == "identity" or (count == 1 and all(own.nodes[n].size == width for n, width in widths.items())):
            same = {name: identity(own.nodes[name].size, own.nodes[name].copies) for name in nodes}
            return [jax.device_put(same) for _ in models]
        moments = joint_moments(stats, self, (own,) * count, nodes)
        theta = permuted(own, [name for name in nodes if name in kept], moments, count, ActivationMatching())
        for name in [name for name in widths if name in moments]:
            for found, m in zip(theta, self._zipped(own.nodes[name], moments[name], count, widths[name]), strict=True):
                found[name] = m
        return jax.device_put(theta)

    def nodes(self, graph: Graph) -> list[str]:
        """The nodes from `start` to `stop`. Heads and what is inside them are among them together or not at all.

        Raises:
            ValueError: if one of the names is unknown (the nearest is told), or `stop` comes before `start`.
        """
        names = list(graph.nodes)
        first = _place(names, self.start, "start") if self.start is not None else 0
        last = _place(names, self.stop, "stop") if self.stop is not None else len(names) - 1
        if first > last and names:
            raise ValueError(f"no nodes from start {self.start!r} to stop {self.stop!r}: the order is {', '.join(names)}")
        chosen = set(names[first : last + 1])
        whole = {name for family in families(graph) if chosen.issuperset(family) for name in family}
        return [name for name in names if name in whole]

    def _remaining(self, node: Node, models: int) -> int:
        """The number of slots of a node. Raises ValueError if the matcher cannot come down, or up, to it."""
        units = models * node.size
        width = node.size if self.width is None else int(self.width * units + 1e-4)
        inside = inside_budget(units, models, width, self.beta) if self.matcher == "greedy" else 0
        least = {"greedy": node.size - inside, "k-means": 1}.get(self.matcher, node.size)
        if width < max(least, 1):
            raise ValueError(
                f"width {self.width} leaves {width} of the {units} units of {models} models at node {node.name!r}: the "
                f"{self.matcher} matcher needs {max(least, 1)}"
                + (f" with beta {self.beta}" if self.matcher == "greedy" else "")
            )
        if self.matcher == "identity" and width > node.size:
            raise ValueError(f"the identity matcher keeps the width of one model, 1 / {models}: got {self.width}")
        if self.matcher == "exact" and models > 2:
            raise ValueError(f"the exact matcher takes two models, got {models}")
        return width

    def _zipped(self, node: Node, moments: Joint, models: int, width: int) -> list[NodeMap]:
        """For each model the map of one node, all copies."""
        mean, covariance = np.asarray(moments.mean), np.asarray(moments.covariance)
        every = [Joint(moments.samples, mean[c], covariance[c]) for c in np.ndindex(*node.copies)]
        push, pull = zip(*[_matrices(self._slots(joint, models, width), models) for joint in every], strict=True)
        push, pull = (np.stack(x, 1).reshape(models, *node.copies, *x[0].shape[1:]) for x in (push, pull))
        return [NodeMap(push[k], pull[k]) for k in range(models)]

    def _slots(self, moments: Joint, models: int, width: int) -> Slots:
        scores = similarity(moments, models)
        if self.matcher == "exact":
            return exact(scores, width)
        if self.matcher == "k-means":
            return k_means(scores, width)
        return greedy(scores, models, width, self.alpha, self.beta)


def _matrices(slots: Slots, models: int) -> tuple[np.ndarray, np.ndarray]:
    """N M_k (models, slots, units) and U_k (models, units, slots), float32."""
    members = np.eye(slots.max() + 1, dtype=np.float32)[slots]
    push, pull = (x.reshape(models, -1, x.shape[-1]) for x in (models / members.sum(0) * members, members))
    return np.swapaxes(push, 1, 2), pull


def _place(names: Sequence[str], name: str, field: str) -> int:
    if name not in names:
        raise ValueError(unknown(f"node in {field}", name, names))
    return names.index(name)
