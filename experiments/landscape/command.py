"""From a preset to a folder of results."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.data import IMAGENET, load, standardised
from experiments.folder import write_summary
from experiments.landscape.networks import source
from experiments.landscape.page import write
from experiments.landscape.rows import Experiment, files
from experiments.landscape.settings import PRESETS, made_with
from experiments.run import Preset, machine
from experiments.strangers.networks import FOLDER


def reproduce(
    preset: Preset,
    out: Path,
    seeds: range,
    *,
    data: Path | None = None,
    download: bool = False,
    published: Path = FOLDER,
    tell: Callable[[str], Any] = print,
) -> None:
    """Make every row that is not there yet, then figures, summary and page.

    Args:
        preset: how much work.
        out: folder of the results.
        seeds: of which.
        data: folder or file of the data set; looked for if not given.
        download: whether to fetch it where it is not found.
        published: folder of the published networks.
        tell: told what has been done.

    Raises:
        ValueError: missing data or networks (what it is, where it comes from), rows made with other settings.
    """
    settings = PRESETS[preset]
    found = load(settings.task.data, data, download=download)
    scaling = {"scale": IMAGENET} if settings.pairs else {}  # as those networks were trained with
    images = standardised(found, validation=0, **scaling)
    rows = files(out, made_with(settings, images.name))
    began = time.perf_counter()
    for seed in seeds:
        networks = source(settings, images, seed, out, published)
        Experiment(settings, networks, images, seed, rows).run(tell)
    command = f"python -m experiments.landscape --preset {preset} --out {out} --seed {seeds.start} --seeds {len(seeds)}"
    summary = out / "summary.json"
    spent: float = json.loads(summary.read_text(encoding="utf-8"))["seconds"] if summary.exists() else 0
    told = {"preset": str(preset), "command": command, "machine": machine()}
    seconds = round(spent + time.perf_counter() - began, 1)
    write_summary(out, told | {"seconds": seconds})
    write(out)
