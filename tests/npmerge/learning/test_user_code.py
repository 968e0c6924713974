"""Networks of the user that fail: told with the file, the line and what they raised; nothing is written."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import npmerge as nm
from npmerge.learning.user_code import user_network
from npmerge.recipe.named import Named
from tests.npmerge.learning.digits import learn, merge, recipe, run

MODULE = """
def direct(tensors, inputs):
    return inputs

def number():
    return 3

def focal(logits, labels):
    return (logits[:, 0] - labels) ** 2

def broken(depth=1):
    raise KeyError("of mine\\nand more")

def backwards():
    return lambda tensors, inputs: inputs @ tensors["z/kernel"] @ tensors["a/kernel"]

def network():
    return lambda tensors, inputs: inputs.reshape(-1, 64) @ tensors["params/layers/0/kernel"]
"""


@pytest.fixture
def mine(here, monkeypatch):
    (here / "nets_that_fail.py").write_text(MODULE)
    (here / "syntax_of_mine.py").write_text("def network(:\n")
    monkeypatch.syspath_prepend(str(here))
    x = np.linspace(0, 1, 5 * 63, dtype=np.float32).reshape(5, 63)
    np.savez(here / "narrow.npz", inputs=x, labels=np.arange(5))
    return here


RETURN = "it is called with its arguments and must return apply(tensors, inputs), or (apply, train_apply)"
TWO = "'tensors' and 'inputs'"
FACTORIES = {
    "nets_that_fail:direct": f"direct raises TypeError: direct() missing 2 required positional arguments: {TWO}: {RETURN}",
    "nets_that_fail:number": f"nets_that_fail:number returns int: {RETURN}",
    "nets_that_fail:broken": f"nets_that_fail:broken raises KeyError: 'of mine\\nand more': {RETURN}",
    "syntax_of_mine:network": "'syntax_of_mine:network' cannot be imported: SyntaxError: ",
}


@pytest.mark.parametrize("name", FACTORIES)
def test_what_is_no_factory_is_told_with_the_line(name, mine):
    with pytest.raises(ValueError, match=r"^recipe\.yml:\d+: learn\.architecture: ") as caught:
        merge(mine, "out", recipe(learn=learn(architecture=name)))
    assert FACTORIES[name] in str(caught.value)


def test_a_function_of_other_arguments_is_refused_by_the_plan(mine):
    (mine / "recipe.yml").write_text(recipe(learn=learn(objective="nets_that_fail:focal")))
    said = r"UserObjective takes a function of \(apply, params, stack, batch\), got focal\(logits, labels\); of .* per_example$"
    with pytest.raises(ValueError, match=rf"^recipe\.yml:\d+: learn\.objective: {said}"):
        run("plan", "recipe.yml")


def test_a_filter_that_matches_nothing_is_refused_by_the_plan(mine):
    (mine / "recipe.yml").write_text(recipe(learn=learn(architecture="nets_that_fail:network", exclude=["dwn"])))
    with pytest.raises(
        ValueError, match=r"^recipe\.yml:\d+: learn\.exclude\[0\]: 'dwn' matches no tensor that is merged, such as params/"
    ):
        run("plan", "recipe.yml")


def test_inputs_that_the_network_cannot_take_are_told_with_their_shape(mine):
    said = r"narrow\.npz: the network cannot take inputs of the shape \(examples, 63\) and dtype float32: TypeError: cannot"
    own = "nets_that_fail:network"
    align = {"method": "activation_matching", "data": "narrow.npz"}
    for keys, blocks in {
        r"learn\.data": {"learn": learn(architecture=own, data="narrow.npz")},
        r"learn\.held_out": {"learn": learn(architecture=own, held_out="narrow.npz")},
        r"align\.data": {"align": {**align, "architecture": own}},
    }.items():
        with pytest.raises(ValueError, match=rf"^recipe\.yml:\d+: {keys}: {said}") as caught:
            merge(mine, "out", recipe(**blocks))
        assert "\n" not in str(caught.value)
        assert not (mine / "out").exists()
    with pytest.raises(ValueError, match=f"^{said}"):
        run("evaluate", "a.safetensors", "--data", "narrow.npz", "--architecture", own)


def test_shares_stand_in_the_order_of_the_network(mine):
    """Not in that of the names: its hidden layer is called z."""
    rng = np.random.default_rng(0)
    for name in "pq":
        z, a = ({"kernel": rng.normal(size=shape).astype(np.float32)} for shape in ((64, 8), (8, 10)))
        nm.checkpoint.save(f"{name}.safetensors", {"a": a, "z": z}, {})
    text = recipe(learn=learn(architecture="nets_that_fail:backwards", steps=1, every=1))
    folder = merge(mine, "out", text.replace("a.safe", "p.safe").replace("b.safe", "q.safe"))
    assert list(json.loads((folder / "history.json").read_text())["shares"]["modules"]) == ["z", "a"]


def test_the_function_of_the_readme(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "npmerge" / "recipe" / "README.md").read_text()
    (tmp_path / "net_of_the_page.py").write_text(re.search(r"<!-- function -->\n```python\n(.*?)```", page, re.S)[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    network = user_network(Named(name="net_of_the_page:network", arguments={"slope": 0.1}))
    rng = np.random.default_rng(0)
    shapes = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(5, 3)).astype(np.float32)
    hidden = x @ tensors["0.weight"].T + tensors["0.bias"]
    expected = np.where(hidden > 0, hidden, 0.1 * hidden) @ tensors["2.weight"].T + tensors["2.bias"]
    np.testing.assert_allclose(network.apply(network.variables(tensors), x), expected, rtol=1e-5, atol=1e-6)
