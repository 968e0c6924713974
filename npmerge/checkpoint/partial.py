"""A folder that appears whole or not at all: it is made beside its place and then moved there."""

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

RECORD = "npmerge.json"
"""The file by which a folder is known to be the result of a merge, so that another may take its place."""

EXCHANGE = 2  # Linux's RENAME_EXCHANGE
HERE = -100  # AT_FDCWD


@contextmanager
def partial_folder(out: Path, *, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """A folder to write into, `.NAME.partial` beside the result.

    What is in its folder `model` at the end takes the place of `out`; with an error nothing is left and `out` stays as it was.

    Args:
        out: the result.
        force: whether an earlier result of a merge may be replaced.
        resume: whether what an interrupted run left is kept at the beginning, and what this one has written after an error.

    Raises:
        ValueError: an existing folder that may not be replaced, a folder that cannot be written, or another process at it.
    """
    out = out.resolve()
    check_replaceable(out, force=force)
    folder = partial_place(out)
    lock = _locked(folder)
    try:
        if not resume:
            _clear(folder)
        emptied(folder / "model")
        yield folder
        _put_in_place(folder / "model", out)
    except BaseException:
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def partial_place(out: Path) -> Path:
    """The folder in which a result is made."""
    out = out.resolve()
    return out.with_name(f".{out.name}.partial")


def emptied(folder: Path) -> Path:
    """The folder, made if it is not there; of what an earlier run left only weights stay."""
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder, keep=".safetensors")
    return folder


def check_replaceable(out: Path, *, force: bool) -> None:
    """Raises ValueError unless nothing is at `out`, or an empty folder, or, with `force`, the result of a merge."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder")
    if not force:
        raise ValueError(
            f"{out} exists and is not empty: name another folder, or pass --force to replace what such a command left there"
        )
    if not (out / RECORD).is_file():
        raise ValueError(
            f"{out} holds no {RECORD}, so it is no result of a merge that --force could replace: name another folder"
        )


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Raises ValueError if the output is an input, lies in one, or one lies in it."""
    place = out.resolve()
    for path in inputs:
        other = path.resolve()
        if place == other or other in place.parents or place in other.parents:
            how = "is an input" if place == other else f"and the input {path} lie one in the other"
            raise ValueError(f"the output {out} {how}: name a folder apart from the inputs")


def sync_folder(folder: Path) -> None:
    """Return once all that is in a folder lies on the disk. Raises ValueError if it could not be written."""
    for path in [*folder.rglob("*"), folder]:
        try:
            sync(path)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}") from None


def _locked(folder: Path) -> int:
    """The folder, made if it is not there, and the open file that no other process can have as long as this one has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ValueError(f"another merge is writing to {folder}: wait for it, or name another output") from None
    return lock


def _clear(folder: Path, keep: str | None = None) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.suffix != keep:
            path.unlink()


def _put_in_place(model: Path, out: Path) -> None:
    """Move the finished folder to its name; one that has the name until then is there until the moment of the change."""
    try:
        sync_folder(model)
        if out.exists() and _exchanged(model, out):
            return
        if out.exists():
            out.rename(model.with_name("replaced"))
        model.rename(out)
        sync(out.parent)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from None


def _exchanged(model: Path, out: Path) -> bool:
    """Whether the two could change names in one step, which not every file system can."""
    change = getattr(ctypes.CDLL(None), "renameat2", None)
    done = change is not None and change(HERE, os.fsencode(model), HERE, os.fsencode(out), EXCHANGE) == 0
    if done:
        sync(out.parent)
    return done


def sync(path: Path) -> None:
    """Return once a file, or the names in a folder, lie on the disk. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
