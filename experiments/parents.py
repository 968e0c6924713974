"""The networks that an experiment trains itself: each trained once, and kept beside the rows."""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import optax

import npmerge as nm
from alignment.graph import PyTree
from experiments.data import Examples
from experiments.problem import Problem, Training
from experiments.run import check_settings
from npmerge import checkpoint


def kept(problem: Problem, examples: Examples, path: Path, *, seed: int, order: int) -> PyTree:
    """Train one network on some images, or read the one that was trained before.

    Args:
        problem: whose network it is.
        examples: what it learns from.
        path: of its file.
        seed: of its initialisation.
        order: of its batches.

    Raises:
        ValueError: a file that was made with other data or another training (which).
    """
    made = trained_with(problem)
    if path.exists():
        check_settings(checkpoint.load_record(path).get("settings", {}), made, path)
        return checkpoint.load_network(path)[1]
    began = time.perf_counter()
    network = train(problem, examples, seed=seed, order=order)
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"seconds": round(time.perf_counter() - began, 1), "settings": made}
    checkpoint.save_network(path, problem.config, network, record)
    return network


def train(problem: Problem, examples: Examples, *, seed: int, order: int) -> PyTree:
    """A network after its last step: no validation data choose, since those have classes that it may never see.

    Args:
        problem: whose network it is.
        examples: what it learns from.
        seed: of its initialisation.
        order: of its batches, another one for each network of a group.
    """
    t = problem.task.training
    batches = problem.batches(examples, t.batch, seed=100 * problem.seed + order)
    return nm.fit(problem.initial(seed), problem.loss, None, batches, optimizer(t), steps=t.steps, every=t.steps).theta


@functools.lru_cache(maxsize=32)
def optimizer(t: Training) -> optax.GradientTransformation:
    """One object for each kind of training: a compiled step is found again by its identity."""
    if t.optimizer == "adamw":
        return optax.adamw(optax.cosine_decay_schedule(t.rate, t.steps), weight_decay=t.decay)
    rising = max(1, t.steps // 40)
    pieces = [
        optax.linear_schedule(1e-5 * t.rate, t.rate, rising),
        optax.linear_schedule(t.rate, 1e-5 * t.rate, t.steps - rising),
    ]
    sgd = optax.sgd(optax.join_schedules(pieces, [rising]), momentum=0.9)
    return optax.chain(optax.add_decayed_weights(t.decay), sgd)


def trained_with(problem: Problem) -> dict[str, Any]:
    """What decides a network but its group and seed."""
    return {
        "data": problem.images.name,
        "images": len(problem.images.train.labels),
        "training": dataclasses.asdict(problem.task.training),
        "augment": problem.task.augment,
    }


def seconds_of(folder: Path) -> float:
    """How long all networks that are kept in a folder were trained."""
    return round(sum(checkpoint.load_record(path)["seconds"] for path in sorted(folder.glob("*.safetensors"))), 1)
