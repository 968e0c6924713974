"""Learning starts at the recipe's method, whatever its numbers; over devices it ends where it does on one."""

import io
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

import npmerge as nm
from npmerge.checkpoint import load_network, save_network
from npmerge.learning.progress import FitProgress
from npmerge.learning.shares import shares_of
from tests.npmerge.learning.digits import CONFIG, learn, merge, networks, recipe, run

BASED = "merge_method: {method}\nbase_model: base.safetensors\nmodels:\n{models}parameters: {shared}\n{learn}"


def close(a, b, atol=1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


@pytest.fixture
def base(here):
    mean = jax.tree.map(lambda x, y: 0.4 * x + 0.5 * y, *networks())
    save_network(here / "base.safetensors", CONFIG, mean)
    return mean


@pytest.mark.parametrize(
    ("method", "own", "shared", "expected"),
    [
        ("ties", "{weight: 0.5, density: 0.6}", "{normalize: true}", nm.Ties(0.6, scope="tensor", weights=(0.5, 0.5))),
        ("model_stock", "{}", "{}", nm.ModelStock()),
    ],
)
def test_methods_of_task_vectors(method, own, shared, expected, here, base):
    models = "".join(f"- {{model: {x}.safetensors, parameters: {own}}}\n" for x in "ab")
    block = "learn: {data: train.npz, steps: 0, granularity: per_parameter, constraint: free}\n"
    text = BASED.format(method=method, models=models, shared=shared, learn=block)
    found = load_network(merge(here, "out", text) / "model.safetensors")[1]
    close(found, expected(nm.stack_models(list(networks()), base)))
    plain = load_network(merge(here, "plain", text.replace(block, "")) / "model.safetensors")[1]
    close(found, plain)


@pytest.mark.parametrize(
    ("method", "own", "more", "sums"),
    [("ties", "{weight: 0.5, density: 0.6}", ", granularity: per_parameter", 0), ("task_arithmetic", "{weight: 1}", "", 2)],
)
def test_starts_outside_the_constraint_are_refused_by_the_plan(method, own, more, sums, here, base):
    models = "".join(f"- {{model: {x}.safetensors, parameters: {own}}}\n" for x in "ab")
    text = BASED.format(method=method, models=models, shared="{}", learn=f"learn: {{data: train.npz, steps: 1{more}}}\n")
    (here / "recipe.yml").write_text(text)
    said = rf"^recipe\.yml:7: learn: .* outside the simplex: over the models they sum to {sums}; choose another constraint$"
    with pytest.raises(ValueError, match=said):
        run("plan", "recipe.yml")


def test_slerp_and_filters_over_tensors(here):
    a, b = networks()
    head = "base_model: a.safetensors\nmodels: [{model: a.safetensors}, {model: b.safetensors}]\n"
    block = "learn: {data: train.npz, steps: 0, constraint: free}\n"
    found = merge(here, "slerp", f"merge_method: slerp\n{head}parameters: {{t: 0.25}}\n{block}")
    close(load_network(found / "model.safetensors")[1], nm.Slerp(0.25)(nm.stack_models([a, b])))
    varied = "merge_method: slerp\n" + head + "parameters: {t: [{filter: kernel, value: 0.2}, {value: 0.5}]}\n" + block
    with pytest.raises(ValueError, match="starts from slerp with the same parameters for all tensors, got 2 sets"):
        merge(here, "varied", varied)
    text = recipe(learn=learn(steps=0, granularity="per_tensor"))
    text = text.replace("weight: 1", "weight: [{filter: kernel, value: 1}, {value: 3}]", 1)
    expected = jax.tree.map(lambda x, y: (x + y) / 2 if x.ndim > 1 else (3 * x + y) / 4, a, b)
    close(load_network(merge(here, "filters", text) / "model.safetensors")[1], expected)


@pytest.mark.parametrize("more", [{"devices": 8}, {"devices": 2, "parallel": "pmap"}, {"accumulate": 2}])
def test_devices_and_parts_change_nothing_but_rounding(more, here):
    sgd = {"name": "sgd", "arguments": {"learning_rate": 1.0}}
    one, several = (
        load_network(merge(here, name, recipe(learn=learn(optimizer=sgd, **x))) / "model.safetensors")[1]
        for name, x in (("one", {}), ("several", more))
    )
    close(one, several, atol=1e-5)


def test_progress_tells_loss_held_out_loss_speed_and_memory():
    bar = Progress(TextColumn("{task.description}"), console=Console(file=io.StringIO()))
    told = FitProgress(bar, 100)
    told(25, 0.5)
    told.judged(50, 0.625)
    told(50, 0.25)
    (task,) = bar.tasks
    assert task.completed == 50 and task.total == 100
    assert re.fullmatch(r"loss 0\.25  held-out 0\.625  \S+ steps/s  \S+ [kMG]B", task.description)


def test_what_begins_is_told():
    said = io.StringIO()
    FitProgress(None, 1, Console(file=said))
    assert said.getvalue() == "learning: 1 step, compiled first\n"


def test_lines_have_the_held_out_loss_of_their_step(here):
    (here / "recipe.yml").write_text(recipe(learn=learn()))
    lines = re.findall(r"step (\d+) of 20  loss \S+  held-out (\S+)", run("merge", "recipe.yml", "out"))
    history = json.loads((here / "out" / "history.json").read_text())
    found = dict(zip(history["held_out_step"], history["held_out_loss"], strict=True))
    assert lines == [(str(step), f"{found[step]:.4g}") for step in (5, 10, 15, 20)]


def test_shares_are_means_over_the_coefficients_of_a_module():
    found = shares_of(
        {
            "params/a/kernel": np.array([[0.25, 0.75, 0.5], [0.75, 0.25, 0.5]]),
            "params/a/bias": np.array([[1.0], [0.0]]),
            "params/b": np.array([0.1, 0.9]),
        }
    )
    assert found.names == ["a", "b"]
    np.testing.assert_allclose(found.values, [[0.625, 0.375], [0.1, 0.9]])
