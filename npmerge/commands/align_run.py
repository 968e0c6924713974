"""How every run of `npmerge align` goes: networks are read and traced, something is made of them, a folder is written."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from alignment import trace
from npmerge.commands.align_inputs import read_data, read_networks
from npmerge.commands.align_requests import Request
from npmerge.commands.sources import File
from npmerge.commands.terminal import gathered_warnings, tell
from npmerge.evaluate import Metrics, evaluate
from npmerge.models import Network, abstract, example
from npmerge.reports.folder import OutputFolder, write_report
from npmerge.reports.page import Page
from npmerge.reports.progress import Advance, phases


class Parents:
    """The networks, read and traced, and the examples.

    Args:
        request: which they are.
        advance: told what is being done.
        widths: whether their nodes may have different widths.
    """

    def __init__(self, request: Request, advance: Advance, *, widths: bool = False):
        self.advance = advance
        advance("reading")
        self.config, self.sources = read_networks(request.files, widths=widths)
        self.data = read_data(request.data, self.config) if request.data else None
        self.models = [source.variables for source in self.sources]
        self.networks: list[Network] = [abstract(source.config) for source in self.sources]
        self.key = jax.random.key(request.seed)
        advance("tracing")
        shapes = example(self.config) if self.data is None else self.data.inputs[:2]
        traced = {s.config: trace(n.apply, s.variables, shapes) for s, n in zip(self.sources, self.networks, strict=True)}
        self.graphs = [traced[source.config] for source in self.sources]

    def alone(self) -> list[dict[str, float]]:
        """Accuracy and loss of each on the examples, which have labels."""
        self.advance("the networks themselves")
        assert self.data is not None
        batches = self.data.batches()
        return [plain(evaluate(n.apply, v, batches)) for n, v in zip(self.networks, self.models, strict=True)]


class Made(NamedTuple):
    """What a run makes: networks by the names of their files, and the content of its summary."""

    files: Mapping[str, File]
    content: Mapping[str, Any]


class Says(Protocol):
    """The module that says what was done."""

    def page(self, content: Mapping[str, Any]) -> Page:
        """The report, from the content of `summary.json` alone."""

    def told(self, content: Mapping[str, Any]) -> list[str]:
        """What the terminal shows."""


def run(
    request: Request, says: Says, make: Callable[[Parents], Made], *, own: tuple[str, ...], widths: bool = False
) -> dict[str, Any]:
    """Read, make, write the folder and print its table.

    Args:
        request: what was asked for.
        says: what is said of it.
        make: what makes networks of the parents.
        own: names of the files that the run may write.
        widths: whether networks of different widths are taken.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for anything in the request or the files that cannot be used; then nothing is written.
    """
    began = time.perf_counter()
    output = OutputFolder(request.out, force=request.force, own=own)
    with output as folder, gathered_warnings() as warned, phases() as advance:
        made = make(Parents(request, advance, widths=widths))
        advance("writing")
        for name, file in made.files.items():
            file.write(folder / name)
        content = {**made.content, "warnings": warned()}
        write_report(folder, page=says.page(content), summary=content)
    tell(says.told(content), request.out, content["written"], began)
    return content


def plain(metrics: Metrics) -> dict[str, float]:
    """Accuracy and loss as they stand in a summary."""
    return {"accuracy": metrics.accuracy, "loss": metrics.loss}
