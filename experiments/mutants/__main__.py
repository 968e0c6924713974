"""How many faults the tests notice: `python -m experiments.mutants --sample 400 --seed 0`.

First the suite under coverage, which records what test runs what line: `pytest --cov=alignment --cov=npmerge --cov-branch
--cov-context=test`. Faults are drawn at random among all of the files that are tried; each goes through some of the tests that
run its line and, if none of those fails, through all of them. What is tried already is kept in `rows.jsonl`.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import random
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.mutants.operators import Mutant, files_of, mutants
from experiments.mutants.page import page, reasons
from experiments.mutants.selection import Covered, covered
from experiments.mutants.trial import Outcome, tried, warm_up

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ["alignment", *(f"npmerge/{room}" for room in ("methods", "task_vectors", "quadratics", "statistics", "fitting"))]
ROOMS += [f"npmerge/{room}" for room in ("layer_groups", "objectives", "heads", "least_squares")]
FIRST, ALL = 90.0, 240.0
"""Seconds for some tests, and for all: what those of them that come to their turn do not notice counts as not noticed."""


def trial(mutant: Mutant, tests: Covered) -> Outcome:
    """Some tests, then all: a fault that is noticed is noticed early. What takes long without it, too, is no sign of it."""
    few, every = tests.few(mutant), tests.tests(mutant)
    if not every:
        return "survived"
    outcome = tried(mutant, few, ROOT, FIRST)
    if outcome == "timed out" and tried(None, few, ROOT, FIRST / 3) == "timed out":
        outcome = tried(mutant, few, ROOT, ALL)
    rest = [test for test in every if test not in few]
    if outcome == "survived" and rest:
        return "killed" if tried(mutant, rest, ROOT, ALL) == "killed" else "survived"
    return outcome


def drawn(files: list[str], sample: int, seed: int) -> list[Mutant]:
    """So many faults at random, all in an order that does not depend on their number."""
    every = [mutant for file in files for mutant in mutants(file, (ROOT / file).read_text(encoding="utf-8"))]
    random.Random(seed).shuffle(every)
    return every[:sample]


def read(log: Path) -> list[dict[str, Any]]:
    """What was tried before."""
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def machine() -> str:
    """Versions and cores. JAX is asked for neither: it must not start before processes are forked."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("npmerge", "jax", "pytest"))
    return f"{versions}, {platform.machine()} of {os.cpu_count()} cores"


def main(
    rooms: Annotated[
        list[str] | None, typer.Argument(help="Folders or files; alignment/ and the core of npmerge/ if none.")
    ] = None,
    *,
    sample: Annotated[int, typer.Option(help="Faults that are tried.")] = 400,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    workers: Annotated[int, typer.Option(help="Faults that are tried at a time.")] = 2,
    data: Annotated[Path, typer.Option(help="What the suite under coverage has recorded.")] = ROOT / ".coverage",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = ROOT / "experiments/results/mutants",
) -> None:
    """Put small faults into the packages and see which the tests notice."""
    places = [ROOT / room for room in rooms or ROOMS] + ([] if rooms else sorted((ROOT / "npmerge").glob("*.py")))
    files = files_of([place for place in places if place.name not in ("cli.py", "__init__.py", "__main__.py")], ROOT)
    tests, chosen = covered(data, files, ROOT), drawn(files, sample, seed)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "rows.jsonl"
    done = {row["name"] + str(row["place"]) for row in read(log)}
    todo = [mutant for mutant in chosen if mutant.name + str(mutant.place) not in done]
    begun = time.perf_counter()
    warm_up()
    with ThreadPoolExecutor(workers) as pool, log.open("a", encoding="utf-8") as file:
        waiting = {pool.submit(trial, mutant, tests): mutant for mutant in todo}
        for number, future in enumerate(as_completed(waiting), 1):
            mutant, outcome = waiting[future], future.result()
            row = {**dataclasses.asdict(mutant), "name": mutant.name, "outcome": outcome}
            file.write(json.dumps(row) + "\n")
            file.flush()
            seconds = time.perf_counter() - begun
            typer.echo(f"{number}/{len(todo)} {seconds:.0f} s {outcome}: line {mutant.line} of {mutant.name}", err=True)
    wanted = {mutant.name + str(mutant.place) for mutant in chosen}
    rows = [row for row in read(log) if row["name"] + str(row["place"]) in wanted]
    where = " ".join(rooms or ())
    text = page(rows, reasons(), f"`python -m experiments.mutants {where} --sample {sample} --seed {seed}`, {machine()}.")
    (out / "README.md").write_text(text, encoding="utf-8")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(main)
