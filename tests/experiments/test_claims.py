"""Marks of claims: what differences over seeds make of them."""

import pytest

from experiments.claims import Claim, marked, table
from experiments.differences import Difference

UP, DOWN, NOTHING = ((0.1, 0.11, 0.09), (-0.1, -0.11, -0.09), (0.1, -0.1, 0.01))
CLAIM = Claim("somebody", "a is better", "a", "b")


@pytest.mark.parametrize(
    ("values", "mark", "opposite"),
    [
        ([UP, UP], "reproduced", "refuted"),
        ([UP, NOTHING], "partly", "refuted"),
        ([UP, DOWN], "partly", "partly"),
        ([DOWN, NOTHING], "refuted", "partly"),
        ([NOTHING, NOTHING], "not told apart", "not told apart"),
        ([UP[:1], DOWN[:1]], "one seed", "one seed"),
    ],
)
def test_marks(values, mark, opposite):
    found = [(f"setting {k}", Difference(x, 1)) for k, x in enumerate(values)]
    assert marked(CLAIM, found).mark == mark
    assert marked(Claim("", "", "b", "a", -1), found).mark == opposite


def test_what_was_not_measured_has_no_mark():
    assert marked(CLAIM, [("one", None)]) is None
    assert marked(CLAIM, [("one", None), ("two", Difference(UP, 2))]).rows.keys() == {"two"}


def test_the_table_has_the_rows_that_say_so():
    (line,) = table([marked(CLAIM, [("digits", Difference(UP, 1))])])[2:]
    assert line == "| somebody | a is better | reproduced | a minus b: digits: +10.00 ± 1.00 points (higher) |"
    (line,) = table([marked(Claim("", "", "a", "b", unit=" nats"), [("digits", Difference(UP, 1))])])[2:]
    assert line.endswith("| a minus b: digits: +0.1000 ± 0.0100 nats (higher) |")
