"""A corpus as a grid: sentences as tokens, asked for one task at a time."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Array, Int

from experiments.compositional import manuals, xnli
from experiments.compositional.cells import Cells, HeldIn, Part, alone, divided, joined, together
from experiments.compositional.corpus import Corpus
from experiments.compositional.grid import Cell, Grid
from experiments.compositional.settings import Sizes, Task

PAD, FIRST, SECOND, HIDDEN, SPECIAL = 0, 1, 2, 3, 4
"""What fills up, begins, stands between two sentences, stands for another token; tokens of bytes come behind them."""

SHARE = 0.15
"""Of the tokens that are hidden in training (as in BERT)."""

DRAWS = 4
"""Of what is drawn about each row, such as the order of its words, for training."""

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
    each = [corpus.groups(k, name) for k in range(len(corpus.tasks)) for name in corpus.languages]
    groups = np.unique(np.concatenate(each))
    rest, test = divided(groups, (0.8,), seed=0)
    parts = divided(groups[rest], (task.sizes.learning, task.sizes.validation), seed=seed)
    learning, validation, train = (groups[rest[places]] for places in parts)
    pairs = tokenizers.ByteLevelBPETokenizer()
    sentences = (text for language in corpus.languages for text in corpus.texts(language, train))
    pairs.train_from_iterator(sentences, vocab_size=task.vocabulary - SPECIAL, show_progress=False)
    writer = Writer(corpus, Encoder(pairs, task.length), task.sizes)

    def of(cell: Cell, part: np.ndarray, draw: int, most: int, draws: int = 1) -> Part:
        return writer.part(cell.category, [*languages, task.base_domain][cell.domain], part, draw, most=most, draws=draws)

    sides = tuple(zip((train, learning, validation), task.sizes.limits, (DRAWS, 1, 1), strict=True))
    held_in = {cell: HeldIn(*(of(cell, part, seed, *x) for part, *x in sides)) for cell in grid.held_in(seed)}
    base, judged = (writer.base(task.base_domain, part, seed) for part in (train, validation))
    most = task.sizes.test
    tested, home = ({cell: of(cell, groups[test], 0, most) for cell in cells} for cells in (grid.cells, grid.home))
    return Cells(grid, held_in, tested, base, judged.first(1000), home, corpus.found)


class Writer(NamedTuple):
    """Examples out of rows."""

    corpus: Corpus
    encode: Encoder
    sizes: Sizes

    def part(
        self, category: int, language: str, groups: Int[np.ndarray, " k"], draw: int, *, most: int, draws: int = 1
    ) -> Part:
        """One task in one language, on rows of these groups in random order, each once in a draw, so many at most."""
        rng = np.random.default_rng([draw, category, list(self.corpus.languages).index(language)])
        rows = np.flatnonzero(np.isin(self.corpus.groups(category, language), groups))
        rows = np.concatenate([rng.permutation(rows) for _ in range(draws)])[:most]
        first, second, labels = self.corpus.question(category, language, rows, rng)
        categories = np.full(len(labels), category, np.int32)
        targets = sum(self.corpus.classes[:category]) + labels
        return Part({"x": self.encode(first, second), "category": categories}, targets.astype(np.int32))

    def base(self, language: str, groups: Int[np.ndarray, " k"], seed: int) -> Part:
        """All tasks in one language, at most an equal share of each, and pairs of what says the same; half of either."""
        count = len(self.corpus.tasks)
        most = self.sizes.base // (2 * count)
        own = joined([self.part(k, language, groups, seed, most=most, draws=DRAWS) for k in range(count)])
        rng = np.random.default_rng([seed, 13])
        whole = joined([alone(own), self.pairs(groups, len(own), rng)])
        order = rng.permutation(len(whole))
        return Part({name: x[order] for name, x in whole.inputs.items()}, whole.targets[order])

    def pairs(self, groups: Int[np.ndarray, " k"], count: int, rng: np.random.Generator) -> Part:
        """So many pairs of texts that say the same in two languages."""
        said = [list(texts.values()) for texts in self.corpus.same(groups) if len(texts) > 1]
        drawn = [said[k] for k in rng.integers(0, len(said), count)]
        chosen = [(texts, rng.permutation(len(texts))) for texts in drawn]
        first, second = (self.encode([texts[order[k]] for texts, order in chosen]) for k in range(2))
        return together(first, second, len(self.corpus.tasks), sum(self.corpus.classes))


def hidden(key: Array, inputs: Mapping[str, Array], targets: Array) -> tuple[dict[str, Array], Array]:
    """Sentences with a share of their tokens hidden."""
    tokens = inputs["x"]
    some = jax.random.bernoulli(key, SHARE, tokens.shape) & (tokens >= SPECIAL)
    return {**inputs, "x": jnp.where(some, HIDDEN, tokens)}, targets
