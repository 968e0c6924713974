"""`npmerge align --method pleas`: checkpoints in, one network of the size asked for out, and what each size is worth."""

from typing import Any

import numpy as np

from alignment import ActivationMatching, NodeMoments, WeightMatching, resize
from alignment.methods.partial import merged_units
from npmerge.commands import pleas_page
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_requests import MERGED, SIZES, PleasRequest
from npmerge.commands.align_run import Made, Parents, plain, run
from npmerge.commands.sources import File
from npmerge.evaluate import LogitEnsemble, evaluate
from npmerge.least_squares.pleas import Pleas, PreparedPleas, Sized
from npmerge.least_squares.solve import LeastSquares
from npmerge.models import WithWidths, example
from npmerge.reports.folder import REPORT
from npmerge.reports.numbers import plural
from npmerge.reports.progress import stage
from npmerge.statistics.collect import collect


def run_pleas(request: PleasRequest) -> dict[str, Any]:
    """Merge, measure, write the folder and print its table, as `align_run.run` does.

    With data, units are matched by their activations and the layers are solved by sequential least squares; without, units are
    matched by their weights.
    """
    own = (MERGED, *REPORT, "size.png", *(path.name for path in request.out.glob(SIZES)))
    return run(request, pleas_page, lambda parents: _Run(request, parents).made(), own=own)


class _Run:
    """One merge at any size: the networks, and what is done with them."""

    def __init__(self, request: PleasRequest, parents: Parents):
        self.request, self.parents = request, parents
        self.apply, self.graph, self.data = parents.networks[0].apply, parents.graphs[0], parents.data
        self.prepared = self._prepared()

    def _prepared(self) -> PreparedPleas:
        """The networks matched, for any number of sizes."""
        parents, models = self.parents, self.parents.models
        prepare, given = Pleas(WeightMatching()).prepare, dict[str, Any]()
        if self.data is not None:
            batches = self.data.even_batches() if has_statistics(models[0]) else self.data.batches()
            tell = stage(parents.advance, f"activations on {plural(len(self.data.inputs), 'example')}", len(batches))
            stats = collect(self.apply, self.graph, models, batches, [NodeMoments], progress=tell)
            prepare = Pleas(ActivationMatching(), LeastSquares(sequential=True)).prepare
            given = {"stats": stats, "batches": batches, "train_apply": parents.networks[0].train_apply}
        parents.advance("matching")
        return prepare(self.apply, self.graph, models, inputs=example(parents.config, 1), key=parents.key, **given)

    def made(self) -> Made:
        """The network of the size asked for, those of other sizes if they are, and what is said of them."""
        budget, asked = self.request.budget, self.merged(self.request.budget)
        networks: dict[str, Sized] = {}
        points: list[dict[str, Any]] = []
        for size, name in sorted({budget: MERGED, **self.others}.items()):
            networks[name] = found = asked if size == budget else self.merged(size)
            points.append({"budget": size, "cost": found.allocation.cost, **self.metrics(found)})
        drawn = self.labelled and len(points) > 1
        levels = self.levels()
        sizes = {"points": points if self.labelled else [], "levels": levels}
        content = pleas_page.summary(self.request, self.parents) | self.described(asked) | {"sizes": sizes}
        content |= {"written": [*networks, *REPORT, *(["size.png"] if drawn else [])]}
        files = {}
        for (name, found), point in zip(networks.items(), points, strict=True):
            config = WithWidths.of(self.parents.config, found.widths)
            files[name] = File(config, found.variables, {"pleas": pleas_page.provenance(content, point)})
        return Made(files, content)

    @property
    def others(self) -> dict[float, str]:
        """The sizes asked for besides, and the files of their networks."""
        if self.request.points is None:
            return {}
        grid = np.linspace(1, len(self.parents.models), self.request.points).round(9).tolist()
        return {size: SIZES.replace("*", f"{size:g}") for size in grid if size != self.request.budget}

    @property
    def labelled(self) -> bool:
        """Whether accuracy and loss can be measured."""
        return self.data is not None and self.data.labels is not None

    def merged(self, budget: float) -> Sized:
        """The network of one size, with data its statistics re-estimated."""
        on = "" if self.data is None else f" on {plural(len(self.data.inputs), 'example')}"
        text = f"merging at {budget:g} times the size of one{on}"
        self.parents.advance(text)
        return self.prepared.at(budget, progress=lambda done, layers: self.parents.advance(text, f"layer {done} of {layers}"))

    def metrics(self, made: Sized) -> dict[str, float]:
        """Accuracy and loss of a merged network; nothing without labels."""
        if self.data is None or not self.labelled:
            return {}
        apply = resize(self.apply, self.graph, made.variables, made.widths)
        return plain(evaluate(apply, made.variables, self.data.batches()))

    def levels(self) -> dict[str, dict[str, float]]:
        """Accuracy and loss of the networks and of their ensemble; nothing without labels."""
        if self.data is None or not self.labelled:
            return {}
        alone = self.parents.alone()
        ensemble = plain(evaluate(LogitEnsemble(self.apply), self.parents.models, self.data.batches()))
        mean = {name: float(np.mean([row[name] for row in alone])) for name in ensemble}
        return {"networks on average": mean, "ensemble of logits": ensemble}

    def described(self, made: Sized) -> dict[str, Any]:
        """The widths of all nodes, and what the merged network costs."""
        ratios, held = dict(made.allocation.ratios), dict(made.allocation.held)
        nodes = []
        for name, node in self.graph.nodes.items():
            merged = merged_units(node.size, ratios.get(name, 0.0))
            row = {"node": name, "old": node.size, "merged": merged, "separate": node.size - merged, "new": made.widths[name]}
            nodes.append(row | {"held": held.get(name)})
        left = {} if made.solved is None else made.solved.left
        singular = [] if made.solved is None else list(made.solved.singular)
        sizes = {"cost": made.allocation.cost, "dense": made.dense}
        solved = {"left": left, "singular": singular, "solved_on": sum(len(x) for x, _ in self.prepared.batches)}
        return {"nodes": nodes, **sizes, **solved}
