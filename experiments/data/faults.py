"""What is wrong with a file of data, in one form: its path, what was got, what was expected."""

import contextlib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
"""What the standard library, NumPy, h5py, Pillow and scikit-learn raise for files that are damaged."""


class DataError(ValueError):
    """A file of data that is damaged or is not what its name says."""


def fault(path: Path, got: object, expected: object) -> DataError:
    """The error for a file in which something else was found than expected."""
    return DataError(f"{path}: got {got}, expected {expected}")


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Whatever a reader raises becomes a DataError that names the file and what it should be.

    Raises:
        DataError: a file that is empty or damaged.
    """
    if path.is_file() and not path.stat().st_size:
        raise fault(path, "an empty file", kind)
    try:
        yield
    except DataError:
        raise
    except DAMAGE as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise fault(path, f"a file that cannot be read ({text})", kind) from error
