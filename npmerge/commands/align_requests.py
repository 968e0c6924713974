"""What `npmerge align` can be asked for: networks in the units of the first, or one network of all of them."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment import Alignment
from alignment.checks import repeated
from npmerge.commands.alignments import FUSIONS, PLEAS, ZIPIT, alignment_of, method_of
from npmerge.commands.options import check_seed
from npmerge.commands.sources import written_name
from npmerge.reports.folder import REPORT

MERGED = "merged.safetensors"
"""The file of the network that all are merged into."""

SIZES = "merged-*.safetensors"
"""Files of the networks of other sizes."""

ACCURACY = "accuracy.png"
"""What is drawn of networks whose accuracy is known."""

FIGURES = ("correlation.png", "barrier.png")
"""What an alignment may draw."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is the same for all methods.

    Attributes:
        files: checkpoints of the networks; the first is the reference.
        method: by its name on the command line.
        data: an .npz file with `inputs` and perhaps `labels`.
        seed: of what is random.
        out: the folder to write.
        force: whether it may have files in it.
    """

    files: tuple[Path, ...]
    method: str
    data: Path | None = None
    seed: int = 0
    out: Path
    force: bool = False

    def __post_init__(self) -> None:
        check_seed(self.seed)

    @property
    def options(self) -> list[str]:
        """Those of the method, as they stand on the command line."""
        return []

    @property
    def command(self) -> str:
        """The command line that asks for this."""
        data = [] if self.data is None else ["--data", str(self.data)]
        options = ["--method", self.method, *data, "--seed", str(self.seed), *self.options, "--out", str(self.out)]
        return shlex.join(["npmerge", "align", *map(str, self.files), *options, *(["--force"] if self.force else [])])

    def check_activations(self) -> None:
        """Raise ValueError for want of data, where the method needs activations."""
        if self.data is None:
            needed = "give examples of the task with --data FILE.npz (inputs, labels)"
            raise ValueError(f"{self.method} needs activations: {needed}")


@dataclass(frozen=True, kw_only=True)
class AlignRequest(Request):
    """The networks in the units of the first.

    Attributes:
        points: networks on the way from the reference to each other one, both ends included.
        approximate: whether maps may leave a node's group.
    """

    points: int = 11
    approximate: bool = False

    def __post_init__(self) -> None:
        if self.alignment.needs:
            self.check_activations()
        super().__post_init__()
        _check_points(self.points)
        if twice := repeated(map(written_name, self.files)):
            raise ValueError(f"aligned checkpoints keep their names, but more than one is called {twice}")
        if taken := [path for path in self.files if path.name in (*REPORT, *FIGURES)]:
            raise ValueError(f"{taken[0]} would be overwritten by the report of that name: rename the checkpoint")
        if clash := [path for path in self.files if (self.out / written_name(path)).resolve() == path.resolve()]:
            raise ValueError(f"{clash[0]} would be overwritten by its aligned copy: choose another folder with --out")

    @property
    def alignment(self) -> Alignment:
        """The method as a value."""
        return alignment_of(self.method, approximate=self.approximate)

    @property
    def options(self) -> list[str]:
        """See `Request.options`."""
        return ["--points", str(self.points), *(["--approximate"] if self.approximate else [])]


@dataclass(frozen=True, kw_only=True)
class MergeRequest(Request):
    """One network of all of them."""

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise ValueError(f"merging needs two checkpoints or more, got {len(self.files)}")
        super().__post_init__()
        if clash := [path for path in self.files if (self.out / MERGED).resolve() == path.resolve()]:
            raise ValueError(f"{clash[0]} would be overwritten by the merged network: choose another folder with --out")


@dataclass(frozen=True, kw_only=True)
class FusionRequest(MergeRequest):
    """The average of what units the networks have in common, by zipit or transport.

    Attributes:
        width: the units of every node, as a multiple of those of the first network.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        most = len(self.files) if self.method == ZIPIT else float("inf")
        if not 0 < self.width <= most or self.width == float("inf"):
            limit = f" and at most the number of networks, {most}" if self.method == ZIPIT else ""
            raise ValueError(f"--width must be above 0{limit}, got {self.width:g}")
        if self.method == ZIPIT:
            self.check_activations()

    @property
    def options(self) -> list[str]:
        """See `Request.options`."""
        return ["--width", f"{self.width:g}"]


@dataclass(frozen=True, kw_only=True)
class PleasRequest(MergeRequest):
    """A network that keeps apart the units that agree least, its layers solved by least squares.

    Attributes:
        budget: its size, in operations of one network.
        points: sizes from one network to all that are merged, measured and written besides; None for none.
    """

    budget: float
    points: int | None = None

    def __post_init__(self) -> None:
        from alignment.budget.allocation import check_budget  # imports JAX

        super().__post_init__()
        check_budget(self.budget, len(self.files))
        if self.points is not None:
            _check_points(self.points)
        if clash := [path for path in self.files if path.parent.resolve() == self.out.resolve() and path.match(SIZES)]:
            raise ValueError(
                f"{clash[0]} would be taken for a merged network of an earlier run: choose another folder with --out"
            )

    @property
    def options(self) -> list[str]:
        """See `Request.options`."""
        points = [] if self.points is None else ["--points", str(self.points)]
        return ["--budget", f"{self.budget:g}", *points]


def request_of(
    files: Sequence[Path],
    method: str,
    *,
    budget: float | None = None,
    width: float | None = None,
    points: int | None = None,
    approximate: bool = False,
    **given: Any,
) -> AlignRequest | FusionRequest | PleasRequest:
    """What a command line asks for.

    Args:
        files: checkpoints of the networks.
        method: by its name there, with hyphens or underscores.
        budget: for pleas only, which needs it.
        width: for zipit and transport only; None for 1.
        points: None for 11 on each path, and for the size asked for alone of pleas.
        approximate: for alignments that have such a form.
        given: what is the same for all methods.

    Raises:
        ValueError: options that do not go with the method, and whatever is wrong with one of them.
    """
    method = method_of(method)
    if budget is not None and method != PLEAS:
        raise ValueError(f"--budget is for --method {PLEAS}, got --method {method}")
    if width is not None and method not in FUSIONS:
        raise ValueError(f"--width is for --method {' and '.join(FUSIONS)}, got --method {method}")
    shared = {"files": tuple(files), "method": method, **given}
    if method == PLEAS:
        if budget is None:
            raise ValueError(f"{PLEAS} needs --budget, from 1 to the number of networks: got none")
        if approximate:
            raise ValueError(f"{PLEAS} has no approximate form: leave out --approximate")
        return PleasRequest(**shared, budget=budget, **_given(points=points))
    if method in FUSIONS:
        if points is not None or approximate:
            raise ValueError(f"{method} makes one network: it has no --points and no --approximate form")
        return FusionRequest(**shared, **_given(width=width))
    return AlignRequest(**shared, approximate=approximate, **_given(points=points))


def _given(**options: Any) -> dict[str, Any]:
    """Those that are given: the others have their defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _check_points(points: int) -> None:
    if points < 2:
        raise ValueError(f"--points must be 2 or more, both ends are among them: got {points}")
