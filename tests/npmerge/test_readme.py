"""The README's example runs, and says what it prints."""

import contextlib
import io
import re
from pathlib import Path

import jax

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_learning_does_not_hurt():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "README.md", "exec"), {})
    found = dict(line.rsplit(" ", 1) for line in printed.getvalue().splitlines())
    assert float(found["aligned average"]) > 0.8
    assert float(found["learned"]) > float(found["aligned average"]) - 0.01


def test_the_commands_are_the_ones_that_ci_runs():
    block = re.search(r"<!-- commands -->(.*?)<!-- end -->", README, re.S)
    assert block is not None
    assert [line for line in block[1].splitlines() if "&&" in line] == [
        "pip install -e . && npmerge demo",
        'pip install -e ".[test]" && pytest',
    ]


def test_every_folder_and_file_it_names_exists():
    root = Path(__file__).parents[2]
    for name in re.findall(r"`([a-z_]+/(?:[a-z_/]+(?:\.py)?)?)`", README):
        assert (root / name).exists(), name
