"""`npmerge align --method pleas`: checkpoints in, one network of the size asked for out, and what each size is worth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from alignment import ActivationMatching, NodeMoments, WeightMatching, resize, trace
from alignment.allocation import check_budget
from alignment.partial import merged_units
from npmerge.checkpoint import save_network
from npmerge.commands import pleas_page as page
from npmerge.commands.align import gathered_warnings, progress
from npmerge.commands.align_inputs import Data, Source, check_numbers, read_data, read_networks
from npmerge.commands.align_measures import has_statistics
from npmerge.evaluate import LogitEnsemble, Metrics, evaluate
from npmerge.figures import size_figure
from npmerge.least_squares import LeastSquares
from npmerge.models import Config, WithWidths, abstract, example
from npmerge.pleas import Pleas, PreparedPleas, Sized
from npmerge.report import OutputFolder, write_report
from npmerge.statistics import collect

MERGED = "merged.safetensors"
OWN = (MERGED, "report.md", "summary.json", "size.png")


@dataclass(frozen=True)
class Request:
    """What the command was asked for.

    Attributes:
        files: checkpoints of the networks to merge.
        budget: the size of the merged network, in operations of one.
        points: sizes for the figure, from one network to all.
        data: an .npz file with `inputs` and perhaps `labels`.
        seed: of the matching.
        out: the folder to write.
        force: whether it may have files in it.
        command: the command line.
    """

    files: tuple[Path, ...]
    budget: float
    points: int
    data: Path | None
    seed: int
    out: Path
    force: bool
    command: str

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise ValueError(f"merging needs two checkpoints or more, got {len(self.files)}")
        check_budget(self.budget, len(self.files))
        check_numbers(self.seed, self.points)
        if clash := [path for path in self.files if (self.out / MERGED).resolve() == path.resolve()]:
            raise ValueError(f"{clash[0]} would be overwritten by the merged network: choose another folder with --out")


def run_pleas(request: Request) -> dict[str, Any]:
    """Merge, measure, write the folder and print its table.

    With data, units are matched by their activations and the layers are solved by sequential least squares; without, units are
    matched by their weights.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for anything in the request or the files that cannot be used; then nothing is written.
    """
    began = time.perf_counter()
    with (
        OutputFolder(request.out, force=request.force, own=OWN) as folder,
        gathered_warnings() as warned,
        progress() as advance,
    ):
        advance("reading")
        config, sources = read_networks(request.files)
        data = read_data(request.data, config) if request.data else None
        run = _Run(request, config, sources, data, advance)
        made = run.merged(request.budget)
        sizes = run.sizes(made)
        advance("writing")
        content = page.summary(request, config, sources, data) | run.described(made) | {"sizes": sizes, "warnings": warned()}
        record = {"pleas": page.provenance(content)}
        save_network(folder / MERGED, WithWidths.of(config, made.widths), made.variables, record)
        figures = {"size": size_figure(sizes["points"], sizes["levels"], request.budget)} if sizes["points"] else {}
        write_report(folder, page=page.markdown(content), summary=content, figures=figures)
    console, took = Console(), time.perf_counter() - began
    for line in [*page.told(content), f"{took:.0f} s. Written to {request.out}: {', '.join(content['written'])}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return content


class _Run:
    """One merge at any size: the networks, and what is done with them."""

    def __init__(
        self, request: Request, config: Config, sources: Sequence[Source], data: Data | None, advance: Callable[[str], None]
    ):
        self.request, self.config, self.data, self.advance = request, config, data, advance
        self.models = [source.variables for source in sources]
        self.network = abstract(config)
        advance("tracing")
        self.graph = trace(self.network.apply, self.models[0], example(config) if data is None else data.inputs[:2])
        self.prepared = self._prepared()

    def _prepared(self) -> PreparedPleas:
        """The networks matched, for any number of sizes."""
        apply, key = self.network.apply, jax.random.key(self.request.seed)
        prepare, given = Pleas(WeightMatching()).prepare, dict[str, Any]()
        if self.data is not None:
            self.advance("activations")
            stats = collect(apply, self.graph, self.models, self.data.batches(), [NodeMoments])
            batches = self.data.whole_batches() if has_statistics(self.models[0]) else self.data.batches()
            prepare = Pleas(ActivationMatching(), LeastSquares(sequential=True)).prepare
            given = {"stats": stats, "batches": batches, "train_apply": self.network.train_apply}
        self.advance("matching")
        return prepare(apply, self.graph, self.models, inputs=example(self.config, 1), key=key, **given)

    def merged(self, budget: float) -> Sized:
        """The network of one size, with data its statistics re-estimated."""
        self.advance(f"merging at {budget:g} times the size of one")
        return self.prepared.at(budget)

    def sizes(self, made: Sized) -> dict[str, Any]:
        """Accuracy and loss at every size, and of the networks and their ensemble; empty without labels."""
        if self.data is None or self.data.labels is None:
            return {"points": [], "levels": {}}
        batches, models = self.data.batches(), len(self.models)
        grid = sorted({*np.linspace(1, models, self.request.points).tolist(), self.request.budget})
        points = []
        for budget in grid:
            found = made if budget == self.request.budget else self.merged(budget)
            metrics = evaluate(resize(self.network.apply, self.graph, found.variables, found.widths), found.variables, batches)
            points.append({"budget": budget, "cost": found.allocation.cost, **_plain(metrics)})
        self.advance("the networks themselves")
        alone = [_plain(evaluate(self.network.apply, model, batches)) for model in self.models]
        ensemble = _plain(evaluate(LogitEnsemble(self.network.apply), self.models, batches))
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


def _plain(metrics: Metrics) -> dict[str, float]:
    return {"accuracy": metrics.accuracy, "loss": metrics.loss}
