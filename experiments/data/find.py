"""Where data are looked for, and what is said where there are none."""

import os
from collections.abc import Iterator
from pathlib import Path

from alignment.checks import unknown
from experiments.data.catalogue import CATALOGUE
from experiments.data.download import fetch
from experiments.data.types import DataSet, Known, Parts

SHARED = Path("../shared/data")
"""Beside this checkout, a folder for each set."""

CIFAR, PACS = SHARED / "cifar10", SHARED / "pacs"

FOLDERS = {"emoji": "emoji_domains"}
"""The names of those folders where they are not those of the sets."""


def load(name: str, folder: Path | str | None = None, *, download: bool = False) -> DataSet:
    """A data set by its name, in whichever format it is found.

    Args:
        name: one of CATALOGUE, such as "cifar100".
        folder: where it lies: its folder, the folder around that, or its file, and nothing else is looked at. By default it is
            looked for beside this checkout, then among what was downloaded. scikit-learn's digits need none.
        download: whether to fetch it from its official site where it is not found; into `folder` if that is given.

    Returns:
        What was found; images are read when they are first asked for.

    Raises:
        ValueError: an unknown name; nothing found (where it was looked for, what to download from where); a download that
            failed.
    """
    if name not in CATALOGUE:
        raise ValueError(unknown("data set", name, CATALOGUE))
    known = CATALOGUE[name]
    if known.bundled:
        return DataSet(known, Path("scikit-learn"), known.bundled())
    roots = [Path(folder)] if folder is not None else [SHARED / FOLDERS.get(name, name), cache() / name]
    found = _found(known, name, roots)
    if found is None and download and known.remote:
        fetch(known, roots[-1])
        found = _found(known, name, roots[-1:])
    if found is None:
        raise ValueError(missing(known, name, roots))
    return found


def cache() -> Path:
    """Where downloads are kept: $NPMERGE_DATA, or `npmerge` in the user's folder of caches."""
    given = os.environ.get("NPMERGE_DATA")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "npmerge" / "data"


def find_cifar() -> Path | None:
    """The folder of CIFAR-10 beside this checkout, or that of its download, if it is there."""
    known, folders = CATALOGUE["cifar10"], (CIFAR, cache() / "cifar10")
    return next((folder for folder in folders if _found(known, "cifar10", [folder])), None)


def missing(known: Known, name: str, roots: list[Path]) -> str:
    """What is said of a data set that was not found."""
    looked = " and ".join(map(str, roots))
    said = f"no {known.title} in {looked}: expected one of its published files or folders"
    if known.homes:
        said += f" ({', '.join([*known.homes, *(remote.file for remote in known.remote)])})"
    said += f"; it comes from {known.source}"
    return said + ("; --download fetches it" if known.remote else "; --download has no site to fetch it from")


def _found(known: Known, name: str, roots: list[Path]) -> DataSet | None:
    for place in (place for root in roots for place in _places(known, name, root)):
        for reader in known.readers:
            parts: Parts | None = reader(place, known)
            if parts:
                return DataSet(known, place, parts)
    return None


def _places(known: Known, name: str, root: Path) -> Iterator[Path]:
    yield root
    yield from (root / home for home in (*known.homes, name) if (root / home).exists())
