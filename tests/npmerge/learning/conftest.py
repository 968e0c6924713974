"""A folder with two networks on digits."""

from pathlib import Path

import pytest

from tests.npmerge.learning.digits import write_all


@pytest.fixture(scope="session")
def stored(tmp_path_factory) -> Path:
    """Made once."""
    folder = tmp_path_factory.mktemp("digits")
    write_all(folder)
    return folder


@pytest.fixture
def here(stored, tmp_path, monkeypatch) -> Path:
    """The working directory, with links to the files."""
    for file in stored.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    return tmp_path
