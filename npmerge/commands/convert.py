"""`npmerge convert`: a checkpoint of any format that is read, written as safetensors, npz or Orbax."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import typer

from alignment.checks import unknown
from npmerge.checkpoint.conversion import NAMES, Pieces, write_npz, write_orbax, write_safetensors
from npmerge.checkpoint.formats import is_orbax, open_checkpoint
from npmerge.checkpoint.indices import tensors_by_file
from npmerge.checkpoint.partial import check_apart
from npmerge.checkpoint.sharded import ShardedModel
from npmerge.checkpoint.stored import StoredModel
from npmerge.commands.signals import ended_by_signals
from npmerge.folder.carried import carried, carry
from npmerge.reports.numbers import duration, parse_size, size
from npmerge.reports.progress import shown

SHARD_SIZE = "5GB"
FILES = {".safetensors": "safetensors", ".npz": "npz"}
FORMATS = ("safetensors", "npz", "orbax")
FOREIGN = (".bin", ".pt", ".pth", ".th", ".ckpt", ".h5", ".hdf5", ".keras", ".msgpack", ".gguf", ".onnx", ".npy", ".json")
"""Endings of names that promise what is not written here."""

OURS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|config\.json")
ORBAX = re.compile(
    r"_METADATA|_CHECKPOINT_METADATA|_sharding|_strings\.json|manifest\.ocdbt|orbax\.checkpoint|commit_success\.txt"
    r"|d|state|default|array_metadatas|descriptor|ocdbt\.process_\d+"
)
"""What a conversion puts into a folder, besides what it carries over; and what Orbax does."""


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge convert`.

    Attributes:
        source: a checkpoint.
        out: a file `.safetensors` or `.npz`, or a folder.
        target: the format of a folder, "safetensors" or "orbax"; None for the one that the name says.
        dtype: of floating-point tensors; None to keep each.
        shard_size: the most that a file of a folder takes, as people write it; None for 5GB.
        force: whether what is at `out` may be replaced.
        quiet: whether to print nothing but errors.
    """

    source: Path
    out: Path
    target: str | None = None
    dtype: str | None = None
    shard_size: str | None = None
    force: bool = False
    quiet: bool = False


def run_convert(request: Request) -> None:
    """Convert, and say what was done.

    Raises:
        ValueError: a checkpoint that cannot be read, a format or dtype that is not written, an output that exists or is the
            input, a disk that is full. What was at the output is then as it was.
    """
    begun = time.perf_counter()
    target = _target(request)
    if request.dtype is not None:
        _check_known("dtype", request.dtype, NAMES)
    shard_bytes = parse_size("--out-shard-size", request.shard_size or SHARD_SIZE)
    _check_output(request)
    model = open_checkpoint(request.source)
    total = sum(x.nbytes for x in model.entries.values())
    interruptible = ended_by_signals(at_checks=target == "orbax")  # whose threads would go on writing
    with interruptible as check, shown(total, "converting", quiet=request.quiet) as progress:

        def advance(nbytes: int) -> None:
            check()
            progress.advance(nbytes)

        pieces = Pieces(model, request.dtype, advance)
        left = _write(request, target, pieces, shard_bytes)
        check()
    if not request.quiet:
        for line in _told(request, pieces, [*model.notes, *left]):
            typer.echo(line)
        typer.echo(
            f"{len(model.entries)} tensors, {size(total)} of {model.format} in "
            f"{duration(time.perf_counter() - begun)}, written to {request.out} as {target}"
        )


def _write(request: Request, target: str, pieces: Pieces, shard_bytes: int) -> list[str]:
    if target == "npz":
        write_npz(request.out, pieces)
    elif target == "orbax":
        write_orbax(request.out, pieces)
    else:
        return write_safetensors(request.out, pieces, _metadata(pieces.model), shard_bytes, _carrying(request.source))
    return []


def _carrying(source: Path) -> Callable[[Path], list[str]]:
    """Copies what is no weight from the folder of the input, as merges do."""

    def put(folder: Path) -> list[str]:
        if (source / "config.json").is_file():
            (folder / "config.json").write_bytes((source / "config.json").read_bytes())
        return carry(source, folder)

    return put


def _metadata(model: StoredModel) -> dict[str, str]:
    """The texts that the files of a model carry; the first of two under one name."""
    found: dict[str, str] = {}
    for header in model.files.values() if isinstance(model, ShardedModel) else ():
        found = {**header.metadata, **found}
    return found


def _target(request: Request) -> str:
    """The format of the output, by its ending; a folder is safetensors, or Orbax if it ends in .orbax or that is asked for."""
    out, asked = request.out, request.target
    if asked is not None:
        _check_known("format", asked, FORMATS)
    if out.suffix in FOREIGN:
        raise ValueError(f"{out}: {out.suffix} is not written, expected a name in .safetensors or .npz, or a folder")
    said = FILES.get(out.suffix, "orbax" if out.suffix == ".orbax" else None)
    if said and asked and said != asked:
        raise ValueError(f"{out} ends in {out.suffix}, but --format asks for {asked}")
    if asked == "npz" and said is None:
        raise ValueError(f"{out}: an archive of NumPy needs a name that ends in .npz")
    if request.shard_size is not None and (said or asked == "orbax"):
        raise ValueError(f"--out-shard-size is for folders of safetensors, got {out}")
    return said or asked or "safetensors"


def _check_known(what: str, name: str, valid: tuple[str, ...]) -> None:
    if name not in valid:
        raise ValueError(unknown(what, name, valid))


def _check_output(request: Request) -> None:
    out, source = request.out, request.source
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"the output {out} is the input: name another")
    if out.suffix not in FILES or source.is_dir():
        check_apart(out, [source])
    if source.suffix == ".json" and out.parent.resolve() == source.parent.resolve() and out.name in tensors_by_file(source):
        raise ValueError(f"the output {out} is a file of the input: name another")
    if not out.exists() or (out.is_dir() and out.suffix not in FILES and not any(out.iterdir())):
        return
    if not request.force:
        raise ValueError(f"{out} exists: name another output, or pass --force to replace it")
    if out.is_dir() and out.suffix in FILES:
        raise ValueError(f"{out} is a folder: name a file")
    if not out.is_dir() and out.suffix not in FILES:
        raise ValueError(f"{out} is a file: name a folder")
    if out.is_dir() and (foreign := _foreign(source, out)):
        raise ValueError(f"{out} holds {foreign[0].name}, which --force would lose: name another folder")


def _foreign(source: Path, out: Path) -> list[Path]:
    """What a folder holds that no conversion of this input would put there."""
    if is_orbax(out):
        return sorted(x for x in out.iterdir() if not ORBAX.fullmatch(x.name))
    taken = carried(source)
    return sorted(x for x in out.iterdir() if not (OURS.fullmatch(x.name) and x.is_file()) and x.name not in taken)


def _told(request: Request, pieces: Pieces, notes: list[str]) -> list[str]:
    lost = [f"warning: {n} entries of {name!r} became infinite in {request.dtype}" for name, n in pieces.infinite.items()]
    return [*(f"note: {x}" for x in notes), *lost]
