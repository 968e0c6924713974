"""The README and the pages of the guide: their text, and the examples and commands that stand in them."""

import contextlib
import io
import re
import shlex
import textwrap
from pathlib import Path

import jax
from typer.testing import CliRunner

from npmerge.cli import app

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in FILES}
"""The text of each page, by the name of its file."""


def examples(page: str) -> list[str]:
    """The blocks of Python of a page, in their order."""
    return [textwrap.dedent(block) for block in re.findall(r" *```python\n(.*?)```", PAGES[page], re.S)]


def blocks(page: str) -> dict[str, str]:
    """The recipes and commands of a page between `<!-- name -->` and `<!-- end -->`, by name."""
    return dict(re.findall(r"<!-- ([\w-]+) -->\n```\w+\n(.*?)\n```\n<!-- end -->", PAGES[page], re.S))


def run(example: str, given: dict[str, object] | None = None) -> str:
    """What an example prints, with the names that it takes for given; those that it makes are added to them."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        exec(compile(example, "example", "exec"), {} if given is None else given)
    return printed.getvalue()


def follow(commands: str) -> None:
    """Run lines such as `npmerge plan recipe.yml`."""
    for line in commands.splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{line}: {result.output}"
