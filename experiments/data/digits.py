"""scikit-learn's handwritten digits: 8 x 8 pixels of 17 greys, with that package on every machine."""

import numpy as np

from experiments.data.types import Part, Parts

TEST = 360


def read_digits() -> Parts:
    """A fixed fifth of them is for testing."""
    return {"train": lambda: _part(slice(TEST, None)), "test": lambda: _part(slice(TEST))}


def _part(places: slice) -> Part:
    from sklearn.datasets import load_digits  # slow to import, and needed nowhere else

    images, labels = load_digits(return_X_y=True)
    everything = Part((images.reshape(-1, 8, 8, 1) / 16).astype(np.float32), labels.astype(np.int32))
    return everything.take(np.random.default_rng(1).permutation(len(labels))[places])
