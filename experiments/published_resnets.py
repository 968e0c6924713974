"""Test accuracy of strangers' ResNets for CIFAR-10 in JAX: `python -m experiments.published_resnets FILE...`."""

import argparse
from pathlib import Path

import jax
import numpy as np

from experiments.data import CIFAR, Examples, stored_images
from npmerge import evaluate
from npmerge.checkpoint.names import load_named
from npmerge.models import abstract

MEAN, DEVIATION = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
"""What the files were trained with: those of ImageNet."""


def load_test_set(folder: Path = CIFAR, count: int | None = None) -> Examples:
    """The first `count` images of the test set (all for None), as the published networks take them."""
    images = stored_images(folder / "x_test.npy.xz")[:count]
    labels = np.load(folder / "labels.npz")["y_test"][:count]
    return Examples((images - MEAN) / DEVIATION, labels.astype(np.int32))


def accuracy(path: Path, data: Examples, batch: int = 500) -> float:
    """Of the network in a file, in whose names and format it may be."""
    config, variables = load_named(path)
    batches = [data.take(np.arange(k, min(k + batch, len(data.labels)))) for k in range(0, len(data.labels), batch)]
    return float(evaluate(jax.jit(abstract(config).apply), variables, [tuple(x) for x in batches]).accuracy)


def main() -> None:
    """Print the accuracy of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--cifar", type=Path, default=CIFAR, help="folder of CIFAR-10")
    parser.add_argument("--count", type=int, help="images; all without it")
    given = parser.parse_args()
    data = load_test_set(given.cifar, given.count)
    for path in given.files:
        print(f"{path.name}: {100 * accuracy(path, data):.2f} % of {len(data.labels)}")  # noqa: T201


if __name__ == "__main__":
    main()
