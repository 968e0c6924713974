"""Tables of tokens: the tensors whose first axis is the vocabulary, found by shape and name alone."""

import re

from npmerge.checkpoint.stored import StoredModel
from npmerge.folder.configs import rows_of_config
from npmerge.folder.stacks import LAYER

WORDS = re.compile(r"embed|emb\b|wte|word|tok|shared|head|output|decoder|predictions|vocab|logits", re.IGNORECASE)
OTHERS = re.compile(r"position|pos_|wpe|type|segment|norm|\bln|patch", re.IGNORECASE)


def rows_of_tables(model: StoredModel, tokens: int) -> int:
    """How many rows a model's tables of tokens have: as its configuration says, without one as many as it has tokens.

    Raises:
        ValueError: there is no table of so many rows (the path).
    """
    rows = rows_of_config(model.config) or tokens
    if not tables(model, rows):
        raise ValueError(f"{model.path} has no table of {rows:,} tokens: no embedding or head has so many rows")
    return rows


def tables(model: StoredModel, rows: int) -> frozenset[str]:
    """Names of the tensors with one row a token: outside the layers, with so many rows, named like an embedding or a head."""
    return frozenset(name for name, entry in model.entries.items() if _is_table(name, entry.shape, rows))


def _is_table(name: str, shape: tuple[int, ...], rows: int) -> bool:
    if not shape or len(shape) > 2 or shape[0] != rows or LAYER.search(name):
        return False
    return bool(WORDS.search(name)) and not OTHERS.search(name) and (len(shape) == 2 or name.endswith("bias"))
