"""Networks that `npmerge align` reads, and how the aligned ones are written: each in the names in which it was read."""

import hashlib
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from alignment.graph import PyTree
from npmerge.checkpoint import load_named, load_network, load_record, save, save_network, to_named
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.formats import PERHAPS, open_checkpoint
from npmerge.checkpoint.names import paths_of
from npmerge.checkpoint.network import architecture, network_config
from npmerge.checkpoint.sharded import OTHERS
from npmerge.folder.carried import carry
from npmerge.models import Config

CONFIG = "config.json"

FOREIGN = {Path(pattern).suffix for pattern in (*PERHAPS, *OTHERS)}
"""Endings of formats that are read and not written."""

NAMED = "named_architecture"
"""Where the record of a network in names of PyTorch has its configuration; "architecture" means that names are paths."""


class File(NamedTuple):
    """A network that is written.

    Attributes:
        config: what builds it.
        variables: of the network.
        record: that is written with it.
        names: of its tensors, where they are to be those that PyTorch has; None for the paths of our own files.
        beside: a folder whose configuration and tokenizer go along: then a folder is written, too.
    """

    config: Config
    variables: PyTree
    record: Mapping[str, Any]
    names: tuple[str, ...] | None = None
    beside: Path | None = None

    def write(self, path: Path) -> None:
        """Write it. Raises ValueError as `npmerge.checkpoint.save`; warns of files that do not go along."""
        if self.beside is not None:
            path.mkdir()
            for left in carry(self.beside, path):
                warnings.warn(f"{self.beside.name}: {left}", stacklevel=2)
            shutil.copyfile(self.beside / CONFIG, path / CONFIG)
            path = path / "model.safetensors"
        if self.names is None:
            save_network(path, self.config, self.variables, self.record)
        else:
            tensors = to_named(self.config, self.variables, like=self.names)
            save(path, tensors, {**self.record, NAMED: architecture(self.config)})


class Source(NamedTuple):
    """A checkpoint as it was read.

    Attributes:
        path: of the file or folder.
        sha256: of the file, or of the names and hashes of all files in the folder.
        record: that it has; empty for one that npmerge has not written.
        config: the architecture.
        variables: of the network.
        names: of its tensors, where they are those that PyTorch has; None for the paths of our own files.
    """

    path: Path
    sha256: str
    record: dict[str, Any]
    config: Config
    variables: PyTree
    names: tuple[str, ...] | None = None

    @property
    def named(self) -> dict[str, str]:
        """How records name it."""
        return {"file": self.path.name, "sha256": self.sha256}

    @property
    def modules(self) -> dict[str, str]:
        """What the file calls the modules of the network, by their paths; empty where it calls them so."""
        found = {} if self.names is None else paths_of(self.config, self.names)
        return {path.rpartition("/")[0]: name.rpartition(".")[0] for name, paths in found.items() for path in paths}

    def aligned(self, variables: PyTree, record: Mapping[str, Any]) -> File:
        """Its aligned copy, with a record besides its own."""
        beside = self.path if _is_folder_of_model(self.path) else None
        return File(self.config, variables, {**self.record, **record}, self.names, beside)


def written_name(path: Path) -> str:
    """What the aligned copy is called: as the original, but always in `.safetensors` where that is another format.

    That of a folder with `config.json` is a folder.
    """
    if path.is_dir():
        return path.name if _is_folder_of_model(path) else f"{path.name}.safetensors"
    return f"{path.stem}.safetensors" if path.suffix in FOREIGN else path.name


def read_source(path: Path) -> Source:
    """A network that npmerge has saved, or one of any format in the names that PyTorch has for the architectures it knows.

    Raises:
        ValueError: a file that cannot be read or whose network is not known: what can be done.
    """
    record = load_record(path) if _is_own(path) else {}
    if record and NAMED not in record:
        return Source(path, sha256(path), record, *load_network(path))
    names = tuple(open_checkpoint(path).entries)
    try:
        config, variables = load_named(path, network_config(path, record[NAMED]) if record else None)
    except CheckpointError as error:
        said = str(error) if str(error).endswith(("?", ".")) else f"{error}."
        raise ValueError(
            f"{said} A network of your own is aligned as it is merged, by a recipe with align: {{method, architecture, data}}, "
            "or in Python, by npmerge.trace and npmerge.align; here networks of npmerge.models are, as "
            "save_network writes them or in the names that PyTorch has for them (what those do not tell, "
            "npmerge.checkpoint.load_named takes)"
        ) from None
    return Source(path, sha256(path), record, config, variables, names)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal; of a folder that of the names and hashes of its files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = (f"{file.relative_to(path).as_posix()} {sha256(file)}\n" for file in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_folder_of_model(path: Path) -> bool:
    """Whether it is a folder as Hugging Face has them, whose files beside the weights are of use to the aligned copy."""
    return (path / CONFIG).is_file()


def _is_own(path: Path) -> bool:
    """Whether `npmerge.checkpoint.save` has written a file."""
    try:
        with safe_open(path, "np") as file:
            return "npmerge" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False
