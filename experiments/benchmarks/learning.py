"""What learning a merge costs beyond fine-tuning one network: `python -m experiments.benchmarks.learning`.

All steps of one network are timed in turns, so that a busy machine slows them alike; what counts are the ratios of medians.
"""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import typer

from experiments.benchmarks.steps import fine_tuning, merging, more_bytes, parameters, plain, random_batch
from experiments.benchmarks.timing import Thunk, in_turns
from npmerge.models import Config, Gpt2, ResNetCifar
from npmerge.reports.tables import markdown_table
from npmerge.version import __version__

LIMIT = 1.10
PEER, CHECKED = "fine-tuning, Optax alone", "fine-tuning by fit"


@dataclass(frozen=True)
class Setting:
    """A network and the batch that it learns from.

    Attributes:
        name: in words.
        config: its architecture.
        batch: examples.
        limited: whether a step for two models may take `LIMIT` times that of fine-tuning at most.
    """

    name: str
    config: Config
    batch: int
    limited: bool = False


@dataclass(frozen=True)
class Row:
    """One network and number of models.

    Attributes:
        network: in words.
        parameters: of one model.
        batch: examples.
        models: N.
        seconds: median of an NP Merge step.
        fine_tuning: median seconds of fine-tuning with the same `fit`.
        plain: median seconds of fine-tuning with Optax alone.
        floor: seconds that the extra reads and writes take at the measured bandwidth.
        limited: whether `LIMIT` applies.
    """

    network: str
    parameters: int
    batch: int
    models: int
    seconds: float
    fine_tuning: float
    plain: float
    floor: float
    limited: bool


def _gpt2(width: int, vocabulary: int = 4096, layers: int = 6, length: int = 128) -> Gpt2:
    return Gpt2(vocabulary, width, layers, width // 32, 4 * width, length)


SETTINGS = (
    Setting("ResNet-20", ResNetCifar(width=16), 64),
    Setting("ResNet-20, width x2", ResNetCifar(width=32), 32),
    Setting("ResNet-20, width x4", ResNetCifar(width=64), 32, limited=True),
    Setting("transformer of 6 layers, width 128", _gpt2(128), 16),
    Setting("transformer of 6 layers, width 256", _gpt2(256), 16, limited=True),
)
QUICK = (Setting("ResNet-8 of width 2", ResNetCifar(blocks=1, width=2, side=8), 2, limited=True),)


def measure(setting: Setting, models: tuple[int, ...], repeats: int, bandwidth: float) -> list[Row]:
    """NP Merge of so many models each, and fine-tuning, in turns."""
    batch = random_batch(setting.config, setting.batch)
    steps: dict[str, Thunk] = {str(n): merging(setting.config, n, batch) for n in models}
    steps |= {CHECKED: fine_tuning(setting.config, batch), PEER: plain(setting.config, batch)}
    found, size = in_turns(steps, repeats=repeats), parameters(setting.config)
    others = found[CHECKED], found[PEER]
    return [
        Row(setting.name, size, setting.batch, n, found[str(n)], *others, more_bytes(n, size) / bandwidth, setting.limited)
        for n in models
    ]


def measured_bandwidth(size: int, repeats: int) -> float:
    """Bytes a second of a sum of two arrays, which reads both and writes one."""
    x, add = jnp.ones(size), jax.jit(jnp.add)
    y = jnp.zeros(size)
    return 12 * size / in_turns({"sum": lambda: add(x, y)}, repeats=repeats)["sum"]


def page(rows: list[Row], about: dict[str, object]) -> str:
    """Markdown: ratios, the floor and what the figures were measured with."""
    header = ("network", "parameters", "batch", "models", "NP Merge", "fine-tuning", "ratio", "floor", "to Optax alone")
    lines = ["# A step of NP Merge against one of fine-tuning", "", *markdown_table(header, [_cells(r) for r in rows]), ""]
    limited = [row for row in rows if row.limited and row.models == 2]
    lines += [f"- {r.network}, two models: {r.seconds / r.fine_tuning:.2f} (at most {LIMIT:.2f})" for r in limited]
    lines += [
        "",
        f"Medians of {about['repeats']} turns, seconds. NP Merge: one coefficient for each parameter and model on the",
    ]
    lines[-1] += (
        " simplex. All steps are Adam's in float32, on one batch; fine-tuning leaves running statistics as they are. `fit`"
    )
    lines[-1] += " checks every number of a step and undoes a bad one, Optax alone does not. The floor is the ratio if nothing"
    lines[-1] += (
        " but the least extra memory traffic were added, 2 N + 7 R - 5 numbers for each parameter (R = 1 for two models, "
    )
    lines[-1] += f"else N), at {about['bandwidth']:.1f} GB/s, measured with a sum of two large arrays."
    lines += ["", f"`python -m experiments.benchmarks.learning{about['flags']}`, {about['seconds']} s, {about['versions']}."]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    size = f"{row.parameters / 1e6:.2f} M"
    times = f"{row.seconds:.4f}", f"{row.fine_tuning:.4f}"
    ratios = f"{row.seconds / row.fine_tuning:.2f}", f"{1 + row.floor / row.fine_tuning:.2f}", f"{row.seconds / row.plain:.2f}"
    return row.network, size, str(row.batch), str(row.models), *times, *ratios


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks/learning"),
    repeats: Annotated[int, typer.Option("-n", help="Turns.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes, one turn: to see that it runs.")] = False,
) -> None:
    """Time every network and number of models, and write the table."""
    settings, models, repeats = (QUICK, (2, 3), 1) if quick else (SETTINGS, (2, 4, 8), repeats)
    began = time.perf_counter()
    bandwidth = measured_bandwidth(1000 if quick else 32_000_000, repeats)
    rows: list[Row] = []
    for setting in settings:
        rows += measure(setting, models, repeats, bandwidth)
    threads = f"{os.cpu_count()} cores" if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    about = {
        "repeats": repeats,
        "bandwidth": bandwidth / 1e9,
        "flags": " --quick" if quick else f" -n {repeats}",
        "seconds": round(time.perf_counter() - began),
        "versions": f"npmerge {__version__}, jax {jax.__version__}, {platform.machine()}, {threads}",
    }
    text = page(rows, about)
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text(text, encoding="utf-8")
    content = {"about": about, "rows": [asdict(r) for r in rows]}
    (out / "rows.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
