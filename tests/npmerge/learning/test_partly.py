"""Some tensors are learned, others stay as the method merges them."""

import json

import jax
import numpy as np
import pytest

import npmerge as nm
from alignment.graph import flatten
from npmerge import Free, Learned, PerModel, PerTensor, Simplex
from npmerge.checkpoint import load_network
from npmerge.demo.digits import load_digits
from npmerge.learning.partly import PartlyLearned, shares_of_theta
from npmerge.models import build
from tests.npmerge.learning.digits import learn, merge, networks, recipe
from tests.npmerge.learning.test_starts import close

OURS = frozenset({"params/layers/1/kernel", "params/layers/2/bias"})


def moved(found, expected) -> set[str]:
    """The paths of leaves that differ."""
    theirs = flatten(expected)
    return {path for path, x in flatten(found).items() if np.abs(x - theirs[path]).max() > 1e-4}


@pytest.mark.parametrize("start", [nm.WeightedAverage((3, 1)), nm.TaskArithmetic(0.3)])
def test_the_start_is_the_closed_form_and_only_some_of_it_moves(start):
    a, b = networks()
    base = jax.tree.map(lambda x, y: 0.4 * x + 0.5 * y, a, b)
    stack = nm.stack_models([a, b], base if start.needs_base else None)
    rule = PartlyLearned(Learned(start, nm.PerParameter(), Free()), OURS)
    theta, expected = rule.init(stack), start(stack)
    close(rule.apply(theta, stack), expected)
    assert theta["latents"].keys() == OURS and len(theta["fixed"]) == 4
    other = jax.tree.map(lambda x: x + np.float32(0.25), theta["latents"])
    assert moved(rule.apply({**theta, "latents": other}, stack), expected) == OURS


def test_shares_are_those_that_are_learned():
    stack, start = nm.stack_models(list(networks())), nm.WeightedAverage((3, 1))
    for rule in (PartlyLearned(Learned(start, PerModel(), Simplex()), OURS), Learned(start, PerTensor(), Simplex())):
        np.testing.assert_allclose(shares_of_theta(rule)(rule.init(stack), stack, ()), 0.0625, rtol=1e-5)


def test_a_recipe_learns_what_it_asks_for(here):
    text = recipe(learn=learn(include=["layers"], exclude=["layers/1", "2/bias"])).replace("weight: 1", "weight: 3", 1)
    folder = merge(here, "out", text)
    closed = nm.WeightedAverage((3, 1))(nm.stack_models(list(networks())))
    paths = set(flatten(closed))
    fixed = {path for path in paths if "layers/1" in path or path.endswith("2/bias")}
    found = load_network(folder / "model.safetensors")[1]
    assert moved(found, closed) == paths - fixed
    assert "Learned: 3 of 6 tensors; the others are merged by linear." in (folder / "report.md").read_text()


def test_tensors_that_are_copied_are_so_in_the_network_that_learns(here):
    text = recipe(base_model="a.safetensors", exclude=["layers/0"], learn=learn(constraint="free", held_out="test.npz"))
    folder = merge(here, "out", text)
    config, variables = load_network(folder / "model.safetensors")
    close(variables["params"]["layers"][0], networks()[0]["params"]["layers"][0], atol=0)
    said = json.loads((folder / "history.json").read_text())["evaluation"]["networks"]["learned"]
    measured = nm.evaluate(build(config).apply, variables, [tuple(load_digits("80-20", seed=0).test)])
    np.testing.assert_allclose(said["loss"], measured.loss, rtol=1e-5)
