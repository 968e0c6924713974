"""What papers claim and what rows say of it: reproduced, partly, refuted, or not told apart."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from experiments.differences import Difference
from npmerge.reports.tables import markdown_table

MARKS = ("reproduced", "partly", "refuted", "not told apart", "one seed")
MARKING = """A claim is reproduced where every setting that was measured says so, partly where some say so and others do not,
refuted where none says so and some say the opposite. "Not told apart" is none of these, and one seed marks nothing."""


@dataclass(frozen=True)
class Claim:
    """That one row is above another.

    Attributes:
        source: who says so.
        says: what, in words.
        better: the name of a row.
        than: of another.
        sign: 1 if the first is to be higher, -1 if lower.
        unit: of the rows; those that are told in points are fractions.
    """

    source: str
    says: str
    better: str
    than: str
    sign: int = 1
    unit: str = " points"

    @property
    def scale(self) -> float:
        """From the rows to the unit."""
        return 100 if self.unit == " points" else 1

    def told(self, found: Difference) -> str:
        """A difference in the unit; those of losses are small."""
        return found.told(unit=self.unit, scale=self.scale, digits=4 if self.unit == " nats" else 2)


class Marked(NamedTuple):
    """A claim, its mark, and the differences that made it, by setting."""

    claim: Claim
    mark: str
    rows: dict[str, Difference]


def marked(claim: Claim, found: Iterable[tuple[str, Difference | None]]) -> Marked | None:
    """The claim with its mark; None where nothing was measured.

    Args:
        claim: what is said.
        found: by the name of each setting how much the first row has beyond the second.
    """
    rows = {name: difference for name, difference in found if difference is not None}
    return Marked(claim, mark(list(rows.values()), claim.sign), rows) if rows else None


def mark(found: Sequence[Difference], sign: int) -> str:
    """One of MARKS, of the differences in all settings."""
    told = [x for x in found if len(x.values) > 1]
    if not told:
        return "one seed"
    agreeing, opposite = (sum(x.verdict == s for x in told) for s in (sign, -sign))
    if agreeing == len(told):
        return "reproduced"
    if agreeing:
        return "partly"
    return "refuted" if opposite else "not told apart"


def table(claims: Iterable[Marked]) -> list[str]:
    """Lines of a table: who claims what, its mark, and the rows that say so."""
    rows = []
    for claim, word, found in claims:
        told = "; ".join(f"{name}: {claim.told(x)} ({x.word})" for name, x in found.items())
        rows.append((claim.source, claim.says, word, f"{claim.better} minus {claim.than}: {told}"))
    return markdown_table(("source", "claim", "mark", "rows"), rows)
