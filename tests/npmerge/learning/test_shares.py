"""What reports call the modules of a network, and whether one model is all that is left."""

import numpy as np
import pytest

from npmerge import PerLayer, PerModel, PerTensor
from npmerge.checkpoint import save_network
from npmerge.learning.history import _histogram
from npmerge.learning.shares import collapsed, names_of
from npmerge.models import build
from tests.npmerge.learning.digits import CONFIG, learn, merge, recipe

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


def test_a_collapse_is_that_of_all_coefficients_together():
    equal = {"a": np.full((2, 3), 0.5), "b": np.full((2,), 0.5)}
    most = {"a": np.array([[0.0] * 3, [-1.0] * 3]), "b": np.array([0.2, 0.8])}
    assert collapsed(equal, most) == (1, 3.8 / 4)
    assert collapsed(equal, most | {"b": np.array([1.0, 0.0])}) is None
    assert collapsed(most, most) is None  # as it was given
    assert collapsed({"a": np.ones(1)}, {"a": np.ones(1)}) is None  # one model


def test_a_collapse_is_told_with_the_name_of_the_file_and_what_a_recipe_can_do(here):
    save_network(here / "c.safetensors", CONFIG, build(CONFIG, seed=9).variables)
    adam = {"name": "adam", "arguments": {"learning_rate": 1.0}}
    said = []
    for steps in (0, 10):
        block = learn(granularity="per_model", optimizer=adam, steps=steps)
        text = recipe(learn=block).replace("b.safetensors", "c.safetensors")
        said.append("Warning: the mean share of a.safetensors has" in (merge(here, f"{steps}", text) / "report.md").read_text())
    assert said == [False, True]


@pytest.mark.parametrize(("each", "bins"), [(1, 8), (28, 10), (100, 20), (10_000, 60)])
def test_few_coefficients_have_few_bins(each, bins):
    found = _histogram({"w": np.random.default_rng(0).standard_normal((2, each))})
    assert len(found["edges"]) == bins + 1 and [sum(x) for x in found["counts"]] == [each, each]
