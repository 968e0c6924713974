"""Sites that cannot be looked at by themselves: their samples are reordered with nodes, or their weight is read elsewhere."""

from collections.abc import Callable
from typing import NamedTuple

from alignment.graph import PyTree
from alignment.tracing.trace import walked
from alignment.unification.terms import refs


class Entangled(NamedTuple):
    """What stands against moving or solving for a site by itself.

    Attributes:
        nodes: whose units its samples run over (one dense layer for every head): maps of them reorder its samples, which
            `inputs_moved` leaves as they are.
        elsewhere: whether its weight is read elsewhere too, at another site or otherwise (a tied embedding).
    """

    nodes: tuple[str, ...]
    elsewhere: bool


def entangled(apply: Callable[..., PyTree], variables: PyTree, *inputs: PyTree) -> dict[str, Entangled]:
    """The sites of a network that something stands against; the others are absent. The arguments are those of `trace`."""
    walk = walked(apply, variables, inputs)
    graph, several = walk.graph()
    nodes = {atom: name for name, atoms in several.items() for atom in atoms}
    found = {}
    for site in graph.sites:
        (value,) = walk.results[site.location]
        terms = [walk.terms.resolve(t) for d in site.samples(len(value.shape)) if (t := value.axes[d]) is not None]
        among = {nodes[ref.atom] for t in terms for ref in refs(t) if ref.atom in nodes}
        mine = Entangled(tuple(sorted(among)), walk.readers[site.path] != {site.location})
        if any(mine):
            found[site.name] = mine
    return found
