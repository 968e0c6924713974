"""What users of mergekit may type that `npmerge` does not have: what stands in its place."""

from collections.abc import Sequence
from pathlib import Path

FLAGS = {
    "--cuda": "is --device gpu here",
    "--copy-tokenizer": "is not needed: the tokenizer is always copied",
    "--no-copy-tokenizer": "is not there: the tokenizer is always copied",
    "--allow-crimes": "is not needed: models of other architectures are merged where names and shapes are the same",
    "--lazy-unpickle": "is not needed: tensors are always read when they are used, and nothing is unpickled",
    "--low-cpu-memory": "is not needed: memory does not grow with the model; --memory-budget says how much",
    "--random-seed": "is --seed here",
    "--trust-remote-code": "is not needed: no code of models is run",
    "--write-model-card": "is not needed: the model card is always written",
    "--lora-merge-cache": "is not needed: base+adapter is merged as it is read",
    "--transformers-cache": "is not needed: models are given by their paths on this machine",
}


def check_flags(arguments: Sequence[str]) -> None:
    """Raise ValueError for a recipe in the place of a command, a flag of mergekit or of others, with what to give instead."""
    first = arguments[0] if arguments else ""
    if Path(first).suffix in (".yml", ".yaml", ".json"):
        instead = f"npmerge merge {first} OUT, or npmerge plan {first}"
        raise ValueError(f"{first} seems to be a recipe, expected a command: {instead}")
    for argument in arguments if "merge" in arguments[:1] else ():
        flag = argument.partition("=")[0]
        if flag in ("--out", "-o"):
            raise ValueError(f"{flag} is not an option of merge: its second argument is the folder, npmerge merge RECIPE OUT")
        if flag in FLAGS:
            raise ValueError(f"{flag} of mergekit {FLAGS[flag]}")
