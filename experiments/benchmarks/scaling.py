"""Steps of learning on 8, 64 and 512 devices, on paper: `python -m experiments.benchmarks.scaling`.

Steps are compiled for eight host devices, from shapes alone. XLA says what each device computes and moves in its memory, the
text of the program what the devices send each other; larger meshes and seconds follow by formulas. Nothing is timed.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax
import typer
from jax.sharding import NamedSharding, PartitionSpec

import npmerge as nm
from alignment.graph import PyTree
from experiments.benchmarks.chips import CHIPS, Chip
from experiments.benchmarks.collectives import Collective, collectives, totals
from experiments.benchmarks.steps import ADAM, NP_MERGE, OBJECTIVE, parameters
from npmerge.fitting.updates import Constants, Run, State, update
from npmerge.models import Config, Gpt2, ResNetCifar, abstract, example
from npmerge.objectives.base import Loss
from npmerge.reports.tables import markdown_table
from npmerge.sharding import AXIS, Layout, Mapped, Sharded
from npmerge.version import __version__

COMPILED, DEVICES = 8, (8, 64, 512)
Way = Literal["examples", "features", "pmap"]


@dataclass(frozen=True)
class Setting:
    """A network and how many examples each device has of a batch, whatever their number."""

    name: str
    config: Config
    batch: int


@dataclass(frozen=True)
class Step:
    """What one device does in a compiled step.

    Attributes:
        network: in words.
        way: how the arrays are divided.
        models: N, or 1 for fine-tuning.
        parameters: of one network.
        flops: operations of a device, as XLA counts them.
        bytes: that a device reads and writes, likewise, in the fusions of the CPU's compiler.
        collectives: bytes of the whole arrays by kind.
        sent: bytes that each of the compiled devices sends.
    """

    network: str
    way: Way
    models: int
    parameters: int
    flops: float
    bytes: float
    collectives: dict[str, int]
    sent: float


SETTINGS = (
    Setting("ResNet-20, width x4", ResNetCifar(width=64), 128),
    Setting("transformer of 6 layers, 82 M", Gpt2(layers=6), 8),
)
QUICK = (Setting("ResNet-8 of width 8", ResNetCifar(blocks=1, width=8, side=8), 2),)
CASES: tuple[tuple[Way, int], ...] = (
    ("examples", 1),
    ("examples", 2),
    ("examples", 8),
    ("features", 2),
    ("features", 8),
    ("pmap", 2),
    ("pmap", 8),
)


def compiled_step(setting: Setting, way: Way, models: int) -> Step:
    """Compile a step for eight devices, and read what it costs."""
    devices = tuple(jax.devices()[:COMPILED])
    layout: Layout = Mapped(devices) if way == "pmap" else Sharded(devices, way == "features")
    loss, theta, stack = _problem(setting.config, models)
    state = State(theta, jax.eval_shape(ADAM.init, theta), jax.ShapeDtypeStruct((), bool))  # type: ignore[arg-type]
    placed = [_placed(layout, x) for x in (state, Constants(jax.tree.map(lambda _: None, theta), stack))]
    batch = _divided(layout, _batch(setting))
    step: Any = layout.compiled(update, donated=(1,))
    program = step.lower(Run(loss, ADAM, layout), *placed, batch, {}).compile()
    cost, found = program.cost_analysis(), collectives(program.as_text(), COMPILED)
    size, sent = parameters(setting.config), sum(each.sent for each in found)
    return Step(setting.name, way, models, size, cost["flops"], cost["bytes accessed"], totals(found), sent)


def _problem(config: Config, models: int) -> tuple[Loss, PyTree, nm.Stack | None]:
    """A loss, and the shapes of its theta and stack."""
    network = abstract(config)
    if models == 1:
        statistics = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), network.variables["batch_stats"])
        loss = nm.fine_tuning(lambda p, x: network.apply({"params": p, "batch_stats": statistics}, x), OBJECTIVE)
        return loss, network.variables["params"], None
    stack = nm.Stack(jax.tree.map(lambda x: jax.ShapeDtypeStruct((models, *x.shape), x.dtype), network.variables))
    rows = 1 if models == 2 else models
    shapes = NP_MERGE.granularity.shapes(stack.params)
    theta = {name: jax.ShapeDtypeStruct((rows, *shape), jnp.float32) for name, shape in shapes.items()}
    return nm.weight_space(NP_MERGE, network.apply, OBJECTIVE), theta, stack


def _batch(setting: Setting) -> tuple:
    inputs = example(setting.config, setting.batch * COMPILED)
    labels = inputs.shape if inputs.dtype == jnp.int32 else inputs.shape[:1]
    return inputs, jax.ShapeDtypeStruct(labels, jnp.int32), jax.ShapeDtypeStruct(inputs.shape[:1], bool)


def _placed(layout: Layout, tree: PyTree) -> PyTree:
    if isinstance(layout, Sharded):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.sharding(x.shape)), tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((COMPILED, *x.shape), x.dtype), tree)


def _divided(layout: Layout, batch: tuple) -> tuple:
    if isinstance(layout, Sharded):
        sharding = NamedSharding(layout.sharding(()).mesh, PartitionSpec(AXIS))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), batch)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((COMPILED, x.shape[0] // COMPILED, *x.shape[1:]), x.dtype), batch)


def moments_on(step: Step, devices: int) -> float:
    """Bytes that a device moves in its memory among more devices: of divided arrays it holds less.

    Divided are theta, two moments and the models; the least they are moved is what `steps.more_bytes` counts.
    """
    if step.way != "features":
        return step.bytes
    rows = 1 if step.models == 2 else step.models
    divided = 4 * step.parameters * (2 * step.models + 7 * rows)
    return step.bytes - divided * (1 / COMPILED - 1 / devices)


def seconds(step: Step, chip: Chip, devices: int) -> tuple[float, float, float]:
    """Of computing, of memory and of the collectives, on so many chips."""
    found = [Collective(kind, size, COMPILED) for kind, size in step.collectives.items()]
    sending = sum(chip.sending(each, devices) for each in found)
    return step.flops / (chip.flops * chip.utilisation), moments_on(step, devices) / chip.memory, sending


def page(steps: list[Step], about: dict[str, Any]) -> str:
    """Markdown: what was counted, and what follows from it."""
    lines = ["# Steps of learning on many devices, on paper", ""]
    lines += [*markdown_table(("network", "divided by", "models", "GFLOP", "GB in memory", "sent, P", *KINDS), _counted(steps))]
    lines += ["", COUNTED, "", FORMULAS, ""]
    for name, chip in CHIPS.items():
        header = ("network", "divided by", "models", "devices", "compute ms", "memory ms", "sending ms", "sending share")
        rows = [_cells(step, chip, n) for step in steps for n in DEVICES]
        lines += [f"## {name}", "", chip.words(), "", *markdown_table(header, rows), ""]
    lines += [f"`python -m experiments.benchmarks.scaling{about['flags']}`, npmerge {__version__}, jax {jax.__version__}, "]
    lines[-1] += f"optax {optax.__version__}: the same on every machine."
    return "\n".join(lines) + "\n"


KINDS = ("all-reduce", "all-gather", "other")
COUNTED = (
    "For each of 8 devices, as compiled by XLA for CPUs in float32. Models 1 is fine-tuning. Memory is what XLA counts for the "
    "fusions of its CPU compiler; those of accelerators are larger, so it is an upper bound. P is the size of one network: "
    "what a device sends, and the arrays that collectives make, are in its multiples."
)
FORMULAS = (
    "Among n devices each sends 2 S (n - 1) / n bytes to sum arrays of S bytes, and half of that to gather or to scatter them. "
    "S does not depend on n, nor under jit on the number of models: the gradient is summed where it is that of the network, "
    "and each device makes theta's of it. pmap sums theta's. By features the network is gathered before it runs; CPUs' "
    "programs sum the whole gradient where accelerators scatter it, in half the bytes. Each device keeps its batch's size. "
    "Of n = k m devices, k with fast links to each other, (k - 1) / k of S goes over the fast ones and (m - 1) / m of S / k "
    "over the slow ones, for each of gathering and scattering, of which a sum is both. Nothing is overlapped here."
)


def _counted(steps: list[Step]) -> list[tuple[str, ...]]:
    def cells(step: Step) -> tuple[str, ...]:
        whole, found = 4 * step.parameters, dict(step.collectives)
        kinds = [found.pop(kind, 0) / whole for kind in KINDS[:-1]]
        amounts = [step.sent / whole, *kinds, sum(found.values()) / whole]
        costs = f"{step.flops / 1e9:.4g}", f"{step.bytes / 1e9:.3g}"
        return step.network, step.way, str(step.models), *costs, *(f"{x:.2f}" for x in amounts)

    return [cells(step) for step in steps]


def _cells(step: Step, chip: Chip, devices: int) -> tuple[str, ...]:
    compute, memory, sending = seconds(step, chip, devices)
    share = sending / (sending + max(compute, memory))
    times = (f"{1e3 * x:.2f}" for x in (compute, memory, sending))
    return step.network, step.way, str(step.models), str(devices), *times, f"{100 * share:.0f} %"


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks/scaling"),
    quick: Annotated[bool, typer.Option("--quick", help="A tiny network: to see that it runs.")] = False,
) -> None:
    """Compile every case and write the tables."""
    os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={COMPILED}")  # read when JAX first looks
    if len(jax.devices()) < COMPILED:
        raise ValueError(f"steps are compiled for {COMPILED} devices, JAX finds {len(jax.devices())}: unset XLA_FLAGS")
    cases = CASES[1:4:2] if quick else CASES
    steps = [compiled_step(setting, way, models) for setting in (QUICK if quick else SETTINGS) for way, models in cases]
    text = page(steps, {"flags": " --quick" if quick else ""})
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(text, encoding="utf-8")
    (out / "rows.json").write_text(json.dumps([asdict(s) for s in steps], indent=1) + "\n", encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
