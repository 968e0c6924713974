"""Options that several commands share."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from npmerge.stream.engine import Options

Recipe = Annotated[
    Path,
    typer.Argument(help="A recipe, as mergekit-yaml and mergekit-multi read it, or the npmerge.json of a merge to repeat."),
]
Seed = Annotated[int | None, typer.Option(help="The seed of what is random, instead of the recipe's.")]
Threads = Annotated[int | None, typer.Option(help="Threads that read and compute (all cores).")]
Budget = Annotated[str | None, typer.Option(help="Memory for tensors, such as 64MB, but one block at least.")]
MergekitSemantics = Annotated[
    bool, typer.Option("--mergekit-semantics", help="Follow mergekit where our conventions differ from its.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print a line for every tensor.")]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that already has files.")]
Json = Annotated[bool, typer.Option("--json", help="For programs: everything that is known, as JSON.")]


def engine_options(num_threads: int | None, memory_budget: str | None) -> "Options":
    """How a plan is run. Raises ValueError for less than one thread and for what is no size."""
    from npmerge.commands.merge import default_options  # not needed for --help
    from npmerge.reports.sizes import parse_size, without_unit

    options = default_options()
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"--num-threads must be 1 or more, got {num_threads}")
        options = replace(options, threads=num_threads)
    if memory_budget is not None:
        for line in without_unit("--memory-budget", memory_budget):
            typer.echo(f"warning: {line}", err=True)
        options = replace(options, budget=parse_size("--memory-budget", memory_budget))
    return options


def check_seed(seed: int | None) -> None:
    """Unless a seed is one of 32 bits, or none."""
    if seed is not None and not 0 <= seed < 2**32:
        raise ValueError(f"--seed must be from 0 to {2**32 - 1}, got {seed}")
