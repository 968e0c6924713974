"""One label set in three domains: the digits of MNIST, of USPS and of scikit-learn, brought to one size."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float32, Real

from experiments.data.find import load
from experiments.data.scaling import from_0_to_1
from experiments.data.types import DataSet, Known, Part

DOMAINS = ("mnist", "usps", "digits")


def digit_domains(
    folder: Path | str | None = None, *, names: Sequence[str] = DOMAINS, side: int = 16, download: bool = False
) -> DataSet:
    """Handwritten digits of several sets as the domains of one, with the column "domain".

    Digits of MNIST have a border and those of USPS fill their images: that is left as it is, a part of what domains differ in.

    Args:
        folder: around the folders of the sets; looked for as `load` does.
        names: which sets, in the order of the domains.
        side: height and width that all images are brought to, linearly, averaging where they shrink.
        download: as of `load`.

    Returns:
        float32 images (n, side, side, 1) from 0 to 1, those of each domain in the order of their set.

    Raises:
        ValueError: as `load`.
    """
    sets = {name: load(name, folder, download=download) for name in names}
    known = Known(" + ".join(data.known.title for data in sets.values()), (side, side, 1), 10, None, "its parts")
    found = Path(", ".join(str(data.found) for data in sets.values()))
    return DataSet(known, found, {part: functools.partial(_joined, sets, part, side) for part in ("train", "test")})


def resized(images: Real[np.ndarray, "n height width c"], side: int) -> Float32[np.ndarray, "n side side c"]:
    """Images from 0 to 1 of another size, linearly interpolated, averaged where they shrink."""
    pixels = from_0_to_1(images)
    interpolated = jax.image.resize(pixels, (len(pixels), side, side, pixels.shape[-1]), "linear")
    return np.clip(np.asarray(interpolated), 0, 1)  # weights add up to one to rounding only


def _joined(sets: Mapping[str, DataSet], part: str, side: int) -> Part:
    parts: list[Part] = [getattr(data, part) for data in sets.values()]
    domain = np.repeat(np.arange(len(parts), dtype=np.int32), [len(x.labels) for x in parts])
    names = {"label": tuple("0123456789"), "domain": tuple(sets)}
    images, labels = (np.concatenate(x) for x in ([resized(p.images, side) for p in parts], [p.labels for p in parts]))
    return Part(images, labels, {"domain": domain}, names)
