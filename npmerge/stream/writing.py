"""The files of a merged model: laid out from its plan, filled by the engine, closed by their headers."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from npmerge.checkpoint.held import HeldModel
from npmerge.checkpoint.journal import Journal
from npmerge.checkpoint.sharded import ShardedModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.checkpoint.writer import ModelWriter
from npmerge.recipe.plan import Plan, Source
from npmerge.reports.progress import Progress
from npmerge.stream import blocks
from npmerge.stream.blocks import KernelOf
from npmerge.stream.engine import Options, Output, run
from npmerge.stream.outcomes import Outcome
from npmerge.version import __version__

Metadata = Callable[[bool], Mapping[str, str]]
"""The texts that the headers carry: laid out with those for False, written with those for True, which are as long."""


@dataclass(frozen=True)
class Destination:
    """Where a merged model goes.

    Attributes:
        folder: of its files, which exists.
        journal: file of the notes that let an interrupted merge go on.
        shard_bytes: the most that the tensors of one file take; None for one file.
        metadata: texts for the headers.
        keep: whether what has been written is noted at the end too, and not only from time to time.
    """

    folder: Path
    journal: Path
    shard_bytes: int | None = None
    metadata: Metadata = field(default=lambda final: {})
    keep: bool = False


def write_model(plan: Plan, kernel_of: KernelOf, target: Destination, options: Options, progress: Progress) -> list[Outcome]:
    """Make all tensors of a plan and write them; those that an earlier run of the same plan has noted are verified and kept.

    Raises:
        ValueError: what cannot be read or written, or does not fit into memory.
    """
    entries = [step.entry for step in plan.steps]
    writer = ModelWriter(target.folder, entries, target.metadata(False), target.shard_bytes)
    try:
        journal = Journal(target.journal, fingerprint(plan, writer), writer.sync)
        try:
            outcomes = run(plan, kernel_of, Output(writer, journal), options, progress)
        finally:
            journal.close(keep=target.keep)
        writer.finish(target.metadata(True))
    finally:
        writer.close()
    return outcomes


def fingerprint(plan: Plan, writer: ModelWriter) -> str:
    """What decides on the bytes of a merge: the plan, the files that it reads with their times of change, the layout."""
    digest = hashlib.sha256(repr((__version__, blocks.BLOCK, plan.seed, plan.mergekit_semantics)).encode())
    for model in plan.models:
        digest.update(_identity(model).encode())
    for step in plan.steps:
        numbers = (step.name, step.shape, step.dtype, step.action, step.method, sorted(step.parameters.items()))
        digest.update(repr((numbers, step.base is None, [(x.model, x.name) for x in step.inputs])).encode())
        for source in step.inputs:
            digest.update(_rows(source))
    for shard in writer.shards:
        digest.update(shard.name.encode() + hashlib.sha256(shard.header.text).digest())
    return digest.hexdigest()


def _identity(model: StoredModel) -> str:
    """What tells a model from another of its name: its values in memory, or its files and their times of change."""
    if isinstance(model, HeldModel):
        return repr([*model.entries.values(), model.digest])
    files = [file for path in model.read_from for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    stats = [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file in files for stat in [file.stat()]]
    headers = [hashlib.sha256(x.text).hexdigest() for x in (model.files.values() if isinstance(model, ShardedModel) else ())]
    return repr([*model.entries.values(), *stats, *headers])


def _rows(source: Source) -> bytes:
    if source.rows is None:
        return b""
    rows = source.rows
    return repr((rows.models, rows.names, rows.table.shape, rows.padding)).encode() + np.ascontiguousarray(rows.table).tobytes()
