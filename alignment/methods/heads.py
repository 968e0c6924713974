"""Nodes that are aligned together (heads and what is inside them), and the alignment of those that are only permuted."""

from collections.abc import Collection, Mapping

from alignment.activations.moments import Joint, against_reference
from alignment.graph import Graph
from alignment.maps import NodeMap, identity, permutation
from alignment.methods.activation_matching import ActivationMatching


def families(graph: Graph) -> list[list[str]]:
    """The nodes that have to be aligned together: heads with what is inside them, every other node alone. In graph order."""
    found: dict[str, list[str]] = {}
    for node in graph.nodes.values():
        outer = next((i for i in node.index if i in graph.nodes), node.name)
        found.setdefault(outer, []).append(node.name)
    return list(found.values())


def permuted(
    graph: Graph, names: Collection[str], moments: Mapping[str, Joint], models: int, matching: ActivationMatching
) -> list[dict[str, NodeMap]]:
    """For each model the permutations of heads and of what is inside them that bring it to model 0.

    Args:
        graph: that of all models.
        names: the nodes, whole families. Those without moments that have no node with moments inside get no map.
        moments: of those that have features, in all models.
        models: how many there are.
        matching: what finds the permutations.
    """
    pairs = {name: against_reference(moments[name], models) for name in names if name in moments}
    found = matching.of_moments(graph, pairs, models)
    moved = [name for name in names if name in found[-1]]
    still = {name: identity(graph.nodes[name].size, graph.nodes[name].copies) for name in moved}
    return [still, *({name: permutation(index[name]) for name in moved} for index in found[1:])]
