"""Test accuracy of strangers' ResNets for CIFAR-10 in JAX: `python -m experiments.published_resnets FILE...`."""

import argparse
from pathlib import Path

import jax
import numpy as np

from experiments.data import CIFAR, IMAGENET, Examples, load, scaled
from npmerge import evaluate
from npmerge.checkpoint.names import load_named
from npmerge.models import abstract


def load_test_set(folder: Path = CIFAR, count: int | None = None) -> Examples:
    """The first `count` images of the test set (all for None), as the published networks take them."""
    test = load("cifar10", folder).test
    return scaled(test.take(np.arange(len(test.labels))[:count]), IMAGENET)


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
