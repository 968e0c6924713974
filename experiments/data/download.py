"""Data sets fetched from their official sites by pooch, each file checked by its hash before it takes its name."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.data.types import Known, Remote

TIMEOUT = 30
"""Seconds for which a server may say nothing."""


def fetch(known: Known, folder: Path) -> None:
    """Download the files of a data set that are not in a folder yet, or are other ones there, and show how far it is.

    Raises:
        ValueError: no pooch; a path that is a file; a server that cannot be reached, stops in between, has no such file or
            another one. Nothing of such a file is kept, and files that were whole are not fetched again.
    """
    try:
        import pooch  # of an extra
    except ImportError:
        raise ValueError(
            f'{known.title} is downloaded by pooch, which is not installed: pip install "npmerge[experiments]", or download '
            f"{_listed(known)} yourself and give the folder by --data"
        ) from None
    if folder.is_file():
        raise ValueError(f"{folder} is a file in which there is no {known.title}: give a folder to download into")
    for remote in known.remote:
        try:
            with _Bar(remote.file) as bar:
                downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=2**16, timeout=TIMEOUT)
                pooch.retrieve(remote.url, remote.hash, remote.file, folder, downloader=downloader)
        except (OSError, ValueError) as error:  # those of requests are OSErrors; a wrong hash is a ValueError
            raise ValueError(_failed(remote, folder, error)) from error


def _failed(remote: Remote, folder: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:400]
    way = "or fetch it yourself and give its folder by --data"
    return f"{remote.url} could not be downloaded into {folder}: {reason}; {way}"


def _listed(known: Known) -> str:
    return ", ".join(remote.url for remote in known.remote)


class _Bar:
    """What pooch tells how far it is: drawn on the screen, or nothing where there is none."""

    total: int = 0

    def __init__(self, name: str):
        columns = [TextColumn(name), BarColumn(), DownloadColumn(), TimeRemainingColumn()]
        self.drawn = Progress(*columns, console=Console(stderr=True), transient=True)
        self.task = self.drawn.add_task("", total=None)

    def __enter__(self) -> "_Bar":
        self.drawn.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.drawn.stop()

    def update(self, count: int) -> None:
        """So many bytes more."""
        self.drawn.update(self.task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """From the beginning."""
        self.drawn.reset(self.task)

    def close(self) -> None:
        """It is there."""
