"""Files of PyTorch 1.6 and newer: zip archives of one pickle and its storages, read without PyTorch."""

import io
import sys
from collections.abc import Mapping
from pathlib import Path

from npmerge.checkpoint.containers import find_tensors
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.pickles import MOST_BYTES, read_pickle
from npmerge.checkpoint.rebuilt import call, persistent
from npmerge.checkpoint.spans import Span
from npmerge.checkpoint.strided import Region, StridedModel
from npmerge.checkpoint.zips import Member, inflated, opened, read_members

PICKLE = "data.pkl"


def open_file(path: Path) -> StridedModel:
    """A file that `torch.save` wrote as a zip archive; its storages stay in the file until they are read.

    Raises:
        CheckpointError: an archive or a pickle that is damaged, a pickle that names anything but tensors and plain data, a
            tensor that lies outside its storage (the path, and the tensor).
    """
    path = Path(path)
    members = read_members(path)
    pickles = [x for x in members if x == PICKLE or x.endswith(f"/{PICKLE}")]
    if len(pickles) != 1:
        raise CheckpointError(path, f"is no archive of PyTorch: {len(pickles)} members are called {PICKLE}, expected one")
    prefix = pickles[0].removesuffix(PICKLE)
    content = read_pickle(path, io.BytesIO(_bytes(path, members[pickles[0]])), call, persistent)
    tensors, notes = find_tensors(path, content)
    order = _order(path, members, prefix)
    return StridedModel(path, tensors, _regions(path, members, prefix), notes, swapped=order != sys.byteorder)


def _regions(path: Path, members: Mapping[str, Member], prefix: str) -> dict[str, Region]:
    begin = f"{prefix}data/"
    return {
        name.removeprefix(begin): Region(Span(path, x.offset, x.nbytes), x if x.deflated else None)
        for name, x in members.items()
        if name.startswith(begin)
    }


def _order(path: Path, members: Mapping[str, Member], prefix: str) -> str:
    """The order of bytes; archives without the entry are little-endian."""
    member = members.get(f"{prefix}byteorder")
    if member is None:
        return "little"
    text = _bytes(path, member, 16).decode("ascii", "replace").strip()
    if text not in ("little", "big"):
        raise CheckpointError(path, f"is {text!r}, expected 'little' or 'big'", member.name)
    return text


def _bytes(path: Path, member: Member, most: int = MOST_BYTES) -> bytes:
    if member.nbytes > most:
        raise CheckpointError(path, f"takes {member.nbytes} bytes, expected {most} at most", member.name)
    if member.deflated:
        return b"".join(inflated(path, member))
    with opened(path) as file:
        file.seek(member.offset)
        return file.read(member.nbytes)
