"""`npmerge align --method zipit` and `transport`: checkpoints in, the average of what units they have in common out."""

from dataclasses import dataclass
from typing import Any

from alignment import align, costs, resize, verify, widths_of
from alignment.graph import PyTree
from npmerge.arithmetic import mean_of
from npmerge.commands import fusion_page, merging
from npmerge.commands.align_inputs import sample_of
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.merging import MERGED, Made, Parents, plain
from npmerge.commands.methods import ZIPIT, fusion_of
from npmerge.evaluate import evaluate
from npmerge.models import example
from npmerge.normalisation import reset_statistics
from npmerge.reports.folder import REPORT
from npmerge.statistics.collect import collect


@dataclass(frozen=True, kw_only=True)
class Request(merging.Request):
    """What the command was asked for.

    Attributes:
        method: a key of `methods.FUSIONS`.
        width: the units of every node, as a multiple of those of the first network.
    """

    method: str
    width: float

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(self.files) if self.method == ZIPIT else float("inf")
        if not 0 < self.width <= most or self.width == float("inf"):
            limit = f" and at most the number of networks, {most}" if self.method == ZIPIT else ""
            raise ValueError(f"--width must be above 0{limit}, got {self.width:g}")
        if self.method == ZIPIT and self.data is None:
            raise ValueError(
                f"{self.method} needs activations: give examples of the task with --data FILE.npz (inputs, labels)"
            )


def run_fusion(request: Request) -> dict[str, Any]:
    """Merge, measure, write the folder and print its table, as `merging.run` does."""
    alike = request.method == ZIPIT
    return merging.run(request, fusion_page, lambda parents: _made(request, parents), own=(MERGED, *REPORT), widths=not alike)


def _made(request: Request, parents: Parents) -> Made:
    network, graph = parents.networks[0], parents.graphs[0]
    parents.advance("checking the graph")
    sample = sample_of(parents.config, parents.data, request.seed)
    verified = verify(network.apply, graph, parents.models[0], sample, key=parents.key)
    merged, widths = _merged(request, parents)
    cost = costs(network.apply, graph, parents.models[0], example(parents.config, 1))
    content = fusion_page.summary(request, parents) | {
        "verify": verified,
        "nodes": [
            {"node": name, "old": [own.nodes[name].size for own in parents.graphs], "new": widths[name]} for name in graph.nodes
        ],
        "operations": cost.flops(widths) / cost.flops(),
        "parameters": cost.parameters(widths) / cost.parameters(),
        "networks": {},
    }
    if parents.data is not None and parents.data.labels is not None:
        paths = [source.path for source in parents.sources]
        names = [p.name if sum(q.name == p.name for q in paths) == 1 else str(p) for p in paths]
        alone = dict(zip(names, parents.alone(), strict=True))
        metrics = evaluate(resize(network.apply, graph, merged, widths), merged, parents.data.batches())
        content["networks"] = alone | {"merged": plain(metrics)}
    return Made(merged, widths, content, {})


def _merged(request: Request, parents: Parents) -> tuple[PyTree, dict[str, int]]:
    """The average of the aligned networks and its widths, statistics of BatchNorm re-estimated where there are data."""
    graph, data = parents.graphs[0], parents.data
    method = fusion_of(request.method, request.width, len(parents.models), graph, activations=data is not None)
    stats = None
    if method.needs and data is not None:
        parents.advance("activations")
        stats = collect([n.apply for n in parents.networks], parents.graphs, parents.models, data.batches(), method.needs)
    parents.advance(f"merging by {request.method}")
    aligned = align(method, parents.graphs, parents.models, stats=stats, key=parents.key)
    merged = mean_of(aligned)
    widths = widths_of(graph, merged)
    if data is None or not has_statistics(merged):
        return merged, widths
    parents.advance("statistics of BatchNorm")
    train = resize(parents.networks[0].train_apply, graph, merged, widths)
    return reset_statistics(train, merged, data.whole_batches()), widths
