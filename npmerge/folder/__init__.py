"""Hugging Face folders: what stands beside the weights, and vocabularies that differ."""

from npmerge.folder.finishing import finish
from npmerge.folder.make_vocabulary import disagreements, make_vocabulary
from npmerge.folder.record import (
    Provenance,
    Replay,
    changed_inputs,
    differences,
    files_beside,
    hash_of_path,
    hashes_now,
    is_record,
    recipe_of_record,
)
from npmerge.folder.templates import check_template
from npmerge.folder.vocabulary import Vocabulary

__all__ = [
    "Provenance",
    "Replay",
    "Vocabulary",
    "changed_inputs",
    "check_template",
    "differences",
    "disagreements",
    "files_beside",
    "finish",
    "hash_of_path",
    "hashes_now",
    "is_record",
    "make_vocabulary",
    "recipe_of_record",
]
