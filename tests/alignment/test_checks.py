"""What arguments are told to be where they cannot be used."""

import pytest

from alignment.checks import channels_first


@pytest.mark.parametrize("shape, told", [
    ((2, 3, 8, 8), True), ((2, 1, 8, 8), True), ((2, 3, 8, 4), True), ((2, 4, 8, 8), False), ((2, 3, 8, 3), False),
    ((2, 3, 8, 1), False), ((2, 3, 8), False),
])  # fmt: skip
def test_images_with_few_channels_in_front_are_those_of_pytorch(shape, told):
    assert bool(channels_first([(2, 8, 8, 3), shape])) is told
