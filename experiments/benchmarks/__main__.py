"""The hot paths against a peer or a floor: `python -m experiments.benchmarks --out experiments/results/benchmarks`.

Every pair is timed interleaved in one run, so that a busy machine slows both alike; what counts is the ratio of medians.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer

import npmerge as nm
from alignment import capture
from alignment.graph import PyTree
from experiments.benchmarks import least_squares, matching, selection
from experiments.benchmarks.timing import Thunk, interleaved
from npmerge.models import Config, Llama, ResNetCifar, abstract, build, example
from npmerge.reports.tables import markdown_table
from npmerge.version import __version__


def average_of_models(size: int, repeats: int) -> tuple[str, str, float, float]:
    """`combine` against the plainest loop that reads the same memory."""
    x = np.random.default_rng(0).standard_normal((4, size), np.float32)
    stack = nm.Stack({"w": jnp.asarray(x)})
    theta, apply = nm.Average().init(stack), jax.jit(nm.Average().apply)
    mean = jax.jit(lambda v: 0.25 * (v[0] + v[1] + v[2] + v[3]))
    times = interleaved(lambda: apply(theta, stack), lambda: mean(stack.params["w"]), repeats=repeats)
    return "average of 4 models, one tensor", "a sum written out", *times


def moments(config: Config, batch: int, models: int, repeats: int) -> tuple[str, str, float, float]:
    """The statistics pass of all nodes of several networks against their plain forwards."""
    apply, trained = build(config).apply, [build(config, seed=k).variables for k in range(models)]
    graph = nm.trace(apply, trained[0], example(config))
    x = _inputs(config, batch)
    measure = jax.jit(lambda m, v: nm.NodeMoments().measure(apply, graph, m, (v, None)))
    forward = jax.jit(lambda m, v: [apply(k, v) for k in m])
    times = interleaved(lambda: measure(trained, x), lambda: forward(trained, x), repeats=repeats)
    return f"moments of all nodes, {_described(config, models)}", "plain forward", *times


def moments_written_out(config: Config, batch: int, repeats: int) -> tuple[str, str, float, float]:
    """The statistics pass against a forward with one product of matrices for every node: the least that moments take."""
    network = build(config)
    graph = nm.trace(network.apply, network.variables, example(config))
    x = _inputs(config, batch)
    measure = jax.jit(lambda m, v: nm.NodeMoments().measure(network.apply, graph, m, (v, None)))
    written = jax.jit(lambda v, x: [(f.sum(-2), f.mT @ f) for f in capture(network.apply, graph, v, x).nodes.values()])
    models = [network.variables]
    times = interleaved(lambda: measure(models, x), lambda: written(network.variables, x), repeats=repeats)
    return f"moments of all nodes, {_described(config, 1)}", "forward and plain products", *times


def taps(config: Config, batch: int, repeats: int) -> tuple[str, str, float, float]:
    """A forward that also returns the mean of every tapped node against the plain forward."""
    network = build(config)
    graph = nm.trace(network.apply, network.variables, example(config))
    x = _inputs(config, batch)
    tapped = jax.jit(lambda v, x: {n: f.mean(-2) for n, f in capture(network.apply, graph, v, x).nodes.items()})
    forward = jax.jit(network.apply)
    times = interleaved(lambda: tapped(network.variables, x), lambda: forward(network.variables, x), repeats=repeats)
    return f"means of all nodes, {_described(config, 1)}", "plain forward", *times


def tracing(config: Config, repeats: int) -> tuple[str, str, float, float]:
    """The graph of a large network given as shapes against the jaxpr alone, which is the floor."""
    network = abstract(config)

    def ours() -> None:
        jax.clear_caches()
        nm.trace(network.apply, network.variables, example(config))

    def floor() -> None:
        jax.clear_caches()
        jax.make_jaxpr(network.apply)(network.variables, example(config))

    return f"trace, {_described(config, 1)} as shapes", "its jaxpr alone", *interleaved(ours, floor, repeats=repeats)


def _inputs(config: Config, batch: int) -> np.ndarray:
    shape, rng = example(config, batch).shape, np.random.default_rng(0)
    if isinstance(config, Llama):
        return rng.integers(0, config.vocabulary, shape).astype(np.int32)
    return rng.standard_normal(shape, np.float32)


def _described(config: Config, models: int) -> str:
    name = type(config).__name__
    if isinstance(config, Llama):
        name = f"Llama of {config.layers} layers, width {config.width}"
    elif isinstance(config, ResNetCifar):
        name = f"ResNet-{6 * config.blocks + 2} of width {config.width}"
    return name if models == 1 else f"{models} x {name}"


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
    repeats, width, size, layers, batch = (1, 2, 1000, 1, 8) if quick else (15, 16, 8_000_000, 32, 128)
    resnet = ResNetCifar(width=width)
    small = Llama(vocabulary=1000, width=16 * width, layers=min(layers, 4), heads=4, kv_heads=2, hidden=48 * width, length=64)
    began = time.perf_counter()
    rows = [average_of_models(size, repeats), tracing(Llama(layers=layers), repeats), taps(resnet, batch, repeats)]
    rows += [moments(resnet, batch, models, repeats) for models in (1, 2)]
    rows += [moments(small, batch // 8, 1, repeats), moments_written_out(small, batch // 8, repeats), step(width, repeats)]
    rows += matching.rows(quick=quick, repeats=repeats)
    rows += selection.rows(quick=quick, repeats=repeats)
    rows += least_squares.rows(quick=quick, repeats=min(repeats, 5))
    seconds = time.perf_counter() - began
    header = ("what", "against", "seconds", "seconds of the other", "ratio")
    table = [(what, peer, f"{a:.4f}", f"{b:.4f}", f"{a / b:.2f}") for what, peer, a, b in rows]
    threads = os.environ.get("OPENBLAS_NUM_THREADS", str(os.cpu_count()))
    machine = (
        f"{platform.machine()}, {jax.devices()[0].device_kind}, BLAS of {threads} threads, Python {platform.python_version()}"
    )
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
