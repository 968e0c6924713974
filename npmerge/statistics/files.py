"""Statistics of a run as files: one for each kind, in a folder that belongs to one graph."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.activations.moments import Joint, JointMoments, Moments, NodeMoments
from alignment.checks import check_kinds
from alignment.graph import Graph, PyTree
from npmerge.checkpoint import load, load_record, save
from npmerge.statistics.collected import Collected
from npmerge.statistics.fisher_information import DiagonalFisher
from npmerge.statistics.input_grams import InputGram, SiteGram
from npmerge.statistics.kronecker import KroneckerFactors, SiteFactors

RECORDS: dict[type, type | None] = {
    DiagonalFisher: None,
    InputGram: SiteGram,
    JointMoments: Joint,
    KroneckerFactors: SiteFactors,
    NodeMoments: Moments,
}
"""What each statistic keeps by name of a node or site; None is a tree like the variables."""


def save_statistics(folder: Path | str, stats: Mapping[type, Any], graph: Graph, *, overwrite: bool = False) -> None:
    """Write what `collect` returned, each statistic as a checkpoint of its name.

    Args:
        folder: made if it is not there.
        stats: by type, as returned.
        graph: that they were collected with.
        overwrite: whether existing files may be replaced.

    Raises:
        ValueError: a statistic of another kind, or what `npmerge.checkpoint.save` raises.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 2))}, jnp.ones((4, 2))
        >>> graph = nm.trace(apply, v, x)
        >>> stats = nm.collect(apply, graph, [v], [(x, None)], [nm.InputGram()])
        >>> nm.save_statistics("statistics", stats, graph)  # writes statistics/InputGram.safetensors
        >>> print(nm.load_statistics("statistics", graph)[nm.InputGram]["w"].gram)
        [[[1. 1.]
          [1. 1.]]]
    """
    check_kinds("save_statistics takes (folder, stats, graph)", (folder, Path | str), (stats, Mapping), (graph, Graph))
    folder = Path(folder)
    if odd := [kind for kind in stats if kind not in RECORDS]:
        name = getattr(odd[0], "__name__", repr(odd[0]))
        raise ValueError(f"cannot save {name}: expected some of {', '.join(k.__name__ for k in RECORDS)}")
    folder.mkdir(parents=True, exist_ok=True)
    for kind, value in stats.items():
        tree = value if RECORDS[kind] is None else {name: _fields(record) for name, record in value.items()}
        save(_file(folder, kind), tree, {"graph": _described(graph)}, overwrite=overwrite)


def load_statistics(folder: Path | str, graph: Graph) -> dict[type, Any]:
    """What `save_statistics` wrote, for merges to read.

    Args:
        folder: with statistics.
        graph: of the same function, traced again with any number of examples.

    Raises:
        ValueError: no statistics, those of another graph (the first difference is named), or a damaged file.

    Example:
        >>> apply, v, x = lambda v, x: x @ v["w"], {"w": jnp.zeros((2, 2))}, jnp.ones((4, 2))
        >>> graph = nm.trace(apply, v, x)
        >>> nm.save_statistics("statistics", nm.collect(apply, graph, [v], [(x, None)], [nm.InputGram()]), graph)
        >>> print(nm.load_statistics("statistics", graph)[nm.InputGram]["w"].gram)
        [[[1. 1.]
          [1. 1.]]]
        >>> nm.load_statistics("statistics", nm.trace(apply, {"w": jnp.zeros((2, 3))}, x))
        Traceback (most recent call last):
            ...
        ValueError: statistics/InputGram.safetensors is of another graph: the shape of 'w' is [2, 2] there and [2, 3] here
    """
    check_kinds("load_statistics takes (folder, graph)", (folder, Path | str), (graph, Graph))
    found = {kind: file for kind in RECORDS if (file := _file(Path(folder), kind)).exists()}
    if not found:
        raise ValueError(f"{folder} holds no statistics: expected some of {', '.join(k.__name__ for k in RECORDS)}")
    return Collected((kind, _loaded(file, RECORDS[kind], graph)) for kind, file in found.items())


def _file(folder: Path, kind: type) -> Path:
    return folder / f"{kind.__name__}.safetensors"


def _loaded(file: Path, record: type | None, graph: Graph) -> PyTree:
    theirs, ours = load_record(file).get("graph", {}), _described(graph)
    for name in [*theirs, *ours]:
        if theirs.get(name) != ours.get(name):
            raise ValueError(f"{file} is of another graph: {name} is {theirs.get(name)} there and {ours.get(name)} here")
    tree = load(file)
    if record is None:
        return tree
    uses = (*graph.sites, *graph.lookups)
    sites = {use.name: {"site": use} for use in uses} if record in (SiteGram, SiteFactors) else {}
    return {name: record(**fields, **sites.get(name, {})) for name, fields in tree.items()}


def _fields(record: Any) -> dict[str, Any]:
    """The arrays of a record."""
    if not dataclasses.is_dataclass(record):
        return dict(record._asdict())
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if not f.metadata.get("static")}


def _described(graph: Graph) -> dict[str, Any]:
    """What tells graphs apart, as JSON: shapes of leaves, nodes with their copies, where and what sites and lookups are."""
    leaves = {f"the shape of {path!r}": list(shape) for path, shape in graph.shapes.items()}
    nodes = {f"node {n.name!r}": [n.size, n.group, *n.copies] for n in graph.nodes.values()}
    uses = {f"site {s.name!r}": [s.primitive, list(s.location), list(s.shape)] for s in (*graph.sites, *graph.lookups)}
    return leaves | nodes | uses
