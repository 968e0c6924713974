"""`npmerge merge`: from a recipe's file to the folder of the merged model."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import typer

from npmerge.checkpoint.partial import check_replaceable, partial_folder, partial_place
from npmerge.commands.documents import Documents, Made
from npmerge.commands.plan_page import in_all
from npmerge.commands.planning import Asked, Planned, asked_of
from npmerge.commands.prediction import predicted, predicted_learning, probed
from npmerge.commands.signals import ended_by_signals
from npmerge.folder import changed_inputs, hashes_now
from npmerge.recipe import Recipe
from npmerge.reports.numbers import parse_size, without_unit
from npmerge.reports.progress import peak_memory
from npmerge.stream.allocation import keep_freed_memory
from npmerge.stream.devices import use_device
from npmerge.stream.engine import Options
from npmerge.stream.outcomes import line, summary
from npmerge.stream.workers import switch_often

SHARD_SIZE = "5GB"
FILES = (".safetensors", ".npz", ".bin", ".pt", ".pth")
"""Endings of files, which the folder of a merged model should not have."""


def default_options() -> Options:
    """All the cores that this process may use."""
    return Options(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge merge`.

    Attributes:
        recipe: its file, or the `npmerge.json` of a merge that is to be made again.
        out: folder of the merged model.
        device: that JAX computes on.
        shard_size: the most that a file of the result takes, as people write it; None for what the record says, or 5GB.
        seed: instead of the recipe's.
        options: threads and memory.
        mergekit_semantics: whether mergekit's conventions are followed where ours differ.
        resume: whether to go on with what an interrupted merge left, and to leave it if this one is interrupted.
        force: whether an earlier result may be replaced.
        quiet: whether to print nothing but errors.
        verbose: whether to print a line for every tensor.
        distributed: whether this is one of several processes of a job, which learn together.
        report: whether a report is to be written.
    """

    recipe: Path
    out: Path
    device: str = "cpu"
    shard_size: str | None = None
    seed: int | None = None
    options: Options = field(default_factory=default_options)
    mergekit_semantics: bool = False
    resume: bool = False
    force: bool = False
    quiet: bool = False
    verbose: bool = False
    distributed: bool = False
    report: bool = False


def run_merge(request: Request) -> dict[str, Any] | None:
    """Merge, write the folder, and print what was done.

    Returns:
        What it took, if a report is to be written and this process is the one that writes.

    Raises:
        ValueError: whatever is wrong with recipe, models, output or memory.
    """
    begun = time.perf_counter()
    if request.quiet and request.verbose:
        raise ValueError("--quiet and --verbose exclude each other, got both")
    asked = asked_of(request.recipe, seed=request.seed, mergekit_semantics=request.mergekit_semantics)
    documents = _documents(request, asked)
    use_device(request.device)
    if request.distributed and not _is_first(asked.recipes):
        _attend(request, documents)
        return None
    check_replaceable(request.out, force=request.force)
    if request.out.suffix in FILES and not request.quiet:
        typer.echo(f"warning: {request.out} will be a folder, in which the merged model lies, whatever its name", err=True)
    ready = documents.check()
    if asked.replay is not None:
        documents = replace(documents, hashes=hashes_now(asked.replay))
        for text in [] if request.quiet else changed_inputs(asked.replay, documents.hashes):
            typer.echo(f"warning: {text}", err=True)
    keep_freed_memory()
    switch_often()
    foreseen, spent = _foreseen(request, ready.get(0) if len(asked.recipes) == 1 else None)
    with ended_by_signals() as check, partial_folder(request.out, force=request.force, resume=request.resume) as folder:
        if request.distributed:
            _begin()
        made = documents.make(folder, ready)
        check()
    seconds = time.perf_counter() - begun - spent
    if not request.quiet:
        _tell(request, made, seconds)
    return _taken(request, foreseen, made, seconds) if request.report else None


def _taken(request: Request, foreseen: dict[str, Any] | None, made: Made, seconds: float) -> dict[str, Any]:
    """What only this run knows, for the report; beside it what was foreseen."""
    memory = peak_memory()
    return {
        "seconds": seconds,
        "memory": memory,
        "read": made.plan.bytes_in,
        "written": made.plan.bytes_out,
        "threads": request.options.threads,
        "device": request.device,
        "predicted": foreseen,
        "warnings": [f"not as the first time: {text}" for text in made.changed],
    }


def _foreseen(request: Request, document: Planned | None) -> tuple[dict[str, Any] | None, float]:
    """What `npmerge plan` tells of a recipe of one document, asked before it is made, and the seconds that asking took.

    Afterwards the memory that this process has held would be that of the merge.
    """
    if not request.report or document is None:
        return None, 0.0
    begun = time.perf_counter()
    found = predicted(document.plan, request.options, probed())
    if document.blocks is None:
        known: dict[str, Any] = {"seconds": found.seconds, "memory": found.memory}
    elif document.recipe.learn is None:
        known = {"seconds": None, "memory": None}
    else:
        aligned = document.recipe.align is not None
        fit, held = predicted_learning(document.blocks, document.recipe.learn, aligned=aligned)
        memory, seconds = in_all(found, held, fit.lasting)
        known = {"seconds": seconds, "memory": memory, "aligned": aligned}
    return known, time.perf_counter() - begun


def _documents(request: Request, asked: Asked) -> Documents:
    """The documents of the recipe, with what its record adds to the request where a merge is made again."""
    recorded = asked.replay.provenance.options if asked.replay else {}
    shard_size = request.shard_size or recorded.get("out_shard_size") or SHARD_SIZE
    shard_bytes = parse_size("--out-shard-size", shard_size)
    for warning in [] if request.quiet else without_unit("--out-shard-size", shard_size):
        typer.echo(f"warning: {warning}", err=True)
    return Documents(
        asked,
        request.out,
        shard_bytes,
        {"out_shard_size": shard_size} | ({} if asked.seed is None else {"seed": asked.seed}),
        options=request.options,
        quiet=request.quiet,
        keep=request.resume,
        distributed=request.distributed,
    )


def _is_first(recipes: Sequence[Recipe]) -> bool:
    """Join the job; whether this is the process of it that writes. Raises ValueError for a recipe that does not learn."""
    if not any(recipe.learn for recipe in recipes):
        raise ValueError("--distributed is for recipes with learn: other merges take one process")
    from npmerge.learning.hosts import is_first, join_job  # imports JAX

    join_job()
    return is_first()


def _attend(request: Request, documents: Documents) -> None:
    """Learn with the process that writes, once its folder is there."""
    _begin()
    keep_freed_memory()
    with ended_by_signals():
        documents.attend(partial_place(request.out))


def _begin() -> None:
    from npmerge.learning.hosts import wait_for_all  # imports JAX

    wait_for_all("the folder of the result")


def _tell(request: Request, made: Made, seconds: float) -> None:
    pairs = zip(made.plan.steps, made.outcomes, strict=True)
    each = [line(step, outcome) for step, outcome in pairs] if request.verbose else []
    told = [*each, *made.notes, *summary(made.plan, made.outcomes, seconds, peak_memory()), f"written to {request.out}"]
    told += [f"warning: not as the first time: {text}" for text in made.changed]
    if made.changed:
        told.append(f"warning: {request.out} is not the merge that {request.recipe} records")
    for text in told:
        typer.echo(text)
