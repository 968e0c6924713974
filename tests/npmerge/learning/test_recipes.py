"""Recipes that align and learn, from files to folders."""

import json
import re

import jax
import numpy as np
import optax
import pytest
import yaml

import npmerge as nm
from npmerge import Learned, PerParameter, Simplex
from npmerge.checkpoint import load_network
from npmerge.demo.digits import load_digits
from npmerge.learning.learner import Learner
from npmerge.learning.page import FILES, told
from npmerge.learning.progress import FitProgress
from npmerge.learning.run import resumed
from npmerge.models import build
from tests.npmerge.learning.digits import CONFIG, learn, merge, networks, recipe, run
from tests.pages import both_pages


def close(a, b, atol=1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5), a, b)


def test_a_learned_merge_is_better_than_its_start_and_says_so(here, drawn):
    folder = merge(here, "out", recipe(learn=learn(held_out="test.npz", steps=60)))
    assert {*FILES, "npmerge.json", "README.md", "model.safetensors"} == {x.name for x in folder.iterdir()}
    config, variables = load_network(folder / "model.safetensors")
    assert config == CONFIG
    history = json.loads((folder / "history.json").read_text())
    rows = history["evaluation"]["networks"]
    assert list(rows) == ["a.safetensors", "b.safetensors", "start", "learned"]
    assert rows["learned"]["loss"] < rows["start"]["loss"] - 0.01
    test = load_digits("80-20", seed=0).test
    measured = nm.evaluate(build(config).apply, variables, [tuple(test)])
    np.testing.assert_allclose(rows["learned"]["loss"], measured.loss, rtol=1e-5)
    assert (len(history["loss"]), history["held_out_step"]) == (60, [*range(0, 61, 5)])
    shares = np.array([*history["shares"]["modules"].values()])
    assert list(history["shares"]["modules"]) == ["layers/0", "layers/1", "layers/2"]
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    gained = f"accuracy {rows['learned']['accuracy']:.4f}, loss {rows['learned']['loss']:.4f}; the start"
    assert gained in (folder / "README.md").read_text()
    rows_of_both, _ = both_pages(folder)
    assert [["learned", f"{rows['learned']['accuracy']:.4f}"]] == [x[:2] for x in rows_of_both if x[0] == "learned"]
    report = (folder / "report.md").read_text()
    for text in (
        "| start |",
        "per_parameter, simplex, cross_entropy",
        "held-out objective",
        "\n| layers/2 |",
        "359 held-out examples of test.npz",
    ):
        assert text in report


def test_the_objective_of_a_fit_is_told_apart_from_the_loss_of_its_networks():
    rows = {x: {"accuracy": 0.5, "loss": 1.25, "examples": 4} for x in ("a", "start", "learned")}
    history = {"status": "finished", "loss": [1.0], "held_out_step": [0, 1], "held_out_loss": [1.5, 1.0], "warnings": []}
    history |= {"evaluation": {"networks": rows, "held_out": True, "examples": "x"}, "asked": {"batch_statistics": True}}
    first, *said = told(history)
    assert first.endswith("held-out objective 1.5000 at the start, 1.0000 at its best, after step 1.")
    assert "start: accuracy 0.5000, loss 1.2500" in said
    why = "held-out objective of the fit is with the statistics of each batch, and differs from that loss"
    assert why in "".join(said)
    history["asked"]["batch_statistics"] = False
    assert "statistics" not in "".join(told(history))


def test_a_model_may_be_called_like_a_result(here):
    merge(here, "learned", recipe(learn=learn(steps=1)))
    text = recipe(learn=learn(steps=1)).replace("a.safetensors", "learned")
    rows = json.loads((merge(here, "again", text) / "history.json").read_text())["evaluation"]["networks"]
    assert list(rows) == ["model learned", "b.safetensors", "start", "learned"]
    before = json.loads((here / "learned" / "history.json").read_text())["evaluation"]["networks"]["learned"]
    assert rows["model learned"]["loss"] == pytest.approx(before["loss"], rel=1e-5) != rows["learned"]["loss"]


def test_it_is_what_the_library_learns(here):
    folder = merge(here, "out", recipe(learn=learn(held_out=0, optimizer={"name": "sgd", "arguments": {"learning_rate": 1.0}})))
    stack = nm.stack_models(list(networks()))
    rule = Learned(nm.Average(), PerParameter(), Simplex())
    data = load_digits("80-20", seed=0).validation
    loss = nm.weight_space(rule, build(CONFIG).apply, nm.CrossEntropy())
    batches = nm.shuffled(data.inputs, data.labels, 16, seed=0)
    theta = nm.fit(rule.init(stack), loss, stack, batches, optax.sgd(1.0), steps=20).theta
    close(load_network(folder / "model.safetensors")[1], rule.apply(theta, stack))


def test_a_fit_that_diverges_is_written_and_says_so(here):
    sgd = {"name": "sgd", "arguments": {"learning_rate": 1e37}}
    folder = merge(here, "out", recipe(learn=learn(held_out=0, optimizer=sgd, constraint="free", batch_size=64)))
    history = json.loads((folder / "history.json").read_text())
    assert history["status"] == "diverged" and history["loss"][-1] is None and None not in history["loss"][:-1]
    assert f"diverged: the loss of step {len(history['loss'])} or" in (folder / "report.md").read_text()
    assert (folder / "model.safetensors").exists()


def test_a_fit_that_finds_nothing_better_says_that_the_start_is_kept(here):
    uphill = {"name": "sgd", "arguments": {"learning_rate": -3.0}}
    folder = merge(here, "out", recipe(learn=learn(optimizer=uphill, steps=5)))
    report = (folder / "report.md").read_text()
    assert "and never below it: the result is the start." in report
    rows = json.loads((folder / "history.json").read_text())["evaluation"]["networks"]
    assert rows["learned"] == rows["start"]
    better = [name for name, row in rows.items() if row["accuracy"] > rows["learned"]["accuracy"]]
    assert better and f"More accurate than what was learned: {', '.join(better)}." in report


def test_no_steps_are_the_closed_form(here):
    text = recipe(learn=learn(steps=0)).replace("weight: 1", "weight: 3", 1)
    a, b = networks()
    (here / "recipe.yml").write_text(text)
    assert "no steps: nothing is learned\n" in run("merge", "recipe.yml", "out")
    folder = here / "out"
    close(load_network(folder / "model.safetensors")[1], nm.WeightedAverage((3, 1))(nm.stack_models([a, b])))
    assert "no steps were taken: the result is the start." in (folder / "report.md").read_text()
    (here / "c.safetensors").symlink_to(here / "b.safetensors")
    text = recipe(learn=learn(steps=0, constraint="free"), base_model="a.safetensors").replace("linear", "task_arithmetic")
    text = text.replace("model: a.safetensors", "model: c.safetensors", 1).replace("weight: 1", "weight: 0.5")
    close(load_network(merge(here, "based", text) / "model.safetensors")[1], b)  # a + (b - a) / 2 twice


def test_the_same_recipe_makes_the_same_bytes_and_is_made_again_by_its_record(here, drawn):
    text = recipe(learn=learn(), align={"method": "weight_matching"})
    first, second = merge(here, "first", text), merge(here, "second", text)
    run("merge", "first/npmerge.json", "third", "--quiet")
    for file in first.iterdir():
        content = file.read_bytes()
        assert (here / "third" / file.name).read_bytes() == content or file.name == "README.md", file.name
        assert (second / file.name).read_bytes() == content or file.name == "README.md", file.name
    assert {"flax", "optax"} < json.loads((first / "npmerge.json").read_text())["versions"].keys()
    inputs = json.loads((first / "npmerge.json").read_text())["inputs"]
    assert [*inputs] == ["a.safetensors", "b.safetensors", "train.npz"]


def test_alignment_alone_is_followed_by_the_merge_of_tensors(here):
    rng = np.random.default_rng(0)
    order = rng.permutation(16)
    a, _ = networks()
    hidden = jax.tree.map(np.array, a)
    layers = hidden["params"]["layers"]
    layers[0]["kernel"], layers[0]["bias"] = layers[0]["kernel"][:, order], layers[0]["bias"][order]
    layers[1]["kernel"] = layers[1]["kernel"][order]
    (here / "b.safetensors").unlink()
    nm.checkpoint.save_network(here / "b.safetensors", CONFIG, hidden)
    (here / "recipe.yml").write_text(recipe(align={"method": "weight_matching"}))
    said, folder = run("merge", "recipe.yml", "out"), here / "out"
    told = re.search(r"aligned by weight_matching: \|b.safetensors - a.safetensors\| .* is (.*), (.*) before", said)
    after, before = told.groups()
    assert float(after) < 1e-6 < 0.5 < float(before)
    close(load_network(folder / "model.safetensors")[1], a)
    (here / "recipe.yml").write_text(recipe(align={"method": "activation_matching", "data": "train.npz"}))
    told, folder = run("merge", "recipe.yml", "by").splitlines(), here / "by"
    phases = ["reading", "tracing", "aligning by activation_matching", "activations", "matching units"]
    assert [line for line in told if line in phases] == phases
    found = load_network(folder / "model.safetensors")[1]
    test = [tuple(load_digits("80-20", seed=0).test)]
    assert nm.evaluate(build(CONFIG).apply, found, test).accuracy > nm.evaluate(build(CONFIG).apply, a, test).accuracy - 0.1


def test_an_interrupted_fit_goes_on_with_resume(here, monkeypatch):
    text = recipe(learn=learn(steps=40, checkpoints={"steps": 10}))
    expected = merge(here, "whole", text)

    class PulledError(Exception):
        pass

    class Pulling(FitProgress):
        def judged(self, step, loss):
            if step == 25:
                raise PulledError

    with monkeypatch.context() as patch:
        patch.setattr("npmerge.learning.progress.FitProgress", Pulling)
        with pytest.raises(PulledError):
            merge(here, "out", text, "--resume")
    (fit,) = (here / ".out.partial" / "fit").iterdir()
    assert sorted(int(x.name) for x in fit.iterdir()) == [10, 20]
    steps = []
    real = Learner.learnt

    def counted(self, names, progress, checkpoints):
        steps.append(checkpoints)
        return real(self, names, progress, checkpoints)

    monkeypatch.setattr(Learner, "learnt", counted)
    assert resumed(fit) == "resumed at step 20"
    assert resumed(fit.with_name("fit-of-others")).startswith("not resumed: what was left is of another learn block")
    assert resumed(here / "nothing" / "fit-1") == ""
    (here / "nothing" / "fit-1").mkdir(parents=True)
    assert resumed(here / "nothing" / "fit-1") == "not resumed: no step of an interrupted fit was saved"
    said, out = run("merge", "recipe.yml", "out", "--resume"), here / "out"
    assert "resumed at step 20" in said and "step 21 of 40  loss 0." in said and "not resumed" not in said
    assert steps[0].folder.name == fit.name
    for file in ("model.safetensors", "history.json", "report.md"):
        assert (out / file).read_bytes() == (expected / file).read_bytes()


def test_each_learned_document_leaves_its_report(here):
    half = yaml.safe_load(recipe(learn=learn(steps=5)))
    text = recipe(learn=learn(steps=10)).replace("b.safetensors", "half")
    (here / "recipe.yml").write_text(yaml.safe_dump({"name": "half", **half}) + "---\n" + text)
    assert "half: learned: finished after 5 steps" in run("merge", "recipe.yml", "out")
    places = (here / "out" / "reports" / "half", here / "out")
    assert [len(json.loads((x / "history.json").read_text())["loss"]) for x in places] == [5, 10]
    assert "| half |" in (places[1] / "report.md").read_text() and "| b.safetensors |" in (places[0] / "report.md").read_text()
