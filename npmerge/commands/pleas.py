"""`npmerge align --method pleas`: checkpoints in, one network of the size asked for out, and what each size is worth."""

from typing import Any

import numpy as np

from alignment import ActivationMatching, NodeMoments, WeightMatching, resize
from alignment.methods.partial import merged_units
from npmerge.commands import pleas_page
from npmerge.commands.align_measures import has_statistics
from npmerge.commands.align_requests import MERGED, PleasRequest
from npmerge.commands.align_run import Made, Parents, plain, run
from npmerge.commands.sources import File
from npmerge.evaluate import LogitEnsemble, evaluate
from npmerge.least_squares.pleas import Pleas, PreparedPleas, Sized
from npmerge.least_squares.solve import LeastSquares
from npmerge.models import WithWidths, example
from npmerge.reports.folder import REPORT
from npmerge.statistics.collect import collect


def run_pleas(request: PleasRequest) -> dict[str, Any]:
    """Merge, measure, write the folder and print its table, as `align_run.run` does.

    With data, units are matched by their activations and the layers are solved by sequential least squares; without, units are
    matched by their weights.
    """
    return run(request, pleas_page, lambda parents: _Run(request, parents).made(), own=(MERGED, *REPORT, "size.png"))


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
            parents.advance("activations")
            stats = collect(self.apply, self.graph, models, self.data.batches(), [NodeMoments])
            batches = self.data.whole_batches() if has_statistics(models[0]) else self.data.batches()
            prepare = Pleas(ActivationMatching(), LeastSquares(sequential=True)).prepare
            given = {"stats": stats, "batches": batches, "train_apply": parents.networks[0].train_apply}
        parents.advance("matching")
        return prepare(self.apply, self.graph, models, inputs=example(parents.config, 1), key=parents.key, **given)

    def made(self) -> Made:
        """The network of the size asked for, and what is said of it."""
        found = self.merged(self.request.budget)
        sizes = self.sizes(found)
        content = pleas_page.summary(self.request, self.parents) | self.described(found) | {"sizes": sizes}
        config = WithWidths.of(self.parents.config, found.widths)
        return Made({MERGED: File(config, found.variables, {"pleas": pleas_page.provenance(content)})}, content)

    def merged(self, budget: float) -> Sized:
        """The network of one size, with data its statistics re-estimated."""
        self.parents.advance(f"merging at {budget:g} times the size of one")
        return self.prepared.at(budget)

    def sizes(self, made: Sized) -> dict[str, Any]:
        """Accuracy and loss at every size, and of the networks and their ensemble; empty without labels."""
        if self.data is None or self.data.labels is None:
            return {"points": [], "levels": {}}
        batches, models = self.data.batches(), self.parents.models
        grid = sorted({*np.linspace(1, len(models), self.request.points).round(9).tolist(), self.request.budget})
        points = []
        for budget in grid:
            found = made if budget == self.request.budget else self.merged(budget)
            metrics = evaluate(resize(self.apply, self.graph, found.variables, found.widths), found.variables, batches)
            points.append({"budget": budget, "cost": found.allocation.cost, **plain(metrics)})
        alone = self.parents.alone()
        ensemble = plain(evaluate(LogitEnsemble(self.apply), models, batches))
        mean = {name: float(np.mean([row[name] for row in alone])) for name in ensemble}
        return {"points": points, "levels": {"networks on average": mean, "ensemble of logits": ensemble}}

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
