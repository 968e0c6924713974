"""Folders of images: a folder for each class, in the order of their names."""

from collections.abc import Sequence
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
    files = [(file, k) for k, x in enumerate(folders) for file in sorted(x.iterdir()) if file.suffix.lower() in SUFFIXES]
    shape = _shape(str(path), data, config)
    images = np.stack([_read(file, shape) for file, _ in files])
    return _scaled(str(path), images, data), np.array([k for _, k in files], np.int32)


def prepared(name: str, images: Sequence[Any], data: Data, config: Config | None) -> np.ndarray:
    """Images of Pillow as `read_images` has those of files. Raises ValueError for no size to bring them to."""
    shape = _shape(name, data, config)
    return _scaled(name, np.stack([_pixels(image, shape) for image in images]), data)


def _shape(name: str, data: Data, config: Config | None) -> tuple[int, int, int]:
    """Height, width and channels that the network takes."""
    shape = () if config is None or len(config.input_shape) != 3 else config.input_shape
    size = data.size or shape[:2]
    if not size:
        raise ValueError(f"{name}: the network does not tell the size of its images: give data.size, [height, width]")
    return size[0], size[1], shape[2] if shape else 3


def _scaled(name: str, images: np.ndarray, data: Data) -> np.ndarray:
    mean, deviation = (_channels(name, key, getattr(data, key), images.shape[-1]) for key in ("mean", "deviation"))
    if mean is not None:
        images = images - mean
    return images if deviation is None else images / deviation


def _read(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with _pillow().open(file) as image:
            return _pixels(image, shape)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{file} cannot be read as an image: {error}") from None


def _pixels(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """From 0 to 1, brought to that size."""
    plain = image.convert("L" if shape[2] == 1 else "RGB")
    if plain.size != (shape[1], shape[0]):
        plain = plain.resize((shape[1], shape[0]), _pillow().Resampling.BILINEAR)
    return np.asarray(plain, np.float32).reshape(shape) / np.float32(255)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("folders of images are read by Pillow, which is not installed: pip install pillow") from None
    return Image


def _channels(path: str, name: str, given: list[float] | None, channels: int) -> np.ndarray | None:
    if given is not None and len(given) not in (1, channels):
        raise ValueError(f"{path}: data.{name} must have 1 or {channels} numbers, got {len(given)}")
    return None if given is None else np.array(given, np.float32)
