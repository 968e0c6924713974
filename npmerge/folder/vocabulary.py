"""Which rows of which models an embedding and a head are put together from, where vocabularies differ.

As mergekit has it: a model's own row where it has the token. Else the row that the recipe names for the token, else that of the
base if it has it, or the mean of those that have it; zeros for a token that no model has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from npmerge.folder.tokenizers import Tokenizer
from npmerge.recipe.plan import Rows, Source

Table = Int[np.ndarray, "rows models"]
ABSENT = -1


@dataclass(frozen=True)
class Given:
    """What a recipe says of one token.

    Attributes:
        model: place of the model whose row it gets where it has none; None for zeros.
        row: of that model.
        force: also where it has one.
    """

    model: int | None
    row: int
    force: bool


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of the merged model and where their rows come from.

    Attributes:
        tokenizer: of the result.
        rows: of the result's tables, padding included.
        places: for each number of a token its row in each model, -1 where the model has none.
        tables: for each model the names of its tables of tokens.
        sizes: for each model the rows of its tables.
        base: place of the base; None without.
        given: what the recipe says of a token, by its number in the result.
        reference: tokenizer of the model whose configuration is carried over.
        old_rows: of the tables of that model.
        folder: that files of the tokenizer are copied from; None if it is written anew.
        notes: what has to be said of it, a line each.
    """

    tokenizer: Tokenizer
    rows: int
    places: Table
    tables: tuple[frozenset[str], ...]
    sizes: tuple[int, ...]
    base: int | None
    given: Mapping[int, Given]
    reference: Tokenizer
    old_rows: int
    folder: Path | None
    notes: tuple[str, ...] = ()

    def holds(self, model: int, name: str) -> bool:
        """Whether a tensor of the model at this place is one of its tables of tokens."""
        return name in self.tables[model]

    def resized(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        """The sources of one table, the base among them, each with the rows that make it a table of the result's tokens.

        A source whose rows are these already is left alone. The result has `rows` rows.

        Raises:
            ValueError: the recipe takes a token from a model that is not among the sources (the token).
        """
        models = tuple(source.model for source in sources)
        own = self.places[:, models]
        default, forced = self._defaults(own, models)
        return tuple(self._with_rows(sources, column, own[:, column], default, forced) for column in range(len(sources)))

    def _with_rows(self, sources: Sequence[Source], column: int, own: np.ndarray, default: Table, forced: np.ndarray) -> Source:
        source, table = sources[column], default.copy()
        keep = (own >= 0) & ~forced
        table[keep] = ABSENT
        table[keep, column] = own[keep]
        used = np.flatnonzero((table >= 0).any(axis=0))
        if self._is_in_place(source, table, used, column):
            return source
        used = used if len(used) else np.array([column])
        models, names = zip(*((sources[k].model, sources[k].name) for k in used.tolist()), strict=True)
        return replace(source, rows=Rows(models, names, table[:, used], self.rows - len(table)))

    def _is_in_place(self, source: Source, table: Table, used: np.ndarray, column: int) -> bool:
        same_size = len(table) == self.rows == self.sizes[source.model]
        return same_size and list(used) == [column] and np.array_equal(table[:, column], np.arange(self.rows))

    def _defaults(self, own: Table, models: tuple[int, ...]) -> tuple[Table, np.ndarray]:
        """For each token the rows that a model without it gets, and whether every model gets them."""
        default, forced = own.copy(), np.zeros(len(own), bool)
        if self.base in models:
            column = models.index(self.base)
            of_base = own[:, column] >= 0
            default[np.ix_(of_base, np.arange(len(models)) != column)] = ABSENT
        for number, given in self.given.items():
            forced[number], default[number] = given.force, ABSENT
            if given.model is not None:
                default[number, self._column(models, number, given.model)] = given.row
        return default, forced

    def _column(self, models: tuple[int, ...], number: int, model: int) -> int:
        if model not in models:
            token = next(token for token, k in self.tokenizer.ids.items() if k == number)
            raise ValueError(f"the recipe takes the token {token!r} from a model that is not merged into this table of tokens")
        return models.index(model)
