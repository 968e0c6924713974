"""What the devices of a compiled program send each other, read off its text."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

OPERATION = re.compile(r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\((.*)")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
GROUPS = re.compile(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\])")


@dataclass(frozen=True)
class Collective:
    """An operation among devices.

    Attributes:
        kind: as XLA names it.
        bytes: of the whole arrays: what each device has after all-reduce, all-gather and all-to-all, before reduce-scatter.
        devices: among how many.
    """

    kind: str
    bytes: int
    devices: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends at least, as rings do: those of the other devices' parts, twice for all-reduce."""
        if self.kind == "collective-permute":
            return self.bytes
        times = 2 if self.kind == "all-reduce" else 1
        return times * self.bytes * (self.devices - 1) / self.devices


def collectives(text: str, devices: int) -> list[Collective]:
    """Those of a compiled module as `compiled.as_text()` gives it; one in a loop counts once.

    Args:
        text: HLO.
        devices: how many run the program: the size of a group where none is written.

    Raises:
        ValueError: an operation that XLA splits into start and done, but for all-reduce: its type says other things.
    """
    return [_collective(found, devices) for found in map(OPERATION.search, text.splitlines()) if found]


def totals(found: Sequence[Collective]) -> dict[str, int]:
    """Bytes of whole arrays by kind."""
    counter: Counter[str] = Counter()
    for each in found:
        counter[each.kind] += each.bytes
    return dict(counter)


def _collective(found: re.Match, devices: int) -> Collective:
    kind, start, rest = found[2], found[3], found[4]
    if start and kind != "all-reduce":
        raise ValueError(f"{kind}{start} is not read: compile for a backend that runs it in one, such as CPUs")
    groups = GROUPS.search(rest)
    size = devices if groups is None else int(groups[2]) if groups[2] else len(groups[1].split(","))
    result = sum(_bytes(dtype, shape) for dtype, shape in ARRAY.findall(found[1]))
    return Collective(kind, result * (size if kind == "reduce-scatter" else 1), size)


def _bytes(dtype: str, shape: str) -> int:
    count = 1
    for n in filter(None, shape.split(",")):
        count *= int(n)
    bits = re.search(r"\d+", dtype)  # none for pred, which takes a byte
    return count * (8 if bits is None else int(bits[0])) // 8
