"""What recipes minimise: terms, sums of them, tasks with data of their own, and what holds learning back."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import npmerge as nm
from npmerge import Distillation, Entropy, Joint, Learned, PerParameter, Proximity, Simplex, Sum
from npmerge.checkpoint import load_network
from npmerge.demo.digits import load_digits
from npmerge.learning.goals import check_goal, goal_of
from npmerge.learning.starts import chosen_tensors
from npmerge.models import build
from npmerge.recipe import parse_recipe
from tests.docs.pages import blocks
from tests.npmerge.learning.digits import CONFIG, learn, merge, networks, recipe, run
from tests.npmerge.learning.test_starts import close

SGD = {"name": "sgd", "arguments": {"learning_rate": 1.0}}
OWN = {"name": "distillation", "arguments": {"teacher": "own"}}


@pytest.fixture
def bare(here):
    """Inputs of each network's own task, without labels; 40 of each."""
    for name, part in zip("ab", load_digits("80-20", seed=0).parts, strict=True):
        np.savez(here / f"{name}.npz", inputs=part.train.inputs[:40])
    return here


def goal(**block):
    (found,) = parse_recipe(recipe(learn=learn(**block)), "recipe.yml")
    check_goal(found, found.learn)
    return goal_of(found, found.learn, ["a.safetensors", "b.safetensors"], None)


def history(folder):
    return json.loads((folder / "history.json").read_text())


def test_each_network_teaches_its_own_task_without_labels(bare):
    block = learn(data=["a.npz", "b.npz"], objective=OWN, held_out=0, optimizer=SGD, steps=10)
    folder = merge(bare, "out", recipe(learn=block))
    stack, rule = nm.stack_models(list(networks())), Learned(nm.Average(), PerParameter(), Simplex())
    loss = nm.weight_space(rule, build(CONFIG).apply, Joint(Distillation(teacher="own")))
    parts = [np.load(bare / f"{x}.npz")["inputs"] for x in "ab"]
    batches = nm.by_task([nm.shuffled(x, np.zeros(40, np.int32), 16, seed=k) for k, x in enumerate(parts)])
    theta = nm.fit(rule.init(stack), loss, stack, batches, optax.sgd(1.0), steps=10).theta
    close(load_network(folder / "model.safetensors")[1], rule.apply(theta, stack))
    report = (folder / "report.md").read_text()
    assert "teaches nothing" not in report
    assert "distillation, joint over 2 tasks" in report and "no labels" in report
    assert "each of the 40 examples of a.npz, the 40 examples of b.npz" in report
    assert {"a.npz", "b.npz"} <= json.loads((folder / "npmerge.json").read_text())["inputs"].keys()


def test_tasks_are_measured_apart_and_together(here):
    test, held_out = load_digits("80-20", seed=0).test, []
    for k in range(2):
        part = slice(k, 60, 2 + k)
        np.savez(here / f"held{k}.npz", inputs=test.inputs[part], labels=test.labels[part])
        held_out.append(f"held{k}.npz")
    folder = merge(here, "out", recipe(learn=learn(data=["train.npz", "train.npz"], held_out=held_out)))
    found = history(folder)
    rows = found["evaluation"]["tasks"]
    assert list(rows) == held_out and [rows[x]["learned"]["examples"] for x in held_out] == [30, 20]
    whole = found["evaluation"]["networks"]["learned"]
    sums = [rows[x]["learned"]["accuracy"] * n for x, n in zip(held_out, (30, 20), strict=True)]
    assert whole["examples"] == 50 and whole["accuracy"] == pytest.approx(sum(sums) / 50)
    expected = np.mean([rows[x]["start"]["loss"] for x in held_out])
    assert found["held_out_loss"][0] == pytest.approx(expected, rel=0.02)  # in batches of 15 and 10
    assert min(found["held_out_loss"]) < found["held_out_loss"][0]
    assert "On held1.npz:" in (folder / "report.md").read_text()


def test_sums_and_tasks_are_objectives_of_the_library(here):
    terms = ["entropy", {"name": "proximity", "weight": 0.5, "arguments": {"to": 1}}]
    assert goal(objective=terms).objective == Sum((Entropy(), Proximity(1)), (1.0, 0.5))
    assert goal(data=["x", "y"], objective=OWN).objective == Joint(Distillation(teacher="own"))
    tasks = [{"path": "x", "objective": "entropy", "weight": 3}, "y"]
    assert goal(data=tasks, objective=OWN).objective == Joint((Entropy(), Distillation(teacher="own")), (1.5, 0.5))
    named = [{"path": "x", "model": "b.safetensors"}, {"path": "y", "model": "a.safetensors"}]
    assert goal(data=named, objective=OWN).objective == Joint((Distillation(teacher=1), Distillation(teacher=0)))
    assert goal(data=named, objective=OWN).idle == goal(data=tasks, objective=OWN).idle == ()
    same = [{"path": x, "model": "b.safetensors"} for x in "xy"]
    assert goal(data=same, objective=OWN).idle == ("a.safetensors",)
    assert goal(data=same, objective="entropy").idle == ()
    held = goal(objective=["entropy", {"name": "equal_shares", "weight": 2}, "toward_start"])
    assert (held.objective, held.regularisers) == (Entropy(), (("equal_shares", 2.0), ("toward_start", 1.0)))


def test_what_holds_back_keeps_coefficients_near(here):
    spread = []
    for weight in (0.01, 100):
        held = [{"name": name, "weight": weight} for name in ("equal_shares", "toward_start")]
        terms = ["cross_entropy", {"name": "proximity", "weight": weight / 100}, *held]
        block = learn(objective=terms, held_out=0, granularity="per_tensor", steps=8, exclude=["layers/1"])
        shares = history(merge(here, f"out{weight}", recipe(learn=block)))["shares"]["modules"]
        spread.append(np.abs(np.array([*shares.values()]) - 0.5).max())
    assert spread[1] < 0.3 * spread[0]


@pytest.mark.parametrize("sequential", [True, False])
def test_features_are_matched_on_the_network_itself(sequential, here):
    text = {"name": "feature_matching", "arguments": {"sequential": sequential, "teacher": 1}}
    folder = merge(here, "out", recipe(learn=learn(objective=text, steps=30, granularity="per_tensor")))
    loss = history(folder)["held_out_loss"]
    assert loss[-1] < 0.3 * loss[0]  # it goes to the teacher
    shares = history(folder)["shares"]["modules"]
    assert all(shares[f"layers/{k}"][1] > 0.6 for k in ((0, 1) if sequential else (0, 1, 2)))  # outputs are no node


def test_a_function_of_outputs_and_targets(here, monkeypatch):
    (here / "values_of_mine.py").write_text("def first(outputs, targets):\n    return (outputs[:, 0] - 1) ** 2\n")
    monkeypatch.syspath_prepend(str(here))
    term = {"name": "per_example", "arguments": {"function": "values_of_mine:first"}}
    folder = merge(here, "out", recipe(learn=learn(objective=term)))
    loss = history(folder)["held_out_loss"]
    assert min(loss) < loss[0]
    assert "values_of_mine.py" in json.loads((folder / "npmerge.json").read_text())["inputs"]


def test_targets_of_regression_are_for_objectives_that_read_them(here, monkeypatch):
    with np.load("train.npz") as file:
        np.savez(here / "real.npz", inputs=file["inputs"], labels=file["inputs"][:, :2].astype(np.float64))
    (here / "regression_of_mine.py").write_text("def squared(outputs, y):\n    return ((outputs[:, :2] - y) ** 2).sum(-1)\n")
    monkeypatch.syspath_prepend(str(here))
    term = {"name": "per_example", "arguments": {"function": "regression_of_mine:squared"}}
    folder = merge(here, "out", recipe(learn=learn(objective=term, data="real.npz")))
    loss = history(folder)["held_out_loss"]
    assert min(loss) < loss[0] and "no accuracy can be told" in (folder / "report.md").read_text()
    (here / "recipe.yml").write_text(recipe(learn=learn(data="real.npz")))
    with pytest.raises(ValueError, match=r"learn.objective: labels must be .* got \(\d+, 2\); a.safetensors gives"):
        run("plan", "recipe.yml")
    np.savez(here / "real.npz", inputs=np.zeros((8, 64), np.float32), labels=np.array([0.5, np.inf] * 4))
    with pytest.raises(ValueError, match=r"real.npz: labels hold values that are not finite: 4, the first in example 1"):
        run("plan", "recipe.yml")
    np.savez(here / "real.npz", inputs=np.random.default_rng(0).normal(size=(8, 64)), labels=np.zeros(8))
    with pytest.raises(
        ValueError, match=r"learn.objective: labels must be integers, got floating-point numbers; a.safetensors gives"
    ):
        run("plan", "recipe.yml")


FUNCTIONS = """
import jax.numpy as jnp
def size(apply, params, stack, batch):
    return jnp.square(apply(params, batch[0])).mean()
def broken(apply, params, stack, batch):
    return jnp.log(-size(apply, params, stack, batch))
"""


def test_networks_are_judged_by_a_function_of_ones_own(bare):
    """It lies in the folder of the command; there are no labels, of which it is told before."""
    (bare / "functions_of_mine.py").write_text(FUNCTIONS)
    text = recipe(learn=learn(objective="functions_of_mine:size", data="a.npz", steps=2, every=1))
    (bare / "recipe.yml").write_text(text)
    said = "warning: a.npz has no labels: functions_of_mine:size gets zeros in their place, as batch[1]"
    assert said in run("plan", "recipe.yml")
    folder = merge(bare, "out", text)
    judged = history(folder)["evaluation"]["objective"]
    assert list(judged) == ["a.safetensors", "b.safetensors", "start", "learned"]
    assert judged["start"] == pytest.approx(history(folder)["held_out_loss"][0], rel=1e-5)
    assert judged["learned"] == pytest.approx(min(history(folder)["held_out_loss"]), rel=1e-5)
    inputs = np.load(bare / "a.npz")["inputs"]
    for name in "ab":  # 30 are learned from, 10 are held out
        values = [float(jnp.square(build(CONFIG).apply(networks()["ab".index(name)], x[None])).mean()) for x in inputs]
        assert min(values) < judged[f"{name}.safetensors"] < max(values)
    lower = [name for name, value in judged.items() if value < judged["learned"]]
    assert ("Lower than what was learned: " + ", ".join(lower) in (folder / "report.md").read_text()) == bool(lower)
    (bare / "recipe.yml").write_text(text.replace(":size", ":broken"))
    with pytest.raises(ValueError, match=r"learn: the objective is nan at the start: .*; nothing was learned"):
        run("merge", "recipe.yml", "broken")
    assert not (bare / "broken").exists()


FAULTS = {
    "a term": (
        learn(objective=["entropy", "proximty"]),
        "learn.objective[1]: unknown objective 'proximty'",
    ),
    "its argument": (
        learn(objective=["entropy", {"name": "proximity", "arguments": {"too": 1}}]),
        "learn.objective[1]: unknown argument of proximity 'too': the nearest is 'to'",
    ),
    "its value": (
        learn(objective={"name": "feature_matching", "arguments": {"teacher": "men"}}),
        "learn.objective: the teacher of FeatureMatching must be",
    ),
    "an argument of features": (
        learn(objective={"name": "feature_matching", "arguments": {"sequentail": True}}),
        "unknown argument of feature_matching 'sequentail': the nearest is 'sequential'",
    ),
    "a node": (
        learn(objective={"name": "feature_matching", "arguments": {"names": ["nothing"]}}),
        "learn.objective: unknown node 'nothing': expected one of params/layers/0",
    ),
    "a node of one of several": (
        learn(objective=["equal_shares", {"name": "feature_matching", "arguments": {"names": ["nothing"]}}]),
        "learn.objective[1]: unknown node",
    ),
    "a weight of the only task": (
        learn(data={"path": "train.npz", "weight": 2}),
        "learn.data: weight is of one of several tasks",
    ),
    "an objective of the only task": (
        learn(data={"path": "train.npz", "objective": "entrpy"}),
        "learn.data.objective: unknown objective 'entrpy': the nearest is 'entropy'",
    ),
    "a sum": (learn(objective="sum"), "sum is written as a list of objectives"),
    "a distance": (learn(objective="weight_distance"), "straight_through"),
    "a regulariser alone": (learn(objective="equal_shares"), "equal_shares holds back what is learned from something"),
    "a regulariser of a task": (
        learn(data=["train.npz", {"path": "test.npz", "objective": ["entropy", "toward_start"]}], held_out=0),
        "learn.data[1].objective: toward_start is of all tasks",
    ),
    "a key of a task": (learn(data=["train.npz", {"pth": "x"}]), "unknown key 'pth': the nearest is 'path'"),
    "a model": (
        learn(data=[{"path": f"{x}.npz", "model": f"{x}.safetensor"} for x in ("train", "test")], held_out=0),
        "learn.data[0].model: unknown model 'train.safetensor'",
    ),
    "models of some tasks": (
        learn(data=[{"path": "train.npz", "model": "a.safetensors"}, "test.npz"]),
        "learn.data[1]: model is missing",
    ),
    "one teacher each": (
        learn(objective=OWN),
        "learn.objective: teacher: own is the model of each task: give a list under data",
    ),
    "tasks for models": (
        learn(data=["train.npz", "test.npz", "train.npz"], objective=OWN, held_out=0),
        "asks for a task for each model: got batches of 3 for 2 models",
    ),
    "held-out data": (learn(data=["train.npz", "train.npz"], held_out="test.npz"), "data for each of 2 tasks, got 1 of them"),
    "held-out data of one task": (
        learn(data=["train.npz", "test.npz"], held_out=["test.npz", "train.npz"]),
        "of its 359 inputs are in test.npz too",
    ),
    "data of a task": (learn(data=["train.npz", "tset.npz"]), "learn.data[1]: tset.npz: no such file"),
    "labels of a task": (
        learn(data=["train.npz", {"path": "test.npz", "labels": "y"}], held_out=0),
        "learn.data[1]: cross_entropy needs labels: test.npz has no 'y'",
    ),
    "a filter": (
        learn(exclude=["layer/9"]),
        "learn.exclude[0]: 'layer/9' matches no tensor that is merged, such as params/",
    ),
    "nothing to learn": (learn(exclude=["layers"]), "include and exclude leave no tensor"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_refused_with_the_line_and_what_was_expected(case, here):
    block, message = FAULTS[case]
    with pytest.raises(ValueError, match=r"^recipe\.yml:\d+: ") as caught:
        merge(here, "out", recipe(learn=block))
    assert message in str(caught.value)
    assert not (here / "out").exists()


def test_the_recipe_of_the_guide(bare):
    folder = merge(bare, "out", blocks("learning-by-recipe")["tasks"])
    loss = history(folder)["held_out_loss"]
    assert min(loss) < loss[0]
    assert "distillation + 0.01 equal_shares, joint over 2 tasks" in (folder / "report.md").read_text()


@pytest.mark.parametrize(("pattern", "learned"), [("h.0.", ["h.1.w", "norm.w"]), ("blocks/1", ["h.0.w", "norm.w"]), ("w", [])])
def test_a_filter_may_name_what_reports_name(pattern, learned, here):
    (made,) = parse_recipe(recipe(learn={"data": "train.npz", "exclude": [pattern]}), "r.yml")
    paths = {"h.0.w": ("params/blocks/0/k",), "h.1.w": ("params/blocks/1/k",), "norm.w": ("params/norm/scale",)}
    if learned:
        assert chosen_tensors(made, made.learn, paths) == learned
    else:
        with pytest.raises(ValueError, match="leave no tensor"):
            chosen_tensors(made, made.learn, paths)
