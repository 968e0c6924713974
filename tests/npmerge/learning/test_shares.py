"""What reports call the modules of a network."""

from npmerge import PerLayer, PerModel, PerTensor
from npmerge.learning.shares import names_of

PATHS = {
    "layer1.0.conv1.weight": ("params/blocks/0/conv1/kernel",),
    "layer1.0.bn1.weight": ("params/blocks/0/norm1/scale",),
    "fc.weight": ("params/head/kernel",),
    "own": ("own",),
}


def test_modules_have_the_names_of_the_files():
    theirs = {"blocks/0/conv1": "layer1.0.conv1", "blocks/0/norm1": "layer1.0.bn1", "head": "fc"}
    assert names_of(PATHS, PerTensor().group) == theirs
    assert names_of(PATHS, PerLayer(r"blocks/\d+").group) == {"blocks/0": "layer1.0", "head": "fc"}
    assert names_of(PATHS, PerModel().group) == {}
    assert names_of({"own": ("own",)}, PerTensor().group) == {}
