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


class Part(NamedTuple):
    """What one network is trained on, and the validation examples of the same mixture of classes."""

    train: Examples
    validation: Examples


class Digits(NamedTuple):
    """1,797 digits: three fifths for training, a fifth each for validation and test, and the part of each network."""

    train: Examples
    validation: Examples
    test: Examples
    parts: tuple[Part, Part]


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
    if split == "same":
        whole = Part(train, validation)
        return Digits(train, validation, test, (whole, whole))
    share = 0.8 if split == "80-20" else 1.0
    halves = [_divide(examples, share, rng) for examples in (train, validation)]
    return Digits(train, validation, test, (Part(*(h[0] for h in halves)), Part(*(h[1] for h in halves))))


def _divide(examples: Examples, share: float, rng: np.random.Generator) -> tuple[Examples, Examples]:
    """`share` of the digits 0-4 and the rest of 5-9 to the first, the others to the second."""
    toss = rng.random(len(examples.labels))
    first = np.where(examples.labels < 5, toss < share, toss >= share)
    return examples.take(np.flatnonzero(first)), examples.take(np.flatnonzero(~first))
