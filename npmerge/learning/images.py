"""Folders of images: a folder for each class, in the order of their names."""

from pathlib import Path
from typing import Any

import numpy as np

from npmerge.models import Config
from npmerge.recipe.examples import Data

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm")


def class_folders(path: Path) -> list[Path]:
    """The folders that hold images, in the order of their names: class 0 is the first."""
    return sorted(x for x in path.iterdir() if x.is_dir() and any(y.suffix.lower() in SUFFIXES for y in x.iterdir()))


def read_images(path: Path, data: Data, config: Config | None) -> tuple[np.ndarray, np.ndarray]:
    """Images (examples, height, width, channels) in float32, from 0 to 1 before `mean` and `deviation`, and their classes.

    Raises:
        ValueError: a folder without classes, no Pillow, a file that is no image (its path), no size to bring images to.
    """
    folders = class_folders(path)
    if not folders:
        raise ValueError(f"{path} holds no folders of images: expected a folder for each class ({', '.join(SUFFIXES)})")
    shape = () if config is None or len(config.input_shape) != 3 else config.input_shape
    size, channels = data.size or shape[:2], shape[2] if shape else 3
    if not size:
        raise ValueError(f"{path}: the network does not tell the size of its images: give data.size, [height, width]")
    files = [(file, k) for k, x in enumerate(folders) for file in sorted(x.iterdir()) if file.suffix.lower() in SUFFIXES]
    images = np.stack([_read(file, (size[0], size[1]), channels) for file, _ in files])
    mean, deviation = (_channels(path, name, getattr(data, name), channels) for name in ("mean", "deviation"))
    if mean is not None:
        images = images - mean
    if deviation is not None:
        images = images / deviation
    return images, np.array([k for _, k in files], np.int32)


def _read(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    image_module = _pillow()
    try:
        with image_module.open(file) as image:
            plain = image.convert("L" if channels == 1 else "RGB")
            if plain.size != (size[1], size[0]):
                plain = plain.resize((size[1], size[0]), image_module.Resampling.BILINEAR)
            return np.asarray(plain, np.float32).reshape(*size, channels) / np.float32(255)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("folders of images are read by Pillow, which is not installed: pip install pillow") from None
    return Image


def _channels(path: Path, name: str, given: list[float] | None, channels: int) -> np.ndarray | None:
    if given is not None and len(given) not in (1, channels):
        raise ValueError(f"{path}: data.{name} must have 1 or {channels} numbers, got {len(given)}")
    return None if given is None else np.array(given, np.float32)
