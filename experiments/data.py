"""Images that experiments learn from: CIFAR-10 where it is at hand, scikit-learn's digits where it is not."""

import io
import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CIFAR = Path("../shared/data/cifar10")
"""Where CIFAR-10 is looked for: its binary version `cifar-10-batches-bin`, or arrays compressed channel by channel."""


class Examples(NamedTuple):
    """Images, each channel with mean 0 and deviation 1 over the training set, and labels."""

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


def load_images(folder: Path | None = None, *, validation: float = 0.1) -> Images:
    """CIFAR-10 from a folder, or scikit-learn's digits (8 x 8, one channel) if `folder` is None.

    Raises:
        ValueError: a folder that holds CIFAR-10 in none of the known forms.
    """
    if folder is None:
        name, train, test = "digits", *_digits()
    elif (folder / "data_batch_1.bin").is_file():
        name, train, test = "CIFAR-10", *_official(folder)
    elif (folder / "labels.npz").is_file():
        name, train, test = "CIFAR-10, 20,000 of its training images", *_compressed(folder)
    else:
        raise ValueError(f"no CIFAR-10 in {folder}: give the folder cifar-10-batches-bin of its binary version")
    mean, deviation = train.inputs.mean((0, 1, 2)), train.inputs.std((0, 1, 2))
    train, test = (Examples(((x - mean) / deviation).astype(np.float32), y.astype(np.int32)) for x, y in (train, test))
    order = np.random.default_rng(0).permutation(len(train.labels))
    cut = round(validation * len(order))
    return Images(name, train.take(order[cut:]), train.take(order[:cut]), test)


def find_cifar() -> Path | None:
    """The folder of CIFAR-10 beside this checkout, if there is one."""
    return CIFAR if CIFAR.is_dir() else None


def _digits() -> tuple[Examples, Examples]:
    from sklearn.datasets import load_digits  # slow to import, and needed nowhere else

    images, labels = load_digits(return_X_y=True)
    everything = Examples((images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels)
    order = np.random.default_rng(1).permutation(len(labels))
    return everything.take(order[360:]), everything.take(order[:360])


def _official(folder: Path) -> tuple[Examples, Examples]:
    train = [_batch(folder / f"data_batch_{k}.bin") for k in range(1, 6)]
    joined = Examples(np.concatenate([b.inputs for b in train]), np.concatenate([b.labels for b in train]))
    return joined, _batch(folder / "test_batch.bin")


def _batch(path: Path) -> Examples:
    rows = np.fromfile(path, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(images.astype(np.float32) / 255, rows[:, 0])


def _compressed(folder: Path) -> tuple[Examples, Examples]:
    labels = np.load(folder / "labels.npz")
    names = {"train20k": "x_train20k.npy.xz", "test": "x_test.npy.xz"}
    train, test = (Examples(stored_images(folder / file), labels[f"y_{key}"]) for key, file in names.items())
    return train, test


def stored_images(path: Path) -> Float[np.ndarray, "n height width 3"]:
    """Images stored as differences along rows and columns, green taken off red and blue; arithmetic of uint8 wraps around."""
    stored = np.load(io.BytesIO(lzma.decompress(path.read_bytes())))
    c = np.cumsum(np.cumsum(stored, -2, dtype=np.uint8), -1, dtype=np.uint8)
    return np.stack([c[0] + c[1], c[1], c[2] + c[1]], -1).astype(np.float32) / 255
