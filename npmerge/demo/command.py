"""The demo as a command: progress while it runs, a table at the end, the files in one go."""

import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from npmerge.demo import page
from npmerge.demo.digits import SPLITS, Split
from npmerge.demo.pipeline import QUICK, Run, Settings, fits_per_seed, run_seed
from npmerge.reports.folder import REPORT, OutputFolder, write_report


def run_demo(split: str, seeds: Sequence[int], *, out: Path, quick: bool, force: bool, command: str) -> dict[str, Any]:
    """Run the demo for every seed, print its table and write its files.

    Returns:
        The content of `summary.json`.

    Raises:
        ValueError: for an unknown split, or an output folder that cannot be used; before any work is done.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    settings = QUICK if quick else Settings()
    began = time.perf_counter()
    with OutputFolder(out, force=force) as folder:
        runs = _run_all(split, seeds, settings)
        content = page.summary(runs, split=split, command=command)
        said = page.page(content, runs, _notes(settings, time.perf_counter() - began))
        write_report(folder, page=said, summary=content)
    console = Console()
    console.print(f"Two networks on scikit-learn's digits, split {split}, seeds {content['seeds']}")
    console.print(_table(content))
    for line in page.verdict(content):
        console.print("- " + line, highlight=False)
    console.print(f"{time.perf_counter() - began:.0f} s. Written to {out}: {', '.join(REPORT)}, curves.png")
    return content


def _run_all(split: Split, seeds: Sequence[int], settings: Settings) -> list[Run]:
    columns = [TextColumn("{task.description:<48.48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    runs = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("loading", total=len(seeds) * fits_per_seed(settings))
        for seed in seeds:

            def advance(text: str, seed: int = seed) -> None:
                progress.update(bar, description=f"seed {seed}: {text}", advance=1)

            runs.append(run_seed(split, seed, settings, advance))
            if not progress.console.is_terminal:
                progress.console.print(f"seed {seed} done")
    return runs


def _table(content: Mapping[str, Any]) -> Table:
    drawn = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
    for k, name in enumerate(page.HEADER):
        drawn.add_column(name, justify="left" if k == 0 else "right", no_wrap=True)
    for name, *numbers in page.sectioned(page.table(content)):
        if name.startswith("**"):
            drawn.add_section()
            drawn.add_row(f"[bold]{name.strip('*')}[/]")
        else:
            drawn.add_row(name, *numbers)
    return drawn


def _notes(settings: Settings, seconds: float) -> list[str]:
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    return [
        "Data: scikit-learn's 1,797 handwritten digits: 1,079 for training, 359 for validation, 359 for the test; one test "
        "digit is 0.28 points.",
        f"Networks: {len(settings.hidden) + 1} dense layers, hidden widths {settings.hidden}, ReLU, Adam at "
        f"{settings.training_rate:g} for {settings.training_steps} steps of {settings.batch}, each from its own "
        "initialisation on its own part of the data, stopped by validation examples of the same mixture of classes.",
        "The labels of the validation set choose learning rates, the moment to stop, gamma and the best alignment, for the "
        "learned merges and the controls alike, always by validation loss; the test set is only read to be reported. The "
        "validation set does not shrink with the labelled fraction: at small fractions it is the larger of the two.",
        f"Learned merges and controls: Adam, {settings.learning_steps} steps of {settings.batch} on the same examples in the "
        f"same order, learning rates {settings.learned_rates} for coefficients and {settings.control_rates} for weights, "
        "constant; judged on validation data every 25 steps, the start included.",
        "Barriers are those of the path to the aligned second network. CCA and Procrustes change what that network computes: "
        "theirs are measured against an end that they have moved.",
        "In the figure the axis of accuracy may cut off a network trained from scratch on few labels.",
        "Activations and Fisher information are taken on all training inputs, without labels.",
        f"{seconds:.0f} s in all, {machine}.",
    ]
