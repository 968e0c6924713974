"""Reading and writing checkpoints against a plain copy of the same bytes: `python -m experiments.benchmarks.convert OUT`.

Each pair is timed interleaved, and every written file is waited for on the disk; what counts is the ratio of medians. Orbax
writes and reads its checkpoints itself, which takes longer than a copy whoever calls it: it is also timed alone.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
from safetensors.numpy import save_file

from npmerge.checkpoint.conversion import Pieces, write_npz, write_orbax, write_safetensors
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.reports.tables import markdown_table

BUFFER = 2**22
TENSORS, ENTRIES, REPEATS = 8, 2**24, 3


def copy(source: Path, out: Path | None) -> None:
    """Read a file, and write it if there is an output: the floor."""
    buffer = bytearray(BUFFER)
    with source.open("rb", buffering=0) as file, (out or Path(os.devnull)).open("wb", buffering=0) as target:
        while count := file.readinto(buffer):
            if out:
                target.write(memoryview(buffer)[:count])
        if out:
            os.fsync(target.fileno())


def read(path: Path) -> None:
    """Every tensor of a checkpoint, in pieces."""
    pieces = Pieces(open_checkpoint(path))
    for entry in pieces.entries():
        for _ in pieces.read(entry):
            pass


def _written(write: Callable[[Pieces], Any], source: Path) -> None:
    write(Pieces(open_checkpoint(source)))


def by_orbax(arrays: dict[str, np.ndarray], out: Path) -> None:
    """The same arrays saved by nothing but Orbax."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out.absolute(), arrays)


def timed(ours: Callable[[], Any], floor: Callable[[], Any], clear: Callable[[], None]) -> tuple[float, float]:
    """Medians of both, interleaved."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        for function, found in zip((ours, floor), times, strict=True):
            clear()
            begun = time.perf_counter()
            function()
            found.append(time.perf_counter() - begun)
    return statistics.median(times[0]), statistics.median(times[1])


def main(out: Path) -> None:
    """Time all formats that are written and add the table to a folder."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        folder = Path(scratch)
        source, result = folder / "in.safetensors", folder / "out"
        save_file({f"w{k}": rng.standard_normal(ENTRIES, np.float32) for k in range(TENSORS)}, source)
        sources = {"safetensors": source, "npz": folder / "in.npz", "Orbax": folder / "in.orbax"}
        write_npz(sources["npz"], Pieces(open_checkpoint(source)))
        write_orbax(sources["Orbax"], Pieces(open_checkpoint(source)))

        def clear() -> None:
            for path in folder.glob("out*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

        writers: dict[str, Callable[[Pieces], Any]] = {
            "safetensors": lambda x: write_safetensors(result.with_suffix(".safetensors"), x, {}),
            "npz": lambda x: write_npz(result.with_suffix(".npz"), x),
            "Orbax": lambda x: write_orbax(result.with_suffix(".orbax"), x),
        }
        rows = [(f"read {k}", *timed(partial(read, p), partial(copy, source, None), clear)) for k, p in sources.items()]
        floor = folder / "out.copy"
        for name, write in writers.items():
            seconds = timed(partial(_written, write, source), partial(copy, source, floor), clear)
            rows.append((f"safetensors to {name}", *seconds))
        arrays = {name: open_checkpoint(source).read(name) for name in open_checkpoint(source).entries}
        seconds = timed(partial(by_orbax, arrays, result.with_suffix(".orbax")), partial(copy, source, floor), clear)
        rows.append(("arrays in memory by Orbax itself", *seconds))
    header = ("what", "seconds", "plain copy (s)", "ratio")
    size = TENSORS * ENTRIES * 4 / 1e9
    lines = ["# Checkpoints against a plain copy", ""]
    lines += markdown_table(header, [(what, f"{a:.3f}", f"{b:.3f}", f"{a / b:.2f}") for what, a, b in rows])
    lines += ["", f"Medians of {REPEATS} interleaved calls on {size:.2f} GB in {TENSORS} tensors; writes wait for the disk."]
    lines += ["", "`python -m experiments.benchmarks.convert experiments/results/benchmarks/convert`"]
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "rows.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
