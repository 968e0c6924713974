"""The text of the experiment: what the base learns, the two domains of the experts, the targets that need both."""

from collections.abc import Callable, Mapping
from pathlib import Path

from experiments import corpora
from experiments.compatible_specialization.settings import BASE, CODE, DOCUMENTED, PROSE, SOURCE, Settings
from experiments.text import Text

MOST = 6000
"""Characters of each module in source with comments: of the few that validation and test are of none is to be most of it."""


def beginning(source: str) -> str:
    """A module as it is, up to a number of characters."""
    return source[:MOST]


KINDS: Mapping[str, Callable[[str], str]] = {
    PROSE: corpora.prose,
    CODE: corpora.code,
    DOCUMENTED: corpora.documented,
    SOURCE: beginning,
}
"""What is made of the modules of each; no two have a module in common, nor with what the base has learned."""


def texts(settings: Settings, plays: Path) -> dict[str, Text]:
    """By name.

    Raises:
        ValueError: plays that are not found.
    """
    modules, limit = len(KINDS) + 1, settings.characters
    base = [corpora.python(corpora.documented, modules - 1, modules, limit)]
    base += [corpora.plays(plays, limit)] if settings.plays else []
    names = [PROSE, CODE, *settings.targets]
    groups = {name: list(KINDS).index(name) for name in names}
    return {BASE: corpora.joined(base)} | {name: corpora.python(KINDS[name], groups[name], modules, limit) for name in names}
