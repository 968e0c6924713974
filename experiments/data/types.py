"""What data are: images as they are stored, what is known of a set before it is read, and arrays to learn from."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int32, Real


class Examples(NamedTuple):
    """Images as networks take them, each channel shifted and scaled, and labels."""

    inputs: Float[np.ndarray, "n height width channels"]
    labels: Int[np.ndarray, " n"]

    def take(self, index: Int[np.ndarray, " k"]) -> "Examples":
        """The examples at these places."""
        return Examples(self.inputs[index], self.labels[index])


class Images(NamedTuple):
    """A data set of images in a fixed random order; validation is cut off the training set."""

    name: str
    train: Examples
    validation: Examples
    test: Examples


class Part(NamedTuple):
    """Images as they are stored, with labels and what else is known of each.

    Attributes:
        images: uint8, or float32 from 0 to 1.
        labels: from 0.
        columns: more numbers of each image, such as its "domain", from 0.
        names: what the numbers of "label" and of the columns mean, where the files say so.
    """

    images: Real[np.ndarray, "n height width channels"]
    labels: Int32[np.ndarray, " n"]
    columns: Mapping[str, Int32[np.ndarray, " n"]] = MappingProxyType({})
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def take(self, index: Int[np.ndarray, " k"]) -> "Part":
        """The images at these places."""
        columns = {name: column[index] for name, column in self.columns.items()}
        return Part(self.images[index], self.labels[index], columns, self.names)

    def where(self, **values: int) -> "Part":
        """The images whose columns have these values: `part.where(domain=2)`."""
        chosen = np.logical_and.reduce([self.columns[name] == value for name, value in values.items()])
        return self.take(np.flatnonzero(chosen))


Parts = Mapping[str, Callable[[], Part]]
"""How "train" and "test" are read, and "whole" where they are divided here; nothing is read before it is asked for."""

Reader = Callable[[Path, "Known"], Parts | None]
"""A format: the parts of what lies in a folder or a file, None where it is of another format."""


class Remote(NamedTuple):
    """A file that is published: where, and the hash of its bytes, such as "md5:..."."""

    url: str
    hash: str

    @property
    def file(self) -> str:
        """Its name."""
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Known:
    """What is known of a data set before it is read.

    Attributes:
        title: as pages tell it.
        shape: (height, width, channels) of an image.
        classes: how many.
        sizes: training and test images as published; None where the split is made here.
        source: who published it, and under which licence.
        homes: folders that it is published as, looked for inside the folder that is given.
        readers: the formats that it is known in.
        remote: the files of its official site; none where there is no such site.
        bundled: its parts, where a package brings them.
    """

    title: str
    shape: tuple[int, int, int]
    classes: int
    sizes: tuple[int, int] | None
    source: str
    homes: tuple[str, ...] = ()
    readers: tuple[Reader, ...] = ()
    remote: tuple[Remote, ...] = ()
    bundled: Callable[[], Parts] | None = None


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set that was found. Its parts are read when they are first asked for.

    Attributes:
        known: what it should be.
        found: the folder or file.
        parts: how they are read.
    """

    known: Known
    found: Path
    parts: Parts

    @functools.cached_property
    def train(self) -> Part:
        """To learn from. Raises ValueError for files that are damaged or are not of this set."""
        return self._checked("train")

    @functools.cached_property
    def test(self) -> Part:
        """To measure with. Raises ValueError for files that are damaged or are not of this set."""
        return self._checked("test")

    @functools.cached_property
    def whole(self) -> Part:
        """All images in the order in which they lie there, of a set whose parts are divided here."""
        return self._checked("whole")

    @property
    def name(self) -> str:
        """Its title, and how many training images there are where they are not all; reads them."""
        count, title = len(self.train.labels), self.known.title
        whole = self.known.sizes is None or count == self.known.sizes[0]
        return title if whole else f"{title}, {count:,} of its training images"

    def _checked(self, part: str) -> Part:
        read, known = self.parts[part](), self.known
        images, labels = read.images, read.labels
        where = f"{self.found}: {known.title}, {part}"
        if not len(labels) or len(images) != len(labels):
            raise ValueError(f"{where}: got {len(images)} images and {len(labels)} labels, expected as many, and one at least")
        if images.shape[1:] != known.shape:
            raise ValueError(f"{where}: got images of shape {images.shape[1:]}, expected {known.shape}")
        if labels.min() < 0 or labels.max() >= known.classes:
            raise ValueError(
                f"{where}: got labels from {labels.min()} to {labels.max()}, expected from 0 to {known.classes - 1}"
            )
        most = len(labels) if known.sizes is None else known.sizes[part == "test"]
        if len(labels) > most:
            raise ValueError(f"{where}: got {len(labels):,} images, expected {most:,} at most")
        return read


def divided(whole: Callable[[], Part], is_test: Callable[[Part], np.ndarray]) -> Parts:
    """The parts of a set that is published in one, by a function that says of each image whether it is for testing."""
    once = functools.cache(whole)
    return {
        "whole": once,
        "train": lambda: once().take(np.flatnonzero(~is_test(once()))),
        "test": lambda: once().take(np.flatnonzero(is_test(once()))),
    }
