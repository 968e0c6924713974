"""The table of recipes against mergekit."""

from collections.abc import Mapping, Sequence

from experiments.benchmarks.whole_processes import Cost, median

WALL = {"linear": 1 / 2, "slerp": 1 / 2, "task_arithmetic": 1 / 2, "model_stock": 1 / 2, "dare_ties": 1 / 4, "ties": 1 / 15}
"""What ours may take of mergekit's wall time at most."""
FLOOR, IMPORTS_MB, HELP = 2.5, 300, 1.0
"""At most: times reading and writing, MB above imports with a budget, CPU seconds."""


def page(costs: Mapping[str, Sequence[Cost]], about: Mapping[str, object]) -> str:
    """Markdown: the ratios of medians, what they may be, and what they were measured with.

    Args:
        costs: turns by "program: what".
        about: versions, machine, turns, seconds and flags.
    """
    middle = {name: median(found) for name, found in costs.items()}
    lines = ["# Recipes against mergekit", ""]
    methods = [name.removeprefix("mergekit: ") for name in costs if name.startswith("mergekit: ")]
    if methods:
        head = (
            "recipe",
            "wall s",
            "of mergekit",
            "ratio",
            "at most",
            "CPU s",
            "of mergekit",
            "peak MB",
            "of mergekit",
            "ratio",
        )
        lines += [*_table(head, [_against(m, middle) for m in methods]), ""]
    columns = ("run", "wall s", "from", "to", "CPU s", "peak MB", "its own MB")
    lines += [*_table(columns, [_alone(name, middle[name], found) for name, found in costs.items()]), ""]
    lines += [f"- {line}" for line in _limits(middle)]
    versions = ", ".join(f"{k} {about[k]}" for k in ("npmerge", "jax", "numpy", "mergekit", "torch", "python") if k in about)
    lines += ["", f"Medians of {about['turns']} turns. Peaks are of resident memory (what is its own, every 20 ms). "]
    lines[-1] += "`start` merges next to nothing; the floor reads three models and writes one, with fsync."
    lines += ["", f"`python -m experiments.benchmarks.mergekit{about['flags']}`, {about['seconds']} s, {versions}; "]
    lines[-1] += f"{about['machine']}."
    return "\n".join(lines) + "\n"


def _against(method: str, middle: Mapping[str, Cost]) -> tuple[str, ...]:
    ours, theirs = middle[f"npmerge: {method}"], middle[f"mergekit: {method}"]
    limit = f"{WALL[method]:.3f}" if method in WALL else ""
    wall = f"{ours.wall:.2f}", f"{theirs.wall:.2f}", f"{ours.wall / theirs.wall:.3f}", limit
    cpu = f"{ours.user + ours.system:.1f}", f"{theirs.user + theirs.system:.1f}"
    return method, *wall, *cpu, f"{ours.resident:.0f}", f"{theirs.resident:.0f}", f"{ours.resident / theirs.resident:.2f}"


def _alone(name: str, cost: Cost, turns: Sequence[Cost]) -> tuple[str, ...]:
    walls = [c.wall for c in turns]
    times = f"{cost.wall:.2f}", f"{min(walls):.2f}", f"{max(walls):.2f}", f"{cost.user + cost.system:.2f}"
    return name, *times, f"{cost.resident:.0f}", f"{cost.anonymous:.0f}"


def _limits(middle: Mapping[str, Cost]) -> list[str]:
    found = []
    if "npmerge: linear" in middle:
        ratio = middle["npmerge: linear"].wall / middle["floor: read and write"].wall
        found.append(f"linear takes {ratio:.2f} times as long as to read and write (at most {FLOOR})")
    imports = middle["npmerge: imports"].resident
    for name, cost in middle.items():
        if name.endswith("64MB"):
            found.append(
                f"{name.removeprefix('npmerge: ')}: {cost.resident - imports:.0f} MB above imports (at most {IMPORTS_MB})"
            )
    cpu = middle["npmerge: help"].user + middle["npmerge: help"].system
    return [*found, f"`npmerge --help` takes {cpu:.2f} s of CPU (at most {HELP:.0f})"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]
