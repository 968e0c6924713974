"""What lies in a folder, in a tar archive as it is published, which is not unpacked, or in a file of NumPy."""

import tarfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

from experiments.data.faults import fault, reading

MOST_BYTES = 256 * 2**20
"""Of one file in an archive; the largest of CIFAR has 155 MB."""

SUFFIXES = (".tar.gz", ".tgz", ".tar")


def home_of(path: Path, files: Collection[str], archive: str) -> Path | None:
    """What holds these files: the folder itself, an archive of this name in it, or the path if it is an archive of them."""
    if path.is_dir():
        if any((path / name).is_file() for name in files):
            return path
        return path / archive if (path / archive).is_file() else None
    return path if path.name.endswith(SUFFIXES) and _holds(path, files) else None


def contents(home: Path, files: Collection[str]) -> list[bytes]:
    """The content of files of a folder or an archive, by their names without folders.

    Raises:
        ValueError: a file that is not there or is too large, an archive that is damaged.
    """
    if home.is_dir():
        if missing := [name for name in files if not (home / name).is_file()]:
            raise fault(home / missing[0], "no such file", f"all of {', '.join(files)}")
        return [(home / name).read_bytes() for name in files]
    found = _extracted(home, files)
    if missing := [name for name in files if name not in found]:
        raise fault(home, f"an archive without {missing[0]}", f"one with {', '.join(files)}")
    return [found[name] for name in files]


def arrays_of(path: Path, *names: str) -> list[np.ndarray]:
    """Arrays in a file of `numpy.savez`. Raises ValueError for a file that is damaged or lacks one of them."""
    with reading(path, "a file of numpy.savez"), path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        if missing := [name for name in names if name not in file.files]:
            raise fault(path, f"the arrays {', '.join(file.files)}", f"{missing[0]!r} among them")
        return [file[name] for name in names]


def _holds(archive: Path, files: Collection[str]) -> bool:
    with reading(archive, "a tar archive"), tarfile.open(archive, "r|*") as members:
        return any(Path(member.name).name in files for member in members if member.isfile())


def _extracted(archive: Path, files: Collection[str]) -> dict[str, bytes]:
    found = {}
    with reading(archive, "a tar archive"), tarfile.open(archive, "r|*") as members:
        for member in members:
            name = Path(member.name).name
            if not member.isfile() or name not in files:
                continue
            if member.size > MOST_BYTES:
                raise fault(archive, f"{member.size:,} bytes of {name}", f"{MOST_BYTES:,} at most")
            file = members.extractfile(member)
            found[name] = file.read() if file else b""
            if len(found) == len(files):
                break
    return found
