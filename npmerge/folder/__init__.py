"""Hugging Face folders: what stands beside the weights, and vocabularies that differ."""

from npmerge.folder.finishing import finish
from npmerge.folder.record import Provenance, Replay, differences, recipe_of_record, sha256_of_file, sha256_of_files

__all__ = ["Provenance", "Replay", "differences", "finish", "recipe_of_record", "sha256_of_file", "sha256_of_files"]
