"""Folders of images: a folder for each class, in the order of their names, within one for each part or each domain."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data.faults import fault, reading
from experiments.data.splits import is_fifth
from experiments.data.stored import fifth_of_cells
from experiments.data.types import Known, Part, Parts, divided
from npmerge.learning.images import SUFFIXES, class_folders

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
"""Of PACS."""


def read_folders(path: Path, known: Known) -> Parts | None:
    """`train/CLASS/*.png` and `test/CLASS/*.png`, or `CLASS/*.png`, of which a fifth of each class is then for testing."""
    if not path.is_dir():
        return None
    if (path / "train").is_dir() and class_folders(path / "train"):
        return {part: functools.partial(_part, path, part, known) for part in ("train", "test")}
    if not class_folders(path):
        return None
    return divided(functools.partial(_classes, path, known), lambda whole: is_fifth(whole.labels))


def read_domains(path: Path, known: Known) -> Parts | None:
    """`DOMAIN/CLASS/*.jpg` for the four domains of PACS, divided as the stored arrays are."""
    if not all((path / domain).is_dir() for domain in DOMAINS):
        return None
    return divided(functools.partial(_domains, path, known), fifth_of_cells)


def _part(path: Path, part: str, known: Known) -> Part:
    if not (path / part).is_dir():
        raise fault(path / part, "no such folder", "it beside train")
    return _classes(path / part, known)


def _domains(path: Path, known: Known) -> Part:
    parts = [_classes(path / domain, known) for domain in DOMAINS]
    images, labels = (np.concatenate([part[k] for part in parts]) for k in range(2))
    domain = np.repeat(np.arange(len(DOMAINS), dtype=np.int32), [len(part.labels) for part in parts])
    return Part(images, labels, {"domain": domain}, {**parts[0].names, "domain": DOMAINS})


def _classes(path: Path, known: Known) -> Part:
    folders = class_folders(path)
    if len(folders) != known.classes:
        raise fault(path, f"{len(folders)} folders of images", f"{known.classes}, one for each class of {known.title}")
    files = [sorted(x for x in folder.iterdir() if x.suffix.lower() in SUFFIXES) for folder in folders]
    images = _pixels([file for some in files for file in some], known.shape)
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(some) for some in files])
    return Part(images, labels, names={"label": tuple(folder.name for folder in folders)})


def _pixels(files: Sequence[Path], shape: tuple[int, int, int]) -> np.ndarray:
    """Images of other sizes are brought to that shape, by Lanczos's filter."""
    from PIL import Image  # matplotlib needs it too

    images = np.empty((len(files), *shape), np.uint8)
    for k, file in enumerate(files):
        with reading(file, "an image"), Image.open(file) as image:
            plain = image.convert("L" if shape[2] == 1 else "RGB")
            size = shape[1], shape[0]
            plain = plain if plain.size == size else plain.resize(size, Image.Resampling.LANCZOS)
            images[k] = np.asarray(plain).reshape(shape)
    return images
