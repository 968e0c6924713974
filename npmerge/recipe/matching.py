"""Which tensor of one model is which of another, where names have another prefix and heads are tied."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from npmerge.checkpoint.stored import Entry, StoredModel

_TIED = re.compile(r"(^|[./])(lm_head|embed_out|output|decoder)[./](weight|kernel)$")
_TABLES = "embed_tokens|tok_embeddings|word_embeddings|embed_in|embeddings?|wte|shared"
_TABLE = re.compile(rf"(^|[./])({_TABLES})[./](weight|embedding|kernel)$")


@dataclass(frozen=True, eq=False)
class Matching:
    """Names of the tensors of one model by those of another.

    Attributes:
        leader: whose names are asked for.
        other: whose names are found.
        prefix: that all names of one have and those of the other lack; empty if they have the same names.
    """

    leader: StoredModel
    other: StoredModel
    prefix: str

    @cached_property
    def _names(self) -> dict[str, str]:
        return {name.removeprefix(self.prefix): name for name in self.other.entries}

    def find(self, name: str) -> Entry | None:
        """The tensor that is of the name in the leader, None if there is none."""
        found = self._names.get(name.removeprefix(self.prefix))
        return None if found is None else self.other.entries[found]

    def tied(self, name: str) -> Entry | None:
        """The table of tokens that stands for a head of that name, which the model lacks, if there is one table only."""
        if not _TIED.search(name):
            return None
        tables = [entry for entry in self.other.entries.values() if _TABLE.search(entry.name) and len(entry.shape) == 2]
        return tables[0] if len(tables) == 1 else None


def match(leader: StoredModel, other: StoredModel) -> Matching:
    """The matching of most names. A prefix is tried only where it makes more of them match than none does."""
    best, most = "", _agreeing(leader.entries, other.entries, "")
    for prefix in _prefixes(leader.entries) + _prefixes(other.entries) if most < len(leader.entries) else ():
        if (count := _agreeing(leader.entries, other.entries, prefix)) > most:
            best, most = prefix, count
    return Matching(leader, other, best)


def _agreeing(leader: Iterable[str], other: Iterable[str], prefix: str) -> int:
    a = [name.removeprefix(prefix) for name in leader]
    b = [name.removeprefix(prefix) for name in other]
    clash = len(set(a)) < len(a) or len(set(b)) < len(b)
    return -1 if clash else len(set(a) & set(b))


def _prefixes(names: Iterable[str]) -> list[str]:
    """The first parts of names, or first two, with which most of them begin."""
    names = list(names)
    parts = (re.match(rf"([^./]+[./]){{{count}}}", name) for name in names for count in (1, 2))
    counts = Counter(part[0] for part in parts if part)
    return [prefix for prefix, count in counts.items() if 2 * count > len(names)]
