"""The folder of a result, and in how many settings a difference is as expected."""

import json

from matplotlib.figure import Figure

from experiments.claims import mark
from experiments.differences import Difference, settings_told
from experiments.folder import made, shown, write_result, write_summary


def test_a_result_is_written_and_shows_the_figures_that_there_are(tmp_path):
    write_summary(tmp_path, {"command": "run"})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"command": "run"}
    captions = {"one": "First", "two": "Second"}
    write_result(tmp_path, {"two": Figure()}, lambda folder: "\n".join(shown(folder, captions)))
    assert (tmp_path / "README.md").read_text() == "![Second](two.png)\n"  # drawn before the page is made


def test_commands_whose_rows_are_there_are_all_told(tmp_path):
    for command in ("first", "second", "second", "first"):
        write_summary(tmp_path, {"command": command, "machine": "two cores", "seconds": {"parents": 0.0, "rows": 1.0}})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["before"], summary["command"]) == (["second"], "first")
    assert made(summary, training_in_rows=False).startswith("`second`, then `first`, 0 s")


def test_training_is_not_counted_twice():
    summary = {"command": "run", "machine": "two cores", "seconds": {"parents": 30.0, "rows": 100.0}}
    networks = "`run`, 30 s to train the networks"
    assert made(summary, training_in_rows=True) == f"{networks} and 70 s for the rows, two cores."
    assert made(summary, training_in_rows=False) == f"{networks} and 100 s for the rows, two cores."
    before = summary | {"seconds": {"parents": 30.0, "rows": 10.0}}
    assert made(before, training_in_rows=True) == f"{networks} and 0 s for the rows, two cores."


def test_settings_are_counted_by_what_was_expected():
    higher, lower, same = Difference((0.1, 0.1001), 1), Difference((-0.1, -0.1001), 1), Difference((0.1, -0.1), 1)
    found = [higher, higher, lower, same]
    assert settings_told(found, 1) == "so in 2, the opposite in 1, not told apart in 1 of 4"
    assert settings_told(found, -1) == "so in 1, the opposite in 2, not told apart in 1 of 4"
    assert settings_told(found, 0) == "higher in 2, lower in 1, not told apart in 1 of 4"
    alone = Difference((0.1,), 1)  # of one seed: it tells nothing
    assert settings_told([*found, alone], 1) == "so in 2, the opposite in 1, not told apart in 1 of 4, and 1 of one seed"
    same = Difference((0.1, 0.1001, 0.0999), 1)
    assert mark([same, alone], 1) == "reproduced" and mark([alone], 1) == "one seed"
