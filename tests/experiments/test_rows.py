"""The file that rows are written to, one by one."""

from pathlib import Path

import pytest

from experiments.run import Rows, check_settings


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


def test_the_setting_that_differs_is_named_as_deep_as_can_be():
    made = {"seed": 0, "tasks": [{"name": "a", "rates": [0.1, 0.2]}, {"name": "b", "rates": [0.1]}]}
    check_settings(made, made | {"tasks": [{"name": "a", "rates": (0.1, 0.2)}, {"name": "b", "rates": (0.1,)}]}, Path("x"))
    for change, told in (
        ({"seed": 1}, "seed is 0 there, 1 here"),
        ({"more": 3}, "more is None there, 3 here"),
        ({"tasks": made["tasks"][:1]}, "tasks is "),
        ({"tasks": [made["tasks"][0], {"name": "b", "rates": [0.3]}]}, r"tasks\[1\].rates is \[0.1\] there, \[0.3\] here"),
    ):
        with pytest.raises(ValueError, match=f"x was made with other settings: {told}"):
            check_settings(made, made | change, Path("x"))
