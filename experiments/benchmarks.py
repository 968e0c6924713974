"""The hot paths against a peer or a floor: `python -m experiments.benchmarks --out experiments/results/benchmarks`.

Every pair is timed interleaved in one run, so that a busy machine slows both alike; what counts is the ratio of medians.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import npmerge as nm
from alignment import capture
from alignment.graph import PyTree
from npmerge.models import ResNetCifar, build, example
from npmerge.report import markdown_table
from npmerge.version import __version__

Thunk = Callable[[], Any]


def interleaved(ours: Thunk, peer: Thunk, *, repeats: int) -> tuple[float, float]:
    """Median seconds of two functions, called in turns after one call each to compile."""
    times: tuple[list[float], list[float]] = ([], [])
    for thunk in (ours, peer):
        jax.block_until_ready(thunk())
    for _ in range(repeats):
        for thunk, taken in zip((ours, peer), times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(thunk())
            taken.append(time.perf_counter() - began)
    return statistics.median(times[0]), statistics.median(times[1])


def average_of_models(size: int, repeats: int) -> tuple[str, str, float, float]:
    """`combine` against the plainest loop that reads the same memory."""
    x = np.random.default_rng(0).standard_normal((4, size), np.float32)
    stack = nm.Stack({"w": jnp.asarray(x)})
    theta, apply = nm.Average().init(stack), jax.jit(nm.Average().apply)
    mean = jax.jit(lambda v: 0.25 * (v[0] + v[1] + v[2] + v[3]))
    times = interleaved(lambda: apply(theta, stack), lambda: mean(stack.params["w"]), repeats=repeats)
    return "average of 4 models, one tensor", "a sum written out", *times


def moments(width: int, repeats: int) -> tuple[str, str, float, float]:
    """The statistics pass of all nodes of two networks against their plain forwards."""
    config = ResNetCifar(width=width)
    apply, models = build(config).apply, [build(config, seed=k).variables for k in range(2)]
    graph = nm.trace(apply, models[0], example(config))
    x = np.random.default_rng(0).standard_normal((128, *config.input_shape), np.float32)
    measure = jax.jit(lambda m, v: nm.NodeMoments().measure(apply, graph, m, (v, None)))
    forward = jax.jit(lambda m, v: [apply(k, v) for k in m])
    times = interleaved(lambda: measure(models, x), lambda: forward(models, x), repeats=repeats)
    return f"moments of all nodes, two ResNet-20 of width {width}", "their plain forwards", *times


def taps(width: int, repeats: int) -> tuple[str, str, float, float]:
    """A forward that also returns the mean of every tapped node against the plain forward."""
    config = ResNetCifar(width=width)
    network = build(config)
    graph = nm.trace(network.apply, network.variables, example(config))
    x = np.random.default_rng(0).standard_normal((128, *config.input_shape), np.float32)
    tapped = jax.jit(lambda v, x: {n: f.mean(0) for n, f in capture(network.apply, graph, v, x).nodes.items()})
    forward = jax.jit(network.apply)
    times = interleaved(lambda: tapped(network.variables, x), lambda: forward(network.variables, x), repeats=repeats)
    return f"means of all nodes, ResNet-20 of width {width}", "plain forward", *times


def step(width: int, repeats: int) -> tuple[str, str, float, float]:
    """One gradient step of NP Merge against one of plain fine-tuning: same network, batch and optimiser."""
    config = ResNetCifar(width=width)
    network = build(config)
    stack = nm.stack_models([build(config, seed=k).variables for k in range(2)])
    merge = nm.Learned(nm.Average(), nm.PerParameter(), nm.Simplex())
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((128, *config.input_shape), np.float32), rng.integers(0, 10, 128).astype(np.int32)
    learned = _update(nm.weight_space(merge, network.apply, nm.CrossEntropy()), merge.init(stack), stack, batch)
    plain = _update(nm.fine_tuning(network.apply, nm.CrossEntropy()), network.variables, stack, batch)
    return f"NP Merge step, two ResNet-20 of width {width}", "fine-tuning step", *interleaved(learned, plain, repeats=repeats)


def _update(loss: Callable, theta: PyTree, stack: nm.Stack, batch: tuple) -> Thunk:
    optimizer = optax.adam(1e-3)

    @jax.jit
    def update(theta: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        updates, state = optimizer.update(jax.grad(loss)(theta, stack, batch), state)
        return optax.apply_updates(theta, updates), state

    state = optimizer.init(theta)
    return lambda: update(theta, state)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks"),
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, one repeat: to see that it runs.")] = False,
) -> None:
    """Time every pair and write the table of ratios."""
    repeats, width, size = (1, 2, 1000) if quick else (7, 16, 8_000_000)
    began = time.perf_counter()
    rows = [average_of_models(size, repeats), taps(width, repeats), moments(width, repeats), step(width, repeats)]
    seconds = time.perf_counter() - began
    header = ("what", "against", "seconds", "seconds of the other", "ratio")
    table = [(what, peer, f"{a:.4f}", f"{b:.4f}", f"{a / b:.2f}") for what, peer, a, b in rows]
    machine = f"{platform.machine()}, {jax.devices()[0].device_kind}, Python {platform.python_version()}"
    lines = ["# Benchmarks", "", *markdown_table(header, table), "", f"Medians of {repeats} interleaved calls."]
    lines += ["", f"`python -m experiments.benchmarks{' --quick' if quick else ''}`, {seconds:.0f} s, npmerge {__version__}, "]
    lines[-1] += f"jax {jax.__version__}, {machine}."
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = [{"what": r[0], "against": r[1], "seconds": r[2], "seconds_of_the_other": r[3]} for r in rows]
    (out / "rows.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    typer.echo("\n".join(lines))


if __name__ == "__main__":
    typer.run(main)
