"""What commands print of many tensors: columns, shapes, and names in few lines."""

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"(?:^|(?<=[./_]))\d+(?=[./]|$)")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, every column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def shape_of(shape: Sequence[int]) -> str:
    """`1024 x 4096`; `scalar` for a tensor without axes."""
    return " x ".join(map(str, shape)) or "scalar"


def kind_of(name: str) -> str:
    """A tensor's name without the numbers in its path: what tensors of different layers have in common."""
    return _NUMBER.sub("*", name.replace("*", "**"))


def braced(names: Sequence[str]) -> str:
    """Names of one kind as one: `model.layers.{0-23}.mlp.up_proj.weight`."""
    numbers = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    texts = iter([ranges({int(n) for n in column}) for column in numbers])

    def text(_: re.Match[str]) -> str:
        found = next(texts)
        return found if found.isdigit() else f"{{{found}}}"

    return _NUMBER.sub(text, names[0])


def ranges(numbers: Iterable[int]) -> str:
    """`0-3,7,9-10`."""
    runs: list[list[int]] = []
    for n in sorted(set(numbers)):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
