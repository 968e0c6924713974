"""Arrays that were stored filtered and compressed, with `labels.npz` beside them: CIFAR, PACS and the emoji."""

import functools
import io
import lzma
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from experiments.data.archives import arrays_of
from experiments.data.faults import fault, reading
from experiments.data.splits import is_fifth
from experiments.data.types import Known, Part, Parts, divided

LABELS, WHOLE = "labels.npz", "x32.npy.xz"


def stored_pixels(path: Path) -> UInt8[np.ndarray, "n height width 3"]:
    """Images stored as differences along rows and columns, green taken off red and blue; arithmetic of uint8 wraps around.

    Raises:
        ValueError: a file that is damaged or holds something else.
    """
    with reading(path, "an array of NumPy compressed by xz"):
        stored = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    if stored.dtype != np.uint8 or stored.ndim != 4 or len(stored) != 3:
        raise fault(path, f"{stored.dtype} of shape {stored.shape}", "uint8 of shape (3, images, height, width)")
    c = np.cumsum(np.cumsum(stored, -2, dtype=np.uint8), -1, dtype=np.uint8)
    return np.stack([c[0] + c[1], c[1], c[2] + c[1]], -1)


def stored_images(path: Path) -> Float32[np.ndarray, "n height width 3"]:
    """The same from 0 to 1."""
    return stored_pixels(path).astype(np.float32) / 255


def read_split(path: Path, known: Known) -> Parts | None:
    """`x_train*.npy.xz` and `x_test*.npy.xz`, and their labels `y_train*` and `y_test*`."""
    found = {part: sorted(path.glob(f"x_{part}*.npy.xz")) for part in ("train", "test")}
    if not (path / LABELS).is_file() or not all(found.values()):
        return None
    return {part: functools.partial(_part, path, files[0], known) for part, files in found.items()}


def _part(folder: Path, file: Path, known: Known) -> Part:
    key = file.name.removeprefix("x_").removesuffix(".npy.xz")
    labels, classes = arrays_of(folder / LABELS, f"y_{key}", "classes")
    if len(classes) != known.classes:
        raise fault(folder / LABELS, f"{len(classes)} classes", f"{known.classes} of {known.title}")
    return Part(stored_pixels(file), labels.astype(np.int32), names={"label": _names(classes)})


def read_pacs(path: Path, known: Known) -> Parts | None:
    """PACS, divided here: a fifth of each class in each domain is for testing."""
    if not (path / LABELS).is_file() or not (path / WHOLE).is_file():
        return None
    return divided(functools.partial(pacs, path), fifth_of_cells)


def pacs(folder: Path) -> Part:
    """All of PACS in the order in which it is stored, with the column "domain"."""
    labels, classes, domain, domains = arrays_of(folder / LABELS, "y", "classes", "domain", "domains")
    names = {"label": _names(classes), "domain": _names(domains)}
    return _whole(folder, labels, {"domain": domain}, names)


def fifth_of_cells(whole: Part) -> np.ndarray:
    """Which images are for testing: a fifth of each class in each domain, drawn once for all."""
    return is_fifth(whole.columns["domain"] * (1 + whole.labels.max()) + whole.labels)


def read_emoji(path: Path, known: Known) -> Parts | None:
    """The emoji, divided here: a fifth of those of each category is for testing, in all drawing styles."""
    if not (path / LABELS).is_file() or not (path / WHOLE).is_file():
        return None
    return divided(functools.partial(_emoji, path), _fifth_of_emoji)


def _emoji(folder: Path) -> Part:
    keys = {"label": ("category", "categories"), "domain": ("domain", "domains"), "emoji": ("emoji", "short_names")}
    keys["subcategory"] = ("subcategory", "subcategories")
    numbers, names = zip(*(arrays_of(folder / LABELS, *pair) for pair in keys.values()), strict=True)
    columns = dict(zip(keys, numbers, strict=True))
    return _whole(folder, columns.pop("label"), columns, {k: _names(x) for k, x in zip(keys, names, strict=True)})


def _fifth_of_emoji(whole: Part) -> np.ndarray:
    _, first, which = np.unique(whole.columns["emoji"], return_index=True, return_inverse=True)
    return is_fifth(whole.labels[first])[which]


def _whole(folder: Path, labels: np.ndarray, columns: dict[str, np.ndarray], names: dict[str, tuple[str, ...]]) -> Part:
    images = stored_pixels(folder / WHOLE)
    for name, column in {"label": labels, **columns}.items():
        if len(column) != len(images):
            raise fault(folder / LABELS, f"{len(column)} numbers of {name}", f"{len(images)}, the images of {WHOLE}")
        if column.max() >= len(names[name]):
            raise fault(folder / LABELS, f"{name} {column.max()}", f"one of {len(names[name])} from 0")
    return Part(images, labels.astype(np.int32), {k: c.astype(np.int32) for k, c in columns.items()}, names)


def _names(array: np.ndarray) -> tuple[str, ...]:
    return tuple(map(str, array))
