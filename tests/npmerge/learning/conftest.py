"""A folder with two networks on digits."""

from pathlib import Path

import pytest

from npmerge.reports.style import Drawn
from tests.npmerge.learning.digits import write_all


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """Made once."""
    folder = tmp_path_factory.mktemp("digits")
    write_all(folder)
    return folder


@pytest.fixture
def drawn() -> None:
    """Asked for by tests of figures: the others do without, or most of their time would go into them."""


@pytest.fixture(autouse=True)
def _without_figures(request, monkeypatch) -> None:
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("npmerge.reports.folder.drawn", lambda _: Drawn(b"", "<svg/>"))


@pytest.fixture
def here(stored, tmp_path, monkeypatch) -> Path:
    """The working directory, with links to the files."""
    for file in stored.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path
