"""Recipes learn with networks of `npmerge.models`, in the names of PyTorch, and with functions of the user."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import npmerge as nm
from alignment.graph import flatten
from npmerge.checkpoint.names import from_named, to_named
from npmerge.commands.planning import planned
from npmerge.models import Gpt2, ResNetCifar, abstract, build
from npmerge.recipe import parse_recipe
from tests.npmerge.learning.digits import learn, merge, networks, recipe, run

RESNET = ResNetCifar(blocks=1, width=4, side=8)
GPT = Gpt2(vocabulary=256, width=8, layers=1, heads=2, hidden=8, length=8)

FALLING = {"name": "cosine_decay_schedule", "arguments": {"init_value": 0.1, "decay_steps": 10}}
FUNCTION = """
import jax

def network(slope=0.0):
    def apply(tensors, inputs):
        x = inputs
        for k in range(3):
            x = x @ tensors[f"l{k}.weight"].T + tensors[f"l{k}.bias"][None]
            x = x if k == 2 else jax.nn.leaky_relu(x, slope)
        return x
    return apply
"""


def write_torch(path, variables) -> None:
    """The digits' network as PyTorch would have it."""
    found = {}
    for k, layer in enumerate(
        variables["params"]["layers"]
        if isinstance(variables["params"]["layers"], list)
        else variables["params"]["layers"].values()
    ):
        found[f"l{k}.weight"], found[f"l{k}.bias"] = np.array(layer["kernel"]).T.copy(), np.array(layer["bias"])
    save_file(found, path)


def test_a_function_of_the_user_is_learned_with(here, monkeypatch):
    (here / "nets_of_mine.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(str(here))
    for name, variables in zip("ab", networks(), strict=True):
        (here / f"{name}.safetensors").unlink()
        write_torch(here / f"{name}.safetensors", variables)
    block = learn(architecture={"name": "nets_of_mine:network", "arguments": {"slope": 0.0}}, held_out="test.npz")
    folder = merge(here, "out", recipe(learn=block))
    rows = json.loads((folder / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"]["loss"] < rows["start"]["loss"]
    assert [*load_file(folder / "model.safetensors")] == [*load_file(here / "a.safetensors")]
    assert "nets_of_mine.py" in json.loads((folder / "npmerge.json").read_text())["inputs"]
    said = run("plan", "recipe.yml")
    assert "learn: cross_entropy, per_parameter, simplex, 20 steps of 16; 1.48 k coefficients to learn" in said
    for name, part in (("nets_of_mine:nework", "the nearest is 'network'"), ("nets_of_mine:jax", "unknown function")):
        with pytest.raises(ValueError, match=part):
            merge(here, "no", recipe(learn=learn(architecture=name)))


def test_statistics_of_batch_norm_are_estimated_from_what_is_learned_from(here):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(32, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 32)
    np.savez(here / "images.npz", inputs=inputs, labels=labels)
    models = [build(RESNET, seed=k).variables for k in range(2)]
    for name, variables in zip("ab", models, strict=True):
        (here / f"{name}.safetensors").unlink()
        tensors = {f"module.{key}": x for key, x in to_named(RESNET, variables).items()}
        save_file(tensors, here / f"{name}.safetensors")
    block = learn(
        architecture={"name": "ResNetCifar", "arguments": {"side": 8}}, data="images.npz", held_out=0, steps=2,
        granularity="per_layer", batch_size=32,
    )  # fmt: skip
    folder = merge(here, "out", recipe(learn=block))
    stored = load_file(folder / "model.safetensors")
    assert [*stored] == [*load_file(here / "a.safetensors")]  # counters of batches too
    found = from_named(RESNET, stored)
    again = nm.reset_statistics(build(RESNET).train_apply, found, [(inputs, labels)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, again)
    assert "measured on 32 training examples" in (folder / "report.md").read_text().lower()


def test_running_statistics_of_the_base_are_its_own(here):
    rng = np.random.default_rng(0)
    shapes = {path: x.shape for path, x in flatten(abstract(RESNET).variables).items()}
    stored = {name: {path: rng.normal(size=x).astype(np.float32) for path, x in shapes.items()} for name in ("a", "b", "base")}
    for name, tensors in stored.items():
        (here / f"{name}.safetensors").unlink(missing_ok=True)
        save_file(tensors, here / f"{name}.safetensors")
    kind = {"name": "ResNetCifar", "arguments": {"blocks": 1, "width": 4, "side": 8}}
    text = recipe(base_model="base.safetensors", learn=learn(architecture=kind)).replace("linear", "task_arithmetic")
    (found,) = parse_recipe(text)
    members = planned(found, {}).blocks.members
    statistic = next(path for path in shapes if path.endswith("mean"))
    for tensors, name in zip(members.all, ("base", "a", "b"), strict=True):
        np.testing.assert_array_equal(np.asarray(tensors[statistic]), stored[name][statistic])


def test_language_models_learn_the_next_token_in_half_precision(here):
    (here / "text.txt").write_bytes(b"to be or not to be, that is the question " * 8)
    for k, name in enumerate("ab"):
        (here / f"{name}.safetensors").unlink()
        tensors = to_named(GPT, build(GPT, seed=k).variables)
        save_file({key: x.astype(jnp.bfloat16) for key, x in tensors.items()}, here / f"{name}.safetensors")
    block = learn(
        architecture={"name": "Gpt2", "arguments": {"heads": 2}}, data="text.txt", granularity="per_tensor", steps=10,
        optimizer={"name": "adam", "schedule": FALLING},
    )  # fmt: skip
    folder = merge(here, "out", recipe(learn=block))
    assert {x.dtype for x in load_file(folder / "model.safetensors").values()} == {np.dtype(jnp.bfloat16)}
    loss = json.loads((folder / "history.json").read_text())["held_out_loss"]
    assert min(loss) < loss[0]


def test_an_objective_of_the_user(here, monkeypatch):
    (here / "losses_of_mine.py").write_text(
        "def squared(apply, params, stack, batch):\n    return ((apply(params, batch[0]) - 1) ** 2).mean()\n"
    )
    monkeypatch.syspath_prepend(str(here))
    folder = merge(here, "out", recipe(learn=learn(objective="losses_of_mine:squared")))
    loss = json.loads((folder / "history.json").read_text())["held_out_loss"]
    assert min(loss) < loss[0]
    assert "losses_of_mine.py" in json.loads((folder / "npmerge.json").read_text())["inputs"]
    with pytest.raises(ValueError, match=r"learn\.objective: unknown function of losses_of_mine 'squred': the nearest is"):
        merge(here, "no", recipe(learn=learn(objective="losses_of_mine:squred")))


def test_without_labels_teachers_are_distilled(here):
    with np.load(here / "train.npz") as train:
        np.savez(here / "bare.npz", inputs=train["inputs"])
    folder = merge(here, "out", recipe(learn=learn(data="bare.npz", objective="distillation")))
    history = json.loads((folder / "history.json").read_text())
    assert history["evaluation"]["networks"] == {} and min(history["held_out_loss"]) < history["held_out_loss"][0]
    assert "no labels" in (folder / "report.md").read_text()
