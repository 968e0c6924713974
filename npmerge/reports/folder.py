"""Reports on disk: a folder that is written whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath
from typing import Any

from npmerge.reports.html import html
from npmerge.reports.markdown import markdown
from npmerge.reports.page import Page
from npmerge.reports.style import drawn

PAGES = ("report.md", "report.html")
"""A page, as it is written: for editors and hosts of code, and for browsers."""

REPORT = (*PAGES, "summary.json")
"""What every report writes, beside its figures."""

FIGURES = tuple(
    f"{name}.png"
    for name in (
        *("accuracy", "shares", "loss", "coefficients", "nearness", "agreement", "conflict"),
        *("correlation", "barrier", "paths", "statistics"),
    )
)
"""What the report of a merge may draw."""

OF_MERGES = (*PAGES, "report.json", *FIGURES)
"""What it writes into the folder of a merge."""


class OutputFolder:
    """A folder that is filled in one go: everything is written beside it first, nothing is half-written.

    Args:
        path: the folder.
        force: whether it may have files in it. Those of the same names are replaced.
        own: names of files that belong to whoever writes. Where an earlier run left them and this one does not write them,
            they are removed, or they would be taken for its own.

    Raises:
        ValueError: if the folder exists with files in it (unless `force`), is a file, or cannot be written.
    """

    def __init__(self, path: FilePath, *, force: bool, own: Sequence[str] = ()):
        self.path, self.force, self.own = path, force, own
        self.check()
        parent = next(p for p in (path, *path.parents) if p.exists())
        if not parent.is_dir():
            raise ValueError(f"cannot write to {path}: {parent} is a file")
        try:
            self.staging = FilePath(tempfile.mkdtemp(prefix=f".{path.name}-", dir=parent))
        except OSError as error:
            raise ValueError(f"cannot write to {path}: {error.strerror or error}") from None

    def check(self) -> None:
        """Refuse a file, and a folder with files in it unless forced."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file: expected a folder to write to")
        staging = getattr(self, "staging", None)
        if self.path.is_dir() and not self.force and any(p != staging for p in self.path.iterdir()):
            raise ValueError(f"{self.path} exists and has files in it: choose another folder with --out, or use --force")

    def __enter__(self) -> FilePath:
        return self.staging

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.check()  # again: another run may have written here meanwhile
                self._fill(sorted(x for x in self.staging.rglob("*") if x.is_file()))
        except OSError as error:
            raise ValueError(f"cannot write to {self.path}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(self.staging, ignore_errors=True)

    def _fill(self, files: Sequence[FilePath]) -> None:
        written = [file.relative_to(self.staging).as_posix() for file in files]
        if taken := [name for name in written if (self.path / name).is_dir()]:
            raise ValueError(f"cannot write to {self.path}: {taken[0]} is a folder there")
        self.path.mkdir(parents=True, exist_ok=True)
        for file, name in zip(files, written, strict=True):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, self.path / name)  # noqa: PTH105
        for name in self.own:
            if name not in written and (self.path / name).is_file():
                (self.path / name).unlink()


def write_page(folder: FilePath, page: Page) -> None:
    """Write `report.md`, `report.html` and each figure as `NAME.png`."""
    charts = {figure.name: drawn(figure) for figure in page.figures}
    for name, chart in charts.items():
        (folder / f"{name}.png").write_bytes(chart.png)
    (folder / "report.md").write_text(markdown(page), encoding="utf-8")
    (folder / "report.html").write_text(html(page, {name: chart.svg for name, chart in charts.items()}), encoding="utf-8")


def write_report(folder: FilePath, *, page: Page, summary: Mapping[str, Any]) -> None:
    """Write a page as `write_page` does, and `summary.json`. Raises ValueError for NaN, which JSON has not."""
    try:
        text = json.dumps(summary, indent=1, allow_nan=False)
    except ValueError:
        from alignment.graph import flatten  # imports JAX

        bad = [path for path, x in flatten(summary).items() if isinstance(x, float) and not math.isfinite(x)]
        raise ValueError(f"what was measured is not finite at {bad[0]!r}: no report can be made of it") from None
    write_page(folder, page)
    (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
