"""Every reader of checkpoints against damaged files: `python -m experiments.fuzz_readers --mutations 10000`.

A damaged file is read or refused by a CheckpointError with its path; any other error ends the run with the seed that made it.
"""

import json
import platform
import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from npmerge.reports.tables import markdown_table
from npmerge.version import __version__
from tests.npmerge.checkpoint.mutations import attempts
from tests.npmerge.checkpoint.samples import ADAPTER, SAMPLES, Opener

PART = 500
"""Damaged copies of one seed: an error is found again within so many."""


def fuzz(name: str, open_file: Opener, path: Path, folder: Path, mutations: int) -> dict[str, Any]:
    """What became of damaged copies of one file. Raises RuntimeError with the seed for an error of another kind."""
    begun, times, read = time.perf_counter(), [0.0], 0
    for seed in range(-(-mutations // PART)):
        try:
            for was_read, seconds in attempts(open_file, path, folder, min(PART, mutations - seed * PART), seed):
                read += was_read
                times.append(seconds)
        except Exception as error:
            raise RuntimeError(f"{name}: seed {seed}, {type(error).__name__}: {error}") from error
    content = {"reader": name, "mutations": mutations, "read": read, "refused": mutations - read}
    return content | {"slowest_seconds": max(times), "seconds": time.perf_counter() - begun}


def main(
    mutations: Annotated[int, typer.Option(help="Damaged files for each reader.")] = 10_000,
    only: Annotated[str | None, typer.Option(help="One reader, as the table names it.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the record.")] = Path("experiments/results/fuzz_readers"),
) -> None:
    """Damage files at random, read each, and write how many were read and refused."""
    with tempfile.TemporaryDirectory() as scratch:
        sound, copies = Path(scratch, "sound"), Path(scratch, "copies")
        sound.mkdir()
        rows: list[dict[str, Any]] = []
        for name, sample in {**SAMPLES, "LoRA adapter": ADAPTER}.items():
            if only not in (None, name):
                continue
            rows.append(fuzz(name, sample.open, sample.make(sound), copies, mutations))
            typer.echo(json.dumps(rows[-1]), err=True)
            _write(out, rows, mutations)
    typer.echo((out / "README.md").read_text(encoding="utf-8"))


def _write(out: Path, rows: list[dict[str, Any]], mutations: int) -> None:
    """The record of the readers that are done."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    header = ("reader", "damaged files", "read all the same", "refused", "slowest (s)")
    table = [
        (r["reader"], f"{r['mutations']:,}", f"{r['read']:,}", f"{r['refused']:,}", f"{r['slowest_seconds']:.3f}") for r in rows
    ]
    lines = ["# Damaged files", "", *markdown_table(header, table), ""]
    lines += ["Refused is a CheckpointError that names the file; no other error, and no crash, was seen.", ""]
    lines += [f"`python -m experiments.fuzz_readers --mutations {mutations}`, {sum(r['seconds'] for r in rows):.0f} s, "]
    lines[-1] += f"peak memory {peak / 1e6:.0f} MB, npmerge {__version__}, Python {platform.python_version()}."
    out.mkdir(parents=True, exist_ok=True)
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
