"""Two small networks on scikit-learn's digits, their files, and recipes that merge them."""

import functools
from pathlib import Path

import numpy as np
import optax
import yaml
from typer.testing import CliRunner

import npmerge as nm
from npmerge.checkpoint import save_network
from npmerge.cli import app
from npmerge.demo.digits import load_digits
from npmerge.models import Mlp, build

CONFIG = Mlp(hidden=(16, 16))


@functools.cache
def networks() -> tuple:
    """Trained on different parts, from one initialisation: their average is a network too."""
    data, task = load_digits("80-20", seed=0), nm.fine_tuning(build(CONFIG).apply, nm.CrossEntropy())
    adam, start = optax.adam(3e-3), build(CONFIG).variables
    batches = [nm.shuffled(*part.train, 64, seed=k) for k, part in enumerate(data.parts)]
    return tuple(nm.fit(start, task, None, x, adam, steps=120).theta for x in batches)


def write_all(folder: Path) -> None:
    """The networks as a.safetensors and b.safetensors, examples as train.npz and test.npz."""
    for name, variables in zip("ab", networks(), strict=True):
        save_network(folder / f"{name}.safetensors", CONFIG, variables)
    data = load_digits("80-20", seed=0)
    for name, examples in (("train", data.validation), ("test", data.test)):
        np.savez(folder / f"{name}.npz", inputs=examples.inputs, labels=examples.labels)


def recipe(**blocks: object) -> str:
    """A recipe for the two with these blocks; keys of `learn` may be given by themselves."""
    models = [{"model": f"{x}.safetensors", "parameters": {"weight": 1}} for x in "ab"]
    return yaml.safe_dump({"merge_method": "linear", "models": models, **blocks}, sort_keys=False)


def learn(**given: object) -> dict:
    """A `learn:` that takes a second."""
    plain = {"data": "train.npz", "held_out": 0.25, "granularity": "per_parameter", "steps": 20, "every": 5, "batch_size": 16}
    return {**plain, **given}


def run(*arguments: str) -> str:
    """What `npmerge` prints; its errors are raised."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def merge(folder: Path, out: str, text: str, *flags: str) -> Path:
    """The folder that a recipe makes."""
    (folder / "recipe.yml").write_text(text)
    run("merge", "recipe.yml", out, "--quiet", *flags)
    return folder / out
