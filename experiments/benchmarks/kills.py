"""A merge killed at random moments and resumed: `python -m experiments.benchmarks.kills --moments 50`.

Each time the whole command runs in a process of its own, gets SIGKILL somewhere between the first file that it writes and its
usual end, and is called again with `--resume`. The result must have the bytes of a merge that nobody interrupted.
"""

import hashlib
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.benchmarks.llama_checkpoints import Shape, write_checkpoints

SHAPE = Shape(hidden=1024, mlp=4096, layers=6, vocabulary=8000)
"""117 M parameters: their merge takes long enough for tensors to be noted on the way."""

RECIPE = """\
merge_method: ties
base_model: base
models:
- model: m1
  parameters: {weight: 0.5, density: 0.5}
- model: m2
  parameters: {weight: 0.5, density: 0.5}
"""


def killed_and_resumed(folder: Path, after: float) -> dict[str, Any]:
    """One merge, killed so many seconds after it begins to write and resumed.

    Returns:
        Whether it was killed at all, whether the result was there by then, how many tensors were kept by the second run, and
        the hash of everything in the result's folder.
    """
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    process = _writing(folder)
    time.sleep(after)
    process.kill()
    killed = process.wait() == -signal.SIGKILL
    if out.exists():
        return {"after": after, "killed": killed, "there": True, "kept": 0, "sha256": hash_of(out)}
    printed = subprocess.run(_command("--resume"), cwd=folder, check=True, capture_output=True, text=True).stdout
    kept = [int(line.split(";")[1].split()[0]) for line in printed.splitlines() if "from an earlier run" in line]
    return {"after": after, "killed": True, "there": False, "kept": sum(kept), "sha256": hash_of(out)}


def _writing(folder: Path) -> "subprocess.Popen[bytes]":
    """A merge that has begun to write."""
    shutil.rmtree(folder / ".out.partial", ignore_errors=True)
    process = subprocess.Popen(_command("--quiet"), cwd=folder)
    while process.poll() is None and not (folder / ".out.partial" / "journal").exists():
        time.sleep(0.01)
    return process


def hash_of(folder: Path) -> str:
    """Of the names and the bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(path.name.encode() + (path.read_bytes() if path.is_file() else b""))
    return digest.hexdigest()


def _command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "npmerge", "merge", "recipe.yml", "out", "--out-shard-size", "20MB", *flags]


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("experiments/results/benchmarks/kills"),
    moments: Annotated[int, typer.Option(help="How many merges are killed.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the moments.")] = 0,
) -> None:
    """Kill, resume, compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_checkpoints(folder, SHAPE, models=2, shards=4)
        (folder / "recipe.yml").write_text(RECIPE)
        process, begun = _writing(folder), time.perf_counter()
        if process.wait():
            raise typer.Exit(1)
        usual, expected = time.perf_counter() - begun, hash_of(folder / "out")
        rng = random.Random(seed)
        rows: list[dict[str, Any]] = []
        while sum(row["killed"] for row in rows) < moments:
            rows.append(killed_and_resumed(folder, rng.uniform(0, usual)))
            typer.echo(json.dumps(rows[-1]), err=True)
    write(out, {"expected": expected, "moments": moments, "seed": seed, "rows": rows})
    typer.echo((out / "README.md").read_text(encoding="utf-8"))
    if any(row["sha256"] != expected for row in rows):
        raise typer.Exit(1)


def write(out: Path, content: Mapping[str, Any]) -> None:
    """The rows, and the page of them."""
    rows = [row for row in content["rows"] if row["killed"]]
    wrong, there = sum(row["sha256"] != content["expected"] for row in rows), sum(row["there"] for row in rows)
    kept = [row["kept"] for row in rows if row["kept"]]
    entries = sum(math.prod(shape) for shape in SHAPE.tensors().values())
    lines = ["# Merges that are killed", "", f"{len(rows)} merges of two models by TIES ({entries / 1e6:.0f} M parameters in "]
    lines[-1] += "four files) got SIGKILL, each at another moment between the first file that it wrote and its usual end."
    lines += ["", f"- {there} had put their result into place, the others were resumed"]
    lines += [f"- {len(kept)} of those kept tensors, {min(kept, default=0)} to {max(kept, default=0)} of them"]
    lines += [f"- {wrong} ended with other bytes than a merge that nobody interrupted", ""]
    lines += [f"`python -m experiments.benchmarks.kills --moments {content['moments']} --seed {content['seed']}`"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (out / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
