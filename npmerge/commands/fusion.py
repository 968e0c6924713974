"""`npmerge align --method zipit` and `transport`: checkpoints in, the average of what units they have in common out."""

from typing import Any

from alignment import align, costs, resize, verify, widths_of
from alignment.graph import PyTree
from npmerge.arithmetic import mean_of
from npmerge.commands import fusion_page
from npmerge.commands.align_inputs import sample_of
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_requests import ACCURACY, MERGED, FusionRequest
from npmerge.commands.align_run import Made, Parents, plain, run
from npmerge.commands.alignments import ZIPIT, fusion_of
from npmerge.commands.sources import File
from npmerge.evaluate import evaluate
from npmerge.models import WithWidths, example
from npmerge.normalisation import reset_statistics
from npmerge.reports.folder import REPORT
from npmerge.statistics.collect import collect


def run_fusion(request: FusionRequest) -> dict[str, Any]:
    """Merge, measure, write the folder and print its table, as `align_run.run` does."""
    widths = request.method != ZIPIT
    return run(request, fusion_page, lambda parents: _made(request, parents), own=(MERGED, *REPORT, ACCURACY), widths=widths)


def _made(request: FusionRequest, parents: Parents) -> Made:
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
    config = WithWidths.of(parents.config, widths)
    return Made({MERGED: File(config, merged, {request.method: fusion_page.provenance(content)})}, content)


def _merged(request: FusionRequest, parents: Parents) -> tuple[PyTree, dict[str, int]]:
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
    return reset_statistics(train, merged, data.even_batches()), widths
