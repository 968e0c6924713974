"""A corpus as a grid: sentences as tokens, asked for one task at a time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from experiments.compositional import manuals, xnli
from experiments.compositional.cells import Cells, HeldIn, Part, divided, joined
from experiments.compositional.corpus import Corpus
from experiments.compositional.grid import Cell, Grid
from experiments.compositional.settings import Sizes, Task

PAD, FIRST, SECOND, SPECIAL = 0, 1, 2, 3
"""What fills up, what begins, what stands between two sentences; tokens of bytes come behind them."""

CORPORA: Mapping[str, Callable[[str], Corpus]] = {
    "xnli": lambda data: xnli.read_corpus(Path(data) if data else xnli.FOLDER),
    "manuals": manuals.read_manuals,
    "made": lambda data: xnli.made_corpus(),
}
"""How each is read, from a folder or from where it is looked for. They raise ValueError for what they do not find."""


class Encoder(NamedTuple):
    """Sentences as tokens.

    Attributes:
        pairs: byte pairs, learned from the sentences that networks learn from.
        length: tokens of an example.
    """

    pairs: tokenizers.ByteLevelBPETokenizer
    length: int

    def __call__(self, first: Sequence[str], second: Sequence[str] | None = None) -> Int[np.ndarray, "n length"]:
        """One sentence, or two, each cut where it has more than its share of the tokens."""
        sides = [first] if second is None else [first, second]
        share = (self.length - len(sides)) // len(sides)
        found = np.full((len(first), self.length), PAD, np.int32)
        encoded = [[x.ids[:share] for x in self.pairs.encode_batch(list(side))] for side in sides]
        for row, ids in enumerate(zip(*encoded, strict=True)):
            tokens = [FIRST, *(SPECIAL + token for token in ids[0])]
            tokens += [SECOND, *(SPECIAL + token for token in ids[1])] if len(ids) > 1 else []
            found[row, : len(tokens)] = tokens
        return found


def text_cells(task: Task, corpus: Corpus, seed: int) -> Cells:
    """The tasks in all languages but that of the base.

    Args:
        task: whose grid it is.
        corpus: the sentences.
        seed: of the held-in cells and of the division.
    """
    languages = [name for name in corpus.languages if name != task.base_domain]
    grid = Grid(tuple(corpus.tasks), tuple(corpus.languages[name] for name in languages))
    each = [corpus.groups(k, name) for k in range(len(corpus.classes)) for name in corpus.languages]
    groups = np.unique(np.concatenate(each))
    rest, test = divided(groups, (0.8,), seed=0)
    parts = divided(groups[rest], (task.sizes.learning, task.sizes.validation), seed=seed)
    learning, validation, train = (groups[rest[places]] for places in parts)
    pairs = tokenizers.ByteLevelBPETokenizer()
    sentences = (text for language in corpus.languages for text in corpus.texts(language, train))
    pairs.train_from_iterator(sentences, vocab_size=task.vocabulary - SPECIAL, show_progress=False)
    writer = Writer(corpus, Encoder(pairs, task.length), task.sizes)

    def of(cell: Cell, part: np.ndarray, draw: int, most: int = task.sizes.cell) -> Part:
        return writer.part(cell.category, [*languages, task.base_domain][cell.domain], part, draw, most=most)

    sides = tuple(zip((train, learning, validation), task.sizes.limits, strict=True))
    held_in = {cell: HeldIn(*(of(cell, part, seed, most) for part, most in sides)) for cell in grid.held_in(seed)}
    base, judged = (writer.base(task.base_domain, part, seed) for part in (train, validation))
    tested, home = ({cell: of(cell, groups[test], 0) for cell in cells} for cells in (grid.cells, grid.home))
    return Cells(grid, held_in, tested, base, judged.first(1000), home, corpus.found)


class Writer(NamedTuple):
    """Examples out of rows."""

    corpus: Corpus
    encode: Encoder
    sizes: Sizes

    def part(self, category: int, language: str, groups: Int[np.ndarray, " k"], draw: int, *, most: int) -> Part:
        """One task in one language, on rows of these groups in random order, so many at most."""
        rng = np.random.default_rng([draw, category, list(self.corpus.languages).index(language)])
        rows = np.flatnonzero(np.isin(self.corpus.groups(category, language), groups))
        first, second, labels = self.corpus.question(category, language, rng.permutation(rows)[:most], rng)
        categories = np.full(len(labels), category, np.int32)
        targets = sum(self.corpus.classes[:category]) + labels
        return Part({"x": self.encode(first, second), "category": categories}, targets.astype(np.int32))

    def base(self, language: str, groups: Int[np.ndarray, " k"], seed: int) -> Part:
        """All tasks in one language, and what the base alone learns in all of them: of each task at most an equal share."""
        most, count = self.sizes.base // len(self.corpus.classes), len(self.corpus.tasks)
        tasks = [self.part(k, language, groups, seed, most=most) for k in range(count)]
        each = most // len(self.corpus.languages)
        known = [self.part(count, name, groups, seed, most=each) for name in self.corpus.languages]
        whole = joined([*tasks, *known])
        order = np.random.default_rng([seed, 13]).permutation(len(whole))
        return Part({name: x[order] for name, x in whole.inputs.items()}, whole.targets[order])
