"""`npmerge inspect`: what a checkpoint holds, from its headers, and from its values if asked."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.indices import read_json
from npmerge.checkpoint.partial import RECORD
from npmerge.checkpoint.sharded import ShardedModel
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands.values import Moments, blocks, each_tensor
from npmerge.recipe.layers import layers_of
from npmerge.reports.numbers import counted, number, plural, size
from npmerge.reports.progress import shown
from npmerge.reports.text import braced, columns, kind_of, shape_of


def inspected(path: Path, *, values: bool = False) -> dict[str, Any]:
    """What is known of a checkpoint, as `--json` prints it.

    Args:
        path: a checkpoint of any format that is read.
        values: whether the tensors are read too: moments, NaN and infinities, and which tensors are the same.

    Raises:
        ValueError: what `open_checkpoint` raises, and a record that is not JSON.
    """
    model = open_checkpoint(path)
    content = {
        "path": str(path),
        "format": model.format,
        "notes": list(model.notes),
        "files": [_file(file, metadata) for file, metadata in _files(model, path)],
        "parameters": sum(entry.size for entry in model.entries.values()),
        "bytes": sum(entry.nbytes for entry in model.entries.values()),
        "dtypes": _dtypes(model.entries),
        "layers": {stack.rstrip("./_"): len(numbers) for stack, numbers in layers_of(model.entries).numbers.items()},
        "config": dict(model.config),
        "record": _record(model.folder),
        "tensors": {name: _tensor(entry) for name, entry in model.entries.items()},
    }
    return content | (_with_values(model, content["tensors"]) if values else {})


def _files(model: StoredModel, path: Path) -> list[tuple[Path, Mapping[str, str]]]:
    if isinstance(model, ShardedModel):
        return [(file, header.metadata) for file, header in model.files.items()]
    return [(file, {}) for file in (sorted(x for x in path.rglob("*") if x.is_file()) if path.is_dir() else [path])]


def _file(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "metadata": {k: _parsed(v) for k, v in metadata.items()}}


def _parsed(text: str) -> Any:
    """Metadata are texts, records among them are JSON."""
    try:
        return json.loads(text) if text.startswith("{") else text
    except ValueError:
        return text


def _tensor(entry: Entry) -> dict[str, Any]:
    return {"shape": list(entry.shape), "dtype": entry.dtype, "parameters": entry.size, "bytes": entry.nbytes}


def _dtypes(entries: Mapping[str, Entry]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for entry in entries.values():
        of = found.setdefault(entry.dtype, {"tensors": 0, "parameters": 0, "bytes": 0})
        of["tensors"] += 1
        of["parameters"] += entry.size
        of["bytes"] += entry.nbytes
    return found


def _record(folder: Path) -> Any:
    """What a merged model was made from; None for one that is not."""
    return read_json(file) if (file := folder / RECORD).is_file() else None


def _with_values(model: StoredModel, tensors: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Adds to each tensor what its values are; returns which are the same and which are not finite."""
    entries = list(model.entries.values())
    with shown(sum(entry.nbytes for entry in entries), "reading", quiet=False) as progress:
        found = each_tensor(lambda entry: _read(model, entry.name), entries, progress.advance)
    same = defaultdict(list)
    for entry, (moments, digest) in zip(entries, found, strict=True):
        tensors[entry.name]["values"] = _described(moments)
        if moments.m2 > 0 and len(entry.shape) > 1:  # vectors of ones are not tied to each other
            same[digest, entry.shape, entry.dtype].append(entry.name)
    broken = [entry.name for entry, (m, _) in zip(entries, found, strict=True) if m.nans or m.infinities]
    return {"same": [names for names in same.values() if len(names) > 1], "not_finite": broken}


def _read(model: StoredModel, name: str) -> tuple[Moments, bytes]:
    moments, digest = Moments(), hashlib.blake2b(digest_size=16)
    for block in blocks(model, name):
        moments = moments.and_block(block)
        digest.update(block.view("u1").data)
    return moments, digest.digest()


def _described(m: Moments) -> dict[str, Any]:
    finite = {"mean": m.mean, "std": m.std, "least": m.least, "most": m.most}
    return {k: v if m.count else None for k, v in finite.items()} | {"nans": m.nans, "infinities": m.infinities}


def inspect_page(content: Mapping[str, Any], *, verbose: bool = False) -> str:
    """What the terminal shows: tensors of one kind, shape and dtype in one line, unless `verbose`."""
    tensors = content["tensors"]
    summary = [
        f"{content['path']}: {plural(len(tensors), 'tensor')}, {counted(content['parameters'])} parameters, "
        f"{size(content['bytes'])} in {plural(len(content['files']), 'file')}",
        *_pairs(content),
    ]
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        same = name if verbose else (kind_of(name), tensor["dtype"], *tensor["shape"])
        groups.setdefault(same, []).append(name)
    columns_of = (_cells, _value_cells) if "same" in content else (_cells,)
    head = [cell for of in columns_of for cell in of(())]
    rows = [[cell for of in columns_of for cell in of([(name, tensors[name]) for name in names])] for names in groups.values()]
    return "\n".join([*summary, "", *columns([head, *rows]), *_findings(content)])


def _pairs(content: Mapping[str, Any]) -> list[str]:
    dtypes = ", ".join(f"{d} ({counted(of['parameters'])} in {of['tensors']})" for d, of in content["dtypes"].items())
    lines = [("dtypes", dtypes)]
    if content["layers"]:
        lines.append(("layers", ", ".join(f"{count} in {stack or 'the model'}" for stack, count in content["layers"].items())))
    if config := {k: v for k, v in content["config"].items() if isinstance(v, str | int | float | bool)}:
        lines.append(("config", ", ".join(f"{k}={v}" for k, v in config.items())))
    metadata = {k: v for file in content["files"] for k, v in file["metadata"].items()}
    if metadata:
        lines.append(("metadata", ", ".join(f"{k}={_short(v)}" for k, v in metadata.items())))
    lines += [("note", note) for note in content["notes"]]
    if content["format"] != "safetensors":
        lines.append(("format", content["format"]))
    if content["record"]:
        lines.append(("record", _short(content["record"])))
    return [f"  {line}" for line in columns(lines)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else f"{{{', '.join(value)}}}" if isinstance(value, dict) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


Named = Sequence[tuple[str, Mapping[str, Any]]]


def _cells(group: Named) -> list[str]:
    if not group:
        return ["tensor", "count", "shape", "dtype", "size"]
    names, (first, *_) = [name for name, _ in group], [tensor for _, tensor in group]
    nbytes = sum(tensor["bytes"] for _, tensor in group)
    return [braced(names), str(len(names)), shape_of(first["shape"]), first["dtype"], size(nbytes)]


def _value_cells(group: Named) -> list[str]:
    """From the smallest to the largest mean and deviation of a group."""
    if not group:
        return ["mean", "std", "least", "most", "NaN", "Inf"]
    found = [tensor["values"] for _, tensor in group]
    known = {key: [v[key] for v in found if v[key] is not None] for key in ("mean", "std", "least", "most")}
    ends = [_from_to(known["mean"]), _from_to(known["std"]), _one(min, known["least"]), _one(max, known["most"])]
    return [*ends, *(str(sum(v[key] for v in found)) for key in ("nans", "infinities"))]


def _from_to(values: Sequence[float]) -> str:
    low, high = _one(min, values), _one(max, values)
    return low if low == high else f"{low} to {high}"


def _one(choose: Callable[[Sequence[float]], float], values: Sequence[float]) -> str:
    return number(choose(values) if values else None)


def _findings(content: Mapping[str, Any]) -> list[str]:
    if "same" not in content:
        return []
    tensors = content["tensors"]
    lines = [f"same values: {', '.join(names)}" for names in content["same"]]
    for name in content["not_finite"]:
        values = tensors[name]["values"]
        lines.append(f"not finite: {name} has {values['nans']} NaN and {values['infinities']} infinite entries")
    return ["", *(lines or ["all values are finite, no two tensors are the same"])]
