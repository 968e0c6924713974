"""The file that rows are written to, one by one."""

import pytest

from experiments.run import Rows


def test_a_row_that_two_runs_have_written_is_told(tmp_path):
    rows = Rows(tmp_path / "rows.csv", ("seed", "way"), {})
    for seed, way in ((0, "a"), (0, "b"), (0, "a")):
        rows.add({"seed": seed, "way": way, "accuracy": 0.5})
    with pytest.raises(ValueError, match="a row twice, which two runs at once have written: seed 0, way a; delete one"):
        Rows(tmp_path / "rows.csv", ("seed", "way"), {})


def test_rows_are_read_again(tmp_path):
    rows = Rows(tmp_path / "rows.csv", ("seed",), {"steps": 3})
    rows.add({"seed": 1, "each": [0.5, 1.0], "chosen": "", "rate": 0.1})
    again = Rows(tmp_path / "rows.csv", ("seed",), {"steps": 3})
    assert again.all == rows.all and again.has(seed=1) and not again.has(seed=2)
