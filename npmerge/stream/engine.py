"""Run a plan: tensors in the order of the plan, a few under way at once, every byte of the result independent of how many."""

import hashlib
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import NamedTuple

import numpy as np

from npmerge.checkpoint.dtypes import DTYPES
from npmerge.checkpoint.journal import Journal, Note
from npmerge.checkpoint.writer import ModelWriter
from npmerge.recipe.plan import Plan, Step
from npmerge.reports.numbers import size
from npmerge.reports.progress import Progress
from npmerge.stream import blocks
from npmerge.stream.blocks import Block, Kernel, KernelOf
from npmerge.stream.outcomes import Outcome
from npmerge.stream.tensors import StreamedTensor, bytes_of_entry, read_source
from npmerge.stream.workers import Workers

LANES = 2
"""Tensors under way at once: while one waits for its last block or for the host, blocks of the next are computed."""

BUDGET = 2**28
"""Bytes that tensors may take by default."""


@dataclass(frozen=True)
class Options:
    """How a plan is run. None of it changes a byte of the result.

    Attributes:
        threads: that read and compute.
        budget: bytes that tensors may take, besides what Python and its libraries do; None for the default, which lets
            methods that need a tensor whole have it.
    """

    threads: int = 1
    budget: int | None = None


class Output(NamedTuple):
    """Where tensors go.

    Attributes:
        writer: of the files.
        journal: of what has been written; tensors that it found are verified and kept.
    """

    writer: ModelWriter
    journal: Journal


def run(plan: Plan, kernel_of: KernelOf, output: Output, options: Options, progress: Progress) -> list[Outcome]:
    """Make every tensor of a plan.

    Args:
        plan: what is to be done.
        kernel_of: the arithmetic of a step.
        output: files and notes.
        options: threads and memory.
        progress: told of bytes that are done with.

    Raises:
        ValueError: a tensor that cannot be read or written, or one that has to be held whole and does not fit the budget.
    """
    _check_whole(plan, kernel_of, options.budget)
    with Workers(threads_of(plan, options)) as workers, ThreadPoolExecutor(LANES, thread_name_prefix="lane") as lanes:
        making = _Making(plan, kernel_of, output, workers, room_of(plan, options, workers.threads), progress)
        futures = [lanes.submit(making.outcome, step) for step in plan.steps]
        try:
            return [future.result() for future in futures]
        except BaseException:
            workers.stop()
            lanes.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class _Making:
    """Makes tensors; its methods run in several threads."""

    plan: Plan
    kernel_of: KernelOf
    output: Output
    workers: Workers
    room: int
    progress: Progress
    whole: Lock = field(default_factory=Lock)  # a tensor that has to be whole takes all the memory that there is

    def outcome(self, step: Step) -> Outcome:
        """Make one tensor, unless an earlier run did."""
        begun = time.perf_counter()
        if (note := self.output.journal.found.get(step.name)) is not None and self._verified(step, note):
            self.progress.advance(self.plan.bytes_read(step))
            return Outcome(**{**note, "kept": True})
        written = _Written(step)
        for done in self._copied(step) if step.action == "copy" else self._merged(step):
            written.add(*done)
        outcome = written.outcome(time.perf_counter() - begun)
        self.output.journal.add({name: value for name, value in asdict(outcome).items() if name != "kept"})
        return outcome

    def _copied(self, step: Step) -> Iterator[tuple[bytes, int, float]]:
        def copy(start: int) -> tuple[bytes, int, float]:
            count = min(blocks.BLOCK, total - start)
            values = read_source(self.plan.models, step.sources[0], start, count)
            values = values.astype(DTYPES[step.dtype], copy=False)
            return self._written(step, start, values, values.nbytes), 0, 0.0

        total = step.entry.size
        yield from self.workers.ordered(copy, range(0, max(total, 1), blocks.BLOCK))

    def _merged(self, step: Step) -> Iterator[tuple[bytes, int, float]]:
        kernel = self.kernel_of(step)
        tensor = StreamedTensor(self.plan.models, step, self.workers, self.room)
        if not kernel.in_blocks:
            with self.whole:
                yield from self._merged_whole(step, kernel, tensor)
            return
        surveyed = kernel.survey(tensor)

        def merge(block: Block) -> tuple[bytes, int, float]:
            merged = kernel.merge(block, surveyed, step)
            read = sum(x.nbytes for x in (*block.models, *([] if block.base is None else [block.base])))
            return self._written(step, block.start, merged.values, read), merged.nonfinite, merged.rounding

        yield from tensor.last(merge)

    def _merged_whole(self, step: Step, kernel: Kernel, tensor: StreamedTensor) -> Iterator[tuple[bytes, int, float]]:
        merged = kernel.merge(tensor.whole(), kernel.survey(tensor), step)
        starts = range(0, max(tensor.size, 1), blocks.BLOCK)
        share = self.plan.bytes_read(step) // len(starts)
        digests = self.workers.ordered(
            lambda start: self._written(step, start, merged.values[start : start + blocks.BLOCK], share), starts
        )
        for digest in digests:
            yield digest, 0, 0.0
        yield b"", merged.nonfinite, merged.rounding

    def _written(self, step: Step, start: int, values: np.ndarray, read: int) -> bytes:
        data = values.reshape(-1).view(np.uint8)
        self.output.writer.write(step.name, start * values.itemsize, data)
        self.progress.advance(read)
        return _checksum(data.data)

    def _verified(self, step: Step, note: Note) -> bool:
        """Whether the bytes on the disk are those that were noted."""
        block = blocks.BLOCK * DTYPES[step.dtype].itemsize
        starts = range(0, max(note["nbytes"], 1), block)
        counts = (min(block, note["nbytes"] - start) for start in starts)
        digests = self.workers.ordered(
            lambda piece: _checksum(self.output.writer.read(step.name, *piece)), zip(starts, counts, strict=True)
        )
        return hashlib.sha256(b"".join(digests)).hexdigest() == note["digest"]


def _checksum(data: bytes | memoryview) -> bytes:
    """Finds what a disk has lost; takes less than half of the time of a hash that also withstands malice."""
    return zlib.crc32(data).to_bytes(4, "little")


class _Written:
    """What is known of a tensor so far."""

    def __init__(self, step: Step):
        self._step, self._digest = step, hashlib.sha256()
        self._nonfinite, self._rounding = 0, 0.0

    def add(self, digest: bytes, nonfinite: int, rounding: float) -> None:
        self._digest.update(digest)
        self._nonfinite += int(nonfinite)
        self._rounding = max(self._rounding, float(rounding))

    def outcome(self, seconds: float) -> Outcome:
        step = self._step
        nbytes = step.entry.nbytes
        digest = self._digest.hexdigest()
        return Outcome(step.name, step.action, nbytes, digest, self._nonfinite, self._rounding, seconds)


def block_bytes(plan: Plan) -> int:
    """Bytes that a block under way takes at most: the sources as stored and in float32, and the result in both."""
    stored = max((bytes_of_entry(plan.models, step) for step in plan.steps), default=0)
    several = max((len(step.inputs) for step in plan.steps), default=0)
    return blocks.BLOCK * (stored + 4 * (several + 2))


def whole_bytes(plan: Plan, step: Step) -> int:
    """Bytes that a step takes that has to hold its tensor whole: the sources as stored and three times in float32."""
    several = len(step.inputs)
    return step.entry.size * (bytes_of_entry(plan.models, step) + 4 * (3 * several + 1))


def threads_of(plan: Plan, options: Options) -> int:
    """How many blocks are under way at once: one, or as many more as fit into the budget."""
    most = options.threads if options.budget is None else options.budget // max(1, block_bytes(plan))
    return max(1, min(options.threads, most))


def over_budget(plan: Plan, options: Options) -> list[str]:
    """A line if one block takes more than all of the budget."""
    least = block_bytes(plan)
    if options.budget is None or options.budget >= least:
        return []
    return [f"--memory-budget is {size(options.budget)}, and one block of this merge takes {size(least)}: it gets that"]


def room_of(plan: Plan, options: Options, threads: int) -> int:
    """Bytes that one lane may keep between two passes over a tensor."""
    room = BUDGET if options.budget is None else options.budget - threads * block_bytes(plan)
    return max(0, room) // LANES


def _check_whole(plan: Plan, kernel_of: KernelOf, budget: int | None) -> None:
    merged = [step for step in plan.steps if step.action == "merge"]
    whole = [step for step in merged if not kernel_of(step).in_blocks]
    largest = max(whole, key=lambda step: whole_bytes(plan, step), default=None)
    if budget is not None and largest is not None and whole_bytes(plan, largest) > budget:
        raise ValueError(
            f"{largest.method} needs {largest.name} whole, which takes about {size(whole_bytes(plan, largest))}: raise "
            f"--memory-budget from {size(budget)} to that, or choose a method that works in blocks"
        )
