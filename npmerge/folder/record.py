"""`npmerge.json`: what a merged model was made from, and with which numbers, so that the same bytes can be made again.

It holds no time, no machine and no absolute path: the same merge writes the same record.
"""

import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from npmerge.checkpoint.indices import read_json
from npmerge.checkpoint.stored import StoredModel
from npmerge.version import __version__

FORMAT = 1
KINDS = {"recipe": str, "seed": int, "mergekit_semantics": bool}
KINDS |= dict.fromkeys(("options", "inputs", "outputs", "versions"), dict)
OPTIONS = {"out_shard_size": str, "seed": int}
NAMES = {str: "a text", dict: "an object", int: "an integer", bool: "true or false"}
CHUNK = 2**23  # bytes that are hashed at a time


@dataclass(frozen=True)
class Provenance:
    """What only the run knows of a merge.

    Attributes:
        recipe: the text of the recipe's file, as it was read.
        options: by name, whatever else decides on the bytes of the result, such as "out_shard_size".
        inputs: `hash_of_path` of every file or folder that was read, by its path as the recipe leads to it; empty where none
            was taken.
        outputs: digest of the tensors of every file that was written, by its name in the folder: equal for equal tensors.
        models: that the recipe names, without results of its own documents; empty for those of the plan. No record holds it.
    """

    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Replay:
    """A merge that is to be made again.

    Attributes:
        provenance: of the first time.
        seed: of what was random.
        mergekit_semantics: whether mergekit's conventions were followed.
        versions: of npmerge and the libraries that made it.
    """

    provenance: Provenance
    seed: int
    mergekit_semantics: bool
    versions: Mapping[str, str]


def hash_of_file(path: Path) -> str:
    """The BLAKE3 hash of a file, "blake3:" and what `b3sum` gives (O'Connor et al. 2020).

    SHA-256 would take longer than most merges. The file is mapped piece by piece and never held.

    Raises:
        ValueError: a file that cannot be read.
    """
    digest = blake3()
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for start in range(0, size, CHUNK):
                with mmap.mmap(file.fileno(), min(CHUNK, size - start), access=mmap.ACCESS_READ, offset=start) as piece:
                    digest.update(piece)
    except (OSError, ValueError) as error:  # ValueError: a file that has become shorter
        raise ValueError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return f"blake3:{digest.hexdigest()}"


def hash_of_path(path: Path) -> str:
    """The hash of a file, or of the names and hashes of all files in a folder, as records have it."""
    if not path.is_dir():
        return hash_of_file(path)
    digest = blake3()
    for file in sorted(x for x in path.rglob("*") if x.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {hash_of_file(file)}\n".encode())
    return f"blake3:{digest.hexdigest()}"


def files_beside(model: StoredModel) -> list[Path]:
    """The files beside a model's weights that decide on a merge: its configuration and its tokenizer, where it has them."""
    return [path for name in ("config.json", "tokenizer.json") if model.config and (path := model.folder / name).is_file()]


def record_of(provenance: Provenance, seed: int, mergekit_semantics: bool, *, libraries: Sequence[str] = ()) -> dict[str, Any]:
    """The content of `npmerge.json`, with the versions of these libraries, too."""
    packages = ("jax", *libraries)
    return {
        "format": FORMAT,
        "versions": {"npmerge": __version__, "numpy": np.__version__, **{name: _version(name) for name in packages}},
        "seed": seed,
        "mergekit_semantics": mergekit_semantics,
        "options": dict(provenance.options),
        "recipe": provenance.recipe,
        "inputs": dict(sorted(provenance.inputs.items())),
        "outputs": dict(sorted(provenance.outputs.items())),
    }


def is_record(path: Path) -> bool:
    """Whether a file is the record of a merge rather than a recipe, which may be JSON too. Raises ValueError as `read_json`."""
    if path.suffix != ".json":
        return False
    content = read_json(path)
    return isinstance(content, dict) and not content.keys().isdisjoint(("format", "recipe"))


def recipe_of_record(path: Path | str) -> Replay:
    """What `npmerge merge npmerge.json OUT` makes again: the recipe's text with everything it was merged with.

    Raises:
        ValueError: no such file, one that is no record, or of another format.
    """
    path = Path(path)
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{path} is no record that this version of npmerge reads: format {found!r}, expected {FORMAT}")
    for name, kind in KINDS.items():
        if name not in record:
            raise ValueError(f"{path} is a damaged record: it has no {name!r}")
        _check_kind(path, name, record[name], kind)
    for name, kind in OPTIONS.items():
        _check_kind(path, f"options.{name}", record["options"].get(name, kind()), kind)
    provenance = Provenance(*(record[name] for name in ("recipe", "options", "inputs", "outputs")))
    return Replay(provenance, record["seed"], record["mergekit_semantics"], record["versions"])


def _check_kind(path: Path, name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise ValueError(f"{path} is a damaged record: {name} is {value!r}, expected {NAMES[kind]}")


def differences(replay: Replay, again: Provenance) -> list[str]:
    """What a second run found or made otherwise than the first: a line for each file, none if all bytes are the same."""
    found = _changed("input", replay.provenance.inputs, again.inputs)
    return found + _changed("output", replay.provenance.outputs, again.outputs)


def hashes_now(replay: Replay) -> dict[str, str]:
    """Hashes of the recorded inputs as they are now, without those that are no longer there. All of them are read."""
    there = [name for name in replay.provenance.inputs if Path(name).exists()]
    with ThreadPoolExecutor(thread_name_prefix="hash") as pool:
        return dict(zip(there, pool.map(hash_of_path, map(Path, there)), strict=True))


def changed_inputs(replay: Replay, now: Mapping[str, str]) -> list[str]:
    """What differs from the first time before anything is made: a line for each input.

    Args:
        replay: the merge that is to be made again.
        now: of `hashes_now`.
    """
    return [f"not as the first time: {text}" for text in _changed("input", replay.provenance.inputs, now)]


def _changed(kind: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    if not before or not after:
        return []
    names = sorted({*before, *after})
    return [
        f"{kind} {name}: {_start(after, name)}, recorded was {_start(before, name)}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _start(hashes: Mapping[str, str], name: str) -> str:
    """As much of a hash as tells it from others."""
    return hashes.get(name, "none").removeprefix("blake3:")[:12]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
