"""Whether an experiment asks for rates beyond its grids."""

import contextlib
from collections.abc import Iterator

import pytest

from experiments import learning


@contextlib.contextmanager
def grids_go_on() -> Iterator[None]:
    """Something that is learned inside asks what lies beyond its grid, and is told nothing."""
    asked: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learning, "beyond", lambda _, best: asked.append(best))
        yield
    assert asked
