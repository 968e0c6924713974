"""Digits of three sets as three domains, of one size."""

import numpy as np
import pytest
from PIL import Image

from experiments.data.domains import digit_domains, resized
from tests.experiments.data import test_mnist, test_usps
from tests.experiments.data.writers import pixels


@pytest.mark.parametrize(("height", "side"), [(28, 16), (8, 16), (16, 16)])
def test_sizes_are_brought_together_as_pillow_does(height, side):
    images = pixels(3, height, height, 1)
    expected = [
        np.asarray(Image.fromarray(x[..., 0].astype(np.float32) / 255).resize((side, side), Image.Resampling.BILINEAR))
        for x in images
    ]
    assert resized(images, side)[..., 0] == pytest.approx(np.stack(expected), abs=1e-5)


def test_three_domains(tmp_path):
    test_mnist.write(tmp_path / "mnist", "{name}-idx{axes}-ubyte")
    (tmp_path / "usps").mkdir()
    test_usps.write_h5(tmp_path / "usps" / "usps.h5")
    data = digit_domains(tmp_path)
    assert np.bincount(data.train.columns["domain"]).tolist() == [6, 6, 1437]
    assert np.bincount(data.test.columns["domain"]).tolist() == [3, 3, 360]
    assert data.train.images.shape == (1449, 16, 16, 1)
    assert data.train.images.dtype == np.float32
    assert data.train.where(domain=1).images.reshape(6, 256) == pytest.approx(test_usps.PIXELS["train"], abs=1e-6)
    assert data.train.labels[:12].tolist() == [*range(6), *range(6)]
    assert data.train.names["domain"] == ("mnist", "usps", "digits")
    assert data.name == "MNIST + USPS + digits"
    few = digit_domains(tmp_path, names=("digits", "mnist"), side=8)
    assert few.test.where(domain=1).images.shape == (3, 8, 8, 1)
    with pytest.raises(ValueError, match=r"no USPS in "):
        digit_domains(tmp_path / "mnist")
