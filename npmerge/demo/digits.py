"""The demo's data: scikit-learn's handwritten digits, divided between two networks."""

from typing import Literal, NamedTuple

import numpy as np

Split = Literal["same", "80-20", "disjoint"]
SPLITS: tuple[Split, ...] = ("same", "80-20", "disjoint")


class Examples(NamedTuple):
    """Images (n, 64) in [0, 1] as float32 and labels (n,) as int32."""

    inputs: np.ndarray
    labels: np.ndarray

    def take(self, index: np.ndarray) -> "Examples":
        """The examples at these places."""
        return Examples(self.inputs[index], self.labels[index])


class Digits(NamedTuple):
    """1,797 digits: three fifths for training, a fifth each for validation and test, and each network's training part."""

    train: Examples
    validation: Examples
    test: Examples
    parts: tuple[Examples, Examples]


def load_digits(split: Split, *, seed: int) -> Digits:
    """Shuffle, divide and split between two networks.

    Args:
        split: "same": both train on everything; "80-20": 80 % of the digits 0-4 and 20 % of 5-9 for the first, the rest for
            the second (the split of Git Re-Basin); "disjoint": 0-4 for the first, 5-9 for the second.
        seed: decides the order, and with it every part.
    """
    from sklearn.datasets import load_digits as load  # slow to import, and needed nowhere else

    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    images, labels = load(return_X_y=True)
    rng = np.random.default_rng(seed)
    everything = Examples((images / 16).astype(np.float32), labels.astype(np.int32)).take(rng.permutation(len(labels)))
    fifth = len(labels) // 5
    test, validation, train = (everything.take(part) for part in np.split(np.arange(len(labels)), [fifth, 2 * fifth]))
    share = {"same": None, "80-20": 0.8, "disjoint": 1.0}[split]
    if share is None:
        return Digits(train, validation, test, (train, train))
    toss = rng.random(len(train.labels))
    first = np.where(train.labels < 5, toss < share, toss >= share)
    return Digits(train, validation, test, (train.take(np.flatnonzero(first)), train.take(np.flatnonzero(~first))))
