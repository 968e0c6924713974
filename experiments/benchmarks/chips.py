"""What accelerators do at best, as their makers say; assumptions of tables on paper."""

from dataclasses import dataclass

from experiments.benchmarks.collectives import Collective


@dataclass(frozen=True)
class Chip:
    """An accelerator among others.

    Attributes:
        flops: dense operations a second in bfloat16.
        utilisation: the part of that which a step reaches.
        memory: bytes a second of its memory.
        fast: bytes a second that it sends to devices of its group.
        slow: bytes a second to other groups.
        group: devices with fast links to each other.
    """

    flops: float
    utilisation: float
    memory: float
    fast: float
    slow: float
    group: int

    def sending(self, collective: Collective, devices: int) -> float:
        """Seconds that an operation takes among so many devices, in groups."""
        inside = min(self.group, devices)
        outside = devices // inside
        once = (inside - 1) / inside / self.fast + (outside - 1) / outside / inside / self.slow
        return collective.bytes * once * (2 if collective.kind == "all-reduce" else 1)

    def words(self) -> str:
        """Its figures in a sentence."""
        links = f"{self.fast / 1e9:g} GB/s to the {self.group} of its group and {self.slow / 1e9:g} GB/s beyond"
        rate = f"{self.flops / 1e12:g} TFLOP/s in bfloat16 of which {100 * self.utilisation:.0f} % are reached"
        return f"Assumed: {rate}, memory of {self.memory / 1e12:g} TB/s; each sends {links}."


CHIPS = {
    "H100 SXM, nodes of 8": Chip(989e12, 0.4, 3.35e12, 450e9, 50e9, 8),
    "TPU v5e, pods of 256": Chip(197e12, 0.4, 0.819e12, 100e9, 6.25e9, 256),
}
"""NVLink in one direction and one 400 Gb/s adapter for each GPU; 1,600 Gb/s between chips, both directions, and 50 Gb/s of the
data centre's network for each."""
