"""CCA: the linear map of each node that brings the activations to maximal correlation."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from alignment.activations.correlation import Spectrum, spectrum
from alignment.activations.moments import Moments
from alignment.checks import check_choice, check_number
from alignment.finite import check_finite
from alignment.graph import Graph
from alignment.maps import Maps, NodeMap, permutation
from alignment.methods.by_activations import ActivationAlignment, check_groups, solved_nodes
from alignment.orthogonal import polar


@dataclass(frozen=True)
class CCA(ActivationAlignment):
    """Whiten the other model's features, rotate them onto the reference's, colour them as the reference's.

    T = Sxx^1/2 . polar(Sxx^-1/2 Sxy Syy^-1/2) . Syy^-1/2 with gamma added to the diagonals of Sxx and Syy (Horoi et al. 2024,
    "Harmony in Diversity", section 4). A node that indexes others (heads) is permuted. Needs `NodeMoments`.

    Where a covariance is singular (dead units, fewer samples than units, a node wider than what feeds it), the formula holds
    on the directions that features take. Between the null spaces T is the isometry that `polar` defines: dead units to dead
    units in ascending order, the identity where both models have the same. So every gamma, zero too, gives an invertible map,
    and none depends on the solver.

    Theta is a start for learning: it holds T alone, and `maps` pulls back by its inverse.

    Attributes:
        gamma: the regularisation; large values tend to `Procrustes`, small ones trust directions with little variance. With
            fewer samples than units and a gamma below a hundredth of the mean variance, a warning names the node.
        scale: "relative" multiplies gamma by each covariance's mean eigenvalue, so that one value suits every layer;
            "absolute" adds it as it is, as published.
        approximate: also map nodes whose group is not linear (units between elementwise nonlinearities). That changes what
            the network computes; afterwards, re-estimate BatchNorm statistics. Otherwise they are refused.

    Example:
        >>> apply = lambda v, x: (x @ v["up"]) @ v["down"]  # nothing between the layers: any invertible map will do
        >>> a = {"up": jnp.eye(2), "down": jnp.ones((2, 1))}
        >>> b = {"up": jnp.array([[1.0, 1.0], [0.0, 2.0]]), "down": jnp.array([[0.5], [0.5]])}  # the same function
        >>> x = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
        >>> graph, cca = alignment.trace(apply, a, x), alignment.CCA(gamma=1e-3)
        >>> stats = nm.collect(apply, graph, [a, b], [(x, None)], cca.needs)
        >>> aligned = alignment.align(cca, graph, [a, b], stats=stats)[1]
        >>> np.allclose(aligned["up"], a["up"], atol=0.01)  # the mixture undone
        True
    """

    gamma: float = 0.1
    scale: Literal["relative", "absolute"] = "relative"
    approximate: bool = False

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma)
        check_choice("scale", self.scale, ("relative", "absolute"))

    def check(self, graph: Graph, moments: Mapping[str, Moments]) -> None:
        """Raise ValueError naming nodes that linear maps do not suit, unless `approximate`; warn where samples are few."""
        nodes = solved_nodes(graph, moments)
        if not self.approximate:
            check_groups(self, graph, nodes, "linear")
        few = [n for n in nodes if moments[n].samples <= graph.nodes[n].size and self._is_small(moments[n])]
        if few:
            shown = ", ".join(f"{n!r} ({int(moments[n].samples)} for {graph.nodes[n].size} units)" for n in few[:5])
            warnings.warn(
                f"CCA with gamma {self.gamma:g} has no more samples than units at {shown}: the covariances are singular and "
                "what lies outside the samples is completed by convention; give more data or a larger gamma",
                stacklevel=4,
            )

    def solve(self, moments: Moments) -> Float[np.ndarray, "units units"]:
        """T."""
        covariance, cross = (np.asarray(m, np.float64) for m in (moments.covariance, moments.cross[1]))
        if min(np.trace(covariance[0]), np.trace(covariance[1])) <= 1e-30:
            return np.eye(len(cross), dtype=np.float32)  # dead in one of the models
        x, y = map(spectrum, covariance)
        added = [self._added(s) for s in (x, y)]
        # common to both, so that the null block is an isometry, and regularised as the rest: some directions live in one of the
        # models alone, and for a large gamma their roots must not be far apart
        null = np.sqrt(x.values[x.alive].mean() * y.values[y.alive].mean()) + np.sqrt(added[0] * added[1])
        root_x, root_y = (np.sqrt(np.where(s.alive, s.values + a, null)) for s, a in zip((x, y), added, strict=True))
        seen = x.power(x.alive / root_x) @ cross @ y.power(y.alive / root_y)
        return (x.power(root_x) @ polar(seen) @ y.power(1 / root_y)).astype(np.float32)

    def maps(self, theta: list, graph: Graph) -> Sequence[Maps]:
        """T and its inverse; permutations of nodes that index others. Raises ValueError unless theta is finite (or traced)."""
        check_finite(theta, "theta")
        return [{node: _map(jnp.asarray(x)) for node, x in model.items()} for model in theta]

    def _is_small(self, m: Moments) -> bool:
        variance = np.diagonal(np.asarray(m.covariance, np.float64), axis1=-2, axis2=-1).mean()
        return self.gamma < 0.01 * (1 if self.scale == "relative" else variance)

    def _added(self, s: Spectrum) -> float:
        """What regularises the eigenvalues."""
        return self.gamma * float(np.maximum(s.values, 0).mean()) if self.scale == "relative" else self.gamma


def _map(x: Array) -> NodeMap:
    return permutation(x) if jnp.issubdtype(x.dtype, jnp.integer) else NodeMap(x, jnp.linalg.inv(x))
