"""The tables of a block: methods and starts down, what the block varies across."""

import itertools
from collections.abc import Iterator, Sequence

from experiments.np_merge.results import Results
from experiments.np_merge.settings import METHODS, UNALIGNED, Block, Job
from npmerge.reports.tables import markdown_table

AXES = ("initialisation", "split", "models", "start", "labelled")


def axis(block: Block, name: str) -> Sequence:
    """What a block has along an axis."""
    return getattr(block, {"initialisation": "initialisations", "split": "splits", "start": "starts"}.get(name, name))


def tables(results: Results, block: Block) -> Iterator[str]:
    """Lines of all tables of a block: one for each combination of what is neither down nor across."""
    outer = [name for name in AXES if name != block.across and name != "start" and len(axis(block, name)) > 1]
    for place in itertools.product(*(axis(block, name) for name in outer)):
        fixed = dict(zip(outer, place, strict=True))
        if fixed:
            yield from (", ".join(shown(results, block, name, value) for name, value in fixed.items()) + ":", "")
        header = [shown(results, block, block.across, value) for value in axis(block, block.across)]
        yield from markdown_table(("test accuracy", *header), list(_lines(results, block, fixed)))
        yield ""


def _lines(results: Results, block: Block, fixed: dict) -> Iterator[tuple[str, ...]]:
    for method in sorted(block.methods, key=METHODS.index):
        down = ("",) if block.across == "start" or method in UNALIGNED else block.starts
        for start in down:
            cells = [point(results, block, method, {**fixed, "start": start or block.starts[0], block.across: value})
                     for value in axis(block, block.across)]  # fmt: skip
            name = f"{method}, {start}" if start and len(block.starts) > 1 else method
            yield name, *(results.cell(cell) for cell in cells)


def point(results: Results, block: Block, method: str, place: dict) -> Job:
    """The row of a method where a block has only one value along an axis, or at the given one."""
    full = {name: place.get(name, axis(block, name)[0]) for name in AXES}
    fraction = full.pop("labelled")
    return results.point(Job(block.task, **full, method=method, labelled=0), fraction)


def shown(results: Results, block: Block, name: str, value: object) -> str:
    """A value along an axis, in words."""
    if name == "labelled":
        count = max(1, round(float(value) * results.images[block.task]))  # type: ignore[arg-type]
        return f"{count:,} labelled ({percent(float(value))})"  # type: ignore[arg-type]
    return {"models": f"{value} networks", "initialisation": f"{value} initialisation"}.get(name, str(value))


def percent(fraction: float) -> str:
    """A fraction as pages tell it."""
    return f"{100 * fraction:g} %"
