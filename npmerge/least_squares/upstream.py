"""What lies before a site: the leaves of the merged network that decide what it reads."""

from collections.abc import Sequence

import jax

from alignment.activations.taps import capture
from alignment.graph import PyTree, flatten
from alignment.program import deciding
from npmerge.least_squares.targets import Targets

GROUP = 8
"""Sites that are given the same leaves: what is run for those is compiled once for each group."""


def upstream(targets: Targets, merged: PyTree, names: Sequence[str], inputs: PyTree) -> dict[str, frozenset[str]]:
    """For each site the paths of all leaves that the inputs of its group of neighbours depend on.

    Args:
        targets: the merged network as a function.
        merged: its variables, arrays or shapes.
        names: the sites, in the order of the network.
        inputs: a batch, arrays or shapes.
    """
    graph, paths = targets.layers.graph, list(flatten(merged))

    def read(variables: PyTree, x: PyTree) -> list[jax.Array]:
        sites = capture(targets.apply, graph, variables, x, nodes=(), sites=names).sites
        return [sites[name].inputs for name in names]

    jaxpr = jax.make_jaxpr(read)(merged, inputs).jaxpr
    found: dict[str, frozenset[str]] = {}
    for first in range(0, len(names), GROUP):
        group = names[first : first + GROUP]
        found |= dict.fromkeys(group, frozenset(deciding(jaxpr, [name in group for name in names], paths)))
    return found
