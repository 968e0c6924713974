"""`npmerge align`: checkpoints in, the same networks in the units of the first one out, and what that brought."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from alignment import verify
from alignment.graph import PyTree
from npmerge.commands import align_page as page
from npmerge.commands.align_inputs import sample_of
from npmerge.commands.align_measures import (
    Change,
    Measured,
    correlations,
    has_statistics,
    output_change,
    path_to,
    squared_distance,
)
from npmerge.commands.align_requests import FIGURES, AlignRequest
from npmerge.commands.align_run import Made, Parents, run
from npmerge.commands.sources import written_name
from npmerge.learning.aligning import Functions, in_units_of_first
from npmerge.reports.folder import REPORT
from npmerge.reports.progress import stage


def run_align(request: AlignRequest) -> dict[str, Any]:
    """Align, measure, write the folder and print its table, as `align_run.run` does."""
    return run(request, page, lambda parents: _Run(request, parents).made(), own=(*REPORT, *FIGURES))


class _Run:
    """One alignment: the networks, and what is done with them."""

    def __init__(self, request: AlignRequest, parents: Parents):
        self.request, self.parents = request, parents
        self.network, self.graph = parents.networks[0], parents.graphs[0]
        self.models, self.data, self.advance = parents.models, parents.data, parents.advance

    def made(self) -> Made:
        """The aligned networks, and what is said of them."""
        aligned = self.aligned()
        measured = self.measured(aligned)
        content = page.summary(self.request, self.parents, measured)
        files = {}
        for source, variables in zip(self.parents.sources, aligned, strict=True):
            record = {"align": page.provenance(content) | {"original": source.named}}
            files[written_name(source.path)] = source.aligned(variables, record)
        return Made(files, content)

    def aligned(self) -> list[PyTree]:
        """The networks in the units of the first, statistics re-estimated where the maps were approximate."""
        self.advance(f"aligning by {self.request.method}")
        functions = Functions(self.network.apply, self.network.train_apply if has_statistics(self.models[0]) else None)
        batches = [] if self.data is None else self.data.batches()
        given: dict[str, Any] = {"batches": batches, "key": self.parents.key, "advance": self.advance}
        try:
            return in_units_of_first(self.request.alignment, self.graph, functions, self.models, **given)
        except ValueError as error:
            raise ValueError(str(error).replace("approximate=True", "--approximate")) from None

    def measured(self, aligned: Sequence[PyTree]) -> Measured:
        """Everything that the data allow."""
        self.advance("checking that the function is preserved")
        network, (reference, *others), ours = self.network, self.models, aligned[1:]
        sample = sample_of(self.parents.config, self.data, self.request.seed)
        pairs = list(zip(others, ours, strict=True))
        return Measured(
            verify(network.apply, self.graph, reference, sample, key=self.parents.key),
            [output_change(network, before, after, sample) for before, after in pairs],
            Change(*([squared_distance(reference, m) for m in models] for models in (others, ours))),
            self._correlations(aligned),
            self._paths(reference, others, ours),
        )

    def _correlations(self, aligned: Sequence[PyTree]) -> Change[dict[str, np.ndarray]] | None:
        if self.data is None or len(self.data.inputs) < 2 or not self.graph.taps:
            return None
        measured = []
        for when, models in (("before", self.models), ("after", aligned)):
            tell = stage(self.advance, f"matched correlation {when}", len(self.data.batches()))
            measured.append(correlations(self.network, self.graph, models, self.data, tell))
        return Change(*measured)

    def _paths(self, reference: PyTree, *stages: Sequence[PyTree]) -> Change | None:
        if self.data is None or self.data.labels is None:
            return None
        paths = []
        points = self.request.points
        for when, models in zip(("before", "after"), stages, strict=True):
            tell, done = stage(self.advance, f"barriers {when}", len(models) * points), itertools.count(1)
            at_point = functools.partial(_tell_next, tell, done)
            paths.append([path_to(self.network, (reference, m), self.data, points, at_point) for m in models])
        return Change(*paths)


def _tell_next(tell: Callable[[int], None], done: Iterator[int]) -> None:
    tell(next(done))
