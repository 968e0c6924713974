"""The data of all experiments: found, read, divided among models and made into batches.

`load("cifar100")` finds a set in any format it is known in, `standardised` makes arrays of it that networks take; `split` and
`labelled` say who learns from which images, `augmented` flips and crops them.
"""

from pathlib import Path

from experiments.data.augment import augmented
from experiments.data.catalogue import CATALOGUE
from experiments.data.domains import digit_domains
from experiments.data.find import CIFAR, PACS, SHARED, find_cifar, load
from experiments.data.scaling import IMAGENET, Scale, joined, scale_of, scaled, standardised
from experiments.data.splits import SPLITS, labelled, split
from experiments.data.stored import stored_images
from experiments.data.types import DataSet, Examples, Images, Part

__all__ = [
    "CATALOGUE",
    "CIFAR",
    "IMAGENET",
    "PACS",
    "SHARED",
    "SPLITS",
    "DataSet",
    "Examples",
    "Images",
    "Part",
    "Scale",
    "augmented",
    "digit_domains",
    "find_cifar",
    "joined",
    "labelled",
    "load",
    "load_images",
    "scale_of",
    "scaled",
    "split",
    "standardised",
    "stored_images",
]


def load_images(folder: Path | None = None, *, validation: float = 0.1) -> Images:
    """CIFAR-10 from a folder, or scikit-learn's digits (8 x 8, one channel) if `folder` is None.

    Raises:
        ValueError: a folder that holds CIFAR-10 in none of the known forms.
    """
    return standardised(load("digits") if folder is None else load("cifar10", folder), validation=validation)
