"""What the commands that make one network of several share: what they read, how they begin, and the folder they write."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from alignment import trace
from alignment.graph import PyTree
from npmerge.checkpoint import save_network
from npmerge.commands.align import Advance, gathered_warnings, progress, tell
from npmerge.commands.align_inputs import check_seed, read_data, read_networks
from npmerge.evaluate import Metrics, evaluate
from npmerge.models import Network, WithWidths, abstract, example
from npmerge.reports.folder import OutputFolder, write_report

MERGED = "merged.safetensors"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a command that merges was asked for.

    Attributes:
        files: checkpoints of the networks to merge.
        data: an .npz file with `inputs` and perhaps `labels`.
        seed: of what is random.
        out: the folder to write.
        force: whether it may have files in it.
        command: the command line.
    """

    files: tuple[Path, ...]
    data: Path | None
    seed: int
    out: Path
    force: bool
    command: str

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise ValueError(f"merging needs two checkpoints or more, got {len(self.files)}")
        check_seed(self.seed)
        if clash := [path for path in self.files if (self.out / MERGED).resolve() == path.resolve()]:
            raise ValueError(f"{clash[0]} would be overwritten by the merged network: choose another folder with --out")


class Parents:
    """The networks to merge, read and traced, and the examples.

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
    """What a command makes: the network, its widths by node, the content of its summary, and figures by name."""

    variables: PyTree
    widths: dict[str, int]
    content: dict[str, Any]
    figures: dict[str, Any]


class Page(Protocol):
    """The module that says what was done."""

    def provenance(self, content: Mapping[str, Any]) -> dict[str, Any]:
        """What the record of the merged checkpoint keeps."""

    def markdown(self, content: Mapping[str, Any]) -> str:
        """The page `report.md`."""

    def told(self, content: Mapping[str, Any]) -> list[str]:
        """What the terminal shows."""


def run(request: Request, page: Page, merge: Callable[[Parents], Made], *, own: tuple[str, ...], widths: bool = False) -> dict:
    """Read, merge, write the folder and print its table.

    Args:
        request: what was asked for.
        page: what is said of it.
        merge: what makes the network; its content has the "method".
        own: names of the files that the command may write.
        widths: whether networks of different widths are merged.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for anything in the request or the files that cannot be used; then nothing is written.
    """
    began = time.perf_counter()
    output = OutputFolder(request.out, force=request.force, own=own)
    with output as folder, gathered_warnings() as warned, progress() as advance:
        parents = Parents(request, advance, widths=widths)
        made = merge(parents)
        advance("writing")
        content = made.content | {"warnings": warned()}
        config = WithWidths.of(parents.config, made.widths)
        save_network(folder / MERGED, config, made.variables, {content["method"]: page.provenance(content)})
        write_report(folder, page=page.markdown(content), summary=content, figures=made.figures)
    tell(page.told(content), request.out, content["written"], began)
    return content


def plain(metrics: Metrics) -> dict[str, float]:
    """Accuracy and loss as they stand in a summary."""
    return {"accuracy": metrics.accuracy, "loss": metrics.loss}
