"""`npmerge align`: checkpoints in, the same networks in the units of the first one out, and what that brought."""

import functools
import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from alignment import Alignment, Graph, align, trace, verify
from alignment.graph import PyTree
from npmerge.commands import align_page as page
from npmerge.commands.align_inputs import (
    Data,
    check_names,
    check_points,
    check_seed,
    read_data,
    read_networks,
    sample_of,
)
from npmerge.commands.align_measures import (
    Change,
    Measured,
    correlations,
    has_statistics,
    output_change,
    path_to,
    squared_distance,
)
from npmerge.commands.methods import alignment_of
from npmerge.commands.sources import Source, written_name
from npmerge.models import Config, Network, abstract, example
from npmerge.normalisation import reset_statistics
from npmerge.reports.figures import barrier_figure, correlation_figure
from npmerge.reports.folder import OutputFolder, write_report
from npmerge.statistics.collect import collect

EVERY = 10.0
"""Seconds between lines on how far a step has got, where there is no terminal."""


class Advance(Protocol):
    """What tells of progress."""

    def __call__(self, text: str, part: str = "") -> None:
        """What is being done, and how far it has got."""


@dataclass(frozen=True)
class Request:
    """What the command was asked for.

    Attributes:
        files: checkpoints; the first is the reference.
        method: a key of `methods.METHODS`.
        approximate: whether maps may leave a node's group.
        data: an .npz file with `inputs` and perhaps `labels`.
        seed: of the alignment and of random inputs.
        points: networks on each path.
        out: the folder to write.
        force: whether it may have files in it.
        command: the command line.
    """

    files: tuple[Path, ...]
    method: str
    approximate: bool
    data: Path | None
    seed: int
    points: int
    out: Path
    force: bool
    command: str

    def __post_init__(self) -> None:
        if self.alignment.needs and self.data is None:
            raise ValueError(
                f"{self.method} needs activations: give examples of the task with --data FILE.npz (inputs, labels)"
            )
        check_seed(self.seed)
        check_points(self.points)
        check_names(self.files)
        if taken := [path for path in self.files if path.name in page.FILES]:
            raise ValueError(f"{taken[0]} would be overwritten by the report of that name: rename the checkpoint")
        if clash := [path for path in self.files if (self.out / written_name(path)).resolve() == path.resolve()]:
            raise ValueError(f"{clash[0]} would be overwritten by its aligned copy: choose another folder with --out")

    @property
    def alignment(self) -> Alignment:
        """The method as a value."""
        return alignment_of(self.method, approximate=self.approximate)


def run_align(request: Request) -> dict[str, Any]:
    """Align, measure, write the folder and print its table.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for anything in the request or the files that cannot be used; then nothing is written.
    """
    began = time.perf_counter()
    output = OutputFolder(request.out, force=request.force, own=page.FILES)
    with output as folder, gathered_warnings() as warned, progress() as advance:
        advance("reading")
        config, sources = read_networks(request.files)
        data = read_data(request.data, config) if request.data else None
        run = _Run(request, config, sources, data, advance)
        aligned = run.aligned()
        measured = run.measured(aligned)
        advance("writing")
        content = page.summary(request, config, sources, data, measured) | {"warnings": warned()}
        _write(folder, run, aligned, content, measured)
    tell(page.told(content), request.out, content["written"], began)
    return content


class _Run:
    """One alignment: the networks, and what is done with them."""

    def __init__(self, request: Request, config: Config, sources: Sequence[Source], data: Data | None, advance: Advance):
        self.request, self.config, self.sources, self.data, self.advance = request, config, sources, data, advance
        self.alignment = request.alignment
        self.network: Network = abstract(config)
        self.models = [source.variables for source in sources]
        advance("tracing")
        shapes = example(config) if data is None else jax.ShapeDtypeStruct((2, *data.inputs.shape[1:]), data.inputs.dtype)
        self.graph: Graph = trace(self.network.apply, self.models[0], shapes)  # of the dtype that is stored
        self.key = jax.random.key(request.seed)

    def aligned(self) -> list[PyTree]:
        """The networks in the units of the first, statistics re-estimated where the maps were approximate."""
        stats = None
        if self.alignment.needs and self.data is not None:
            wanted, batches = list(self.alignment.needs), self.data.batches()
            tell = self._stage("activations", len(batches))
            stats = collect(self.network.apply, self.graph, self.models, batches, wanted, progress=tell)
        self.advance(f"aligning by {self.request.method}")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "approximate maps leave running statistics")  # re-estimated below
                found = align(self.alignment, self.graph, self.models, stats=stats, key=self.key)
        except ValueError as error:
            raise ValueError(str(error).replace("approximate=True", "--approximate")) from None
        if not self.request.approximate or self.data is None or not has_statistics(found[0]):
            return found
        self.advance("statistics of BatchNorm")
        batches = self.data.whole_batches()
        return [found[0], *(reset_statistics(self.network.train_apply, v, batches) for v in found[1:])]

    def measured(self, aligned: Sequence[PyTree]) -> Measured:
        """Everything that the data allow."""
        self.advance("checking that the function is preserved")
        network, (reference, *others), ours = self.network, self.models, aligned[1:]
        sample = sample_of(self.config, self.data, self.request.seed)
        pairs = list(zip(others, ours, strict=True))
        return Measured(
            verify(network.apply, self.graph, reference, sample, key=self.key),
            [output_change(network, before, after, sample) for before, after in pairs],
            Change(*([squared_distance(reference, m) for m in models] for models in (others, ours))),
            self._correlations(aligned),
            self._paths(reference, others, ours),
        )

    def _correlations(self, aligned: Sequence[PyTree]) -> Change[dict[str, np.ndarray]] | None:
        if self.data is None or len(self.data.inputs) < 2 or not self.graph.taps:
            return None
        measured = []
        for stage, models in (("before", self.models), ("after", aligned)):
            tell = self._stage(f"matched correlation {stage}", len(self.data.batches()))
            measured.append(correlations(self.network, self.graph, models, self.data, tell))
        return Change(*measured)

    def _paths(self, reference: PyTree, *stages: Sequence[PyTree]) -> Change | None:
        if self.data is None or self.data.labels is None:
            return None
        paths = []
        for stage, models in zip(("before", "after"), stages, strict=True):
            points = self.request.points
            tell, done = self._stage(f"barriers {stage}", len(models) * points), itertools.count(1)
            at_point = functools.partial(_tell_next, tell, done)
            paths.append([path_to(self.network, (reference, m), self.data, points, at_point) for m in models])
        return Change(*paths)

    def _stage(self, text: str, parts: int) -> Callable[[int], None]:
        """Say that a step begins; what is returned is told how many of its parts are done."""
        self.advance(text)
        return lambda done: self.advance(text, f"{done} of {parts}")


def _tell_next(tell: Callable[[int], None], done: Iterator[int]) -> None:
    tell(next(done))


def _write(folder: Path, run: _Run, aligned: Sequence[PyTree], content: dict[str, Any], measured: Measured) -> None:
    for source, variables in zip(run.sources, aligned, strict=True):
        source.write(folder, variables, {"align": page.provenance(content) | {"original": source.named}})
    names, figures = [source.path.stem for source in run.sources[1:]], {}
    if measured.correlations:
        figures["correlation"] = correlation_figure(*measured.correlations, names)
    if measured.paths:
        figures["barrier"] = barrier_figure(*measured.paths, names)
    write_report(folder, page=page.markdown(content), summary=content, figures=figures)


def tell(lines: Sequence[str], out: Path, written: Sequence[str], began: float) -> None:
    """Print what was done, how long it took since `began` and the files that were written."""
    console, took = Console(), time.perf_counter() - began
    for line in [*lines, f"{took:.0f} s. Written to {out}: {', '.join(written)}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)  # a file may be called "a[b]"


@contextmanager
def gathered_warnings() -> Iterator[Callable[[], list[str]]]:
    """Warnings of the library, kept for the report instead of printed with a line of its code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield lambda: list(dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)))


@contextmanager
def progress() -> Iterator[Advance]:
    """What is being done, on stderr: a line that moves on a terminal, else a line for each step, and some for long ones."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("starting")

        told = time.monotonic()

        def advance(text: str, part: str = "") -> None:
            nonlocal told
            line = f"{text} {part}".rstrip()
            progress.update(bar, description=line)
            if not console.is_terminal and (not part or time.monotonic() - told > EVERY):
                told = time.monotonic()
                console.print(line)

        yield advance
