"""`npmerge compare`: how far models are from the first of them, tensor by tensor, layer by layer and as a whole."""

import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands import compare_page as page
from npmerge.commands.compare_sums import Sums, sums_of, total
from npmerge.commands.values import blocks, each_tensor, values_of
from npmerge.recipe.layers import layers_of
from npmerge.reports.folder import OutputFolder
from npmerge.reports.progress import shown
from npmerge.reports.text import shape_of
from npmerge.version import __version__

OUTSIDE = "outside the layers"
"""Where tensors are counted that are in no layer."""


@dataclass(frozen=True)
class Models:
    """The models that are compared, headers only.

    Attributes:
        reference: what the others are compared with.
        others: at least one.
        base: what task vectors are differences from, if any.
    """

    reference: StoredModel
    others: tuple[StoredModel, ...]
    base: StoredModel | None

    def sums(self, entry: Entry) -> list[Sums | None]:
        """Those of each other model for one tensor; None where it lacks the tensor or has another shape."""
        here = [_same_shape(entry, model) for model in self.others]
        base = self.base if self.base and _same_shape(entry, self.base) else None
        models = [self.reference, *([base] if base else []), *itertools.compress(self.others, here)]
        each = []
        for pieces in zip(*(blocks(model, entry.name) for model in models), strict=True):
            reference, *rest = map(values_of, pieces)
            origin = rest.pop(0) if base else None
            each.append([sums_of(reference, x, origin) for x in rest])
        found = iter([total(several) for several in zip(*each, strict=True)])
        return [next(found, None) if has else None for has in here]


def _same_shape(entry: Entry, model: StoredModel) -> bool:
    return entry.name in model.entries and model.entries[entry.name].shape == entry.shape


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge compare`.

    Attributes:
        paths: two models or more.
        base: what task vectors are differences from, if any.
        out: the folder to write, if any.
        force: whether it may have files in it.
        verbose: whether all tensors are told.
        as_json: whether to answer in JSON.
    """

    paths: tuple[Path, ...]
    base: Path | None = None
    out: Path | None = None
    force: bool = False
    verbose: bool = False
    as_json: bool = False

    @property
    def command(self) -> str:
        """The command line."""
        options = [] if self.base is None else ["--base", str(self.base)]
        options += [] if self.out is None else ["--out", str(self.out)]
        return shlex.join(["npmerge", "compare", *map(str, self.paths), *options, *(["--force"] if self.force else [])])


def run_compare(request: Request) -> str:
    """Compare, write the folder if one is asked for, and return what the terminal shows.

    Raises:
        ValueError: models that cannot be compared, and a folder that cannot be written.
    """
    if request.out is None:
        content = _content(request)
    else:
        with OutputFolder(request.out, force=request.force, own=page.FILES) as folder:
            content = _content(request)
            page.write(folder, content)
    if request.as_json:
        return json.dumps(content, indent=1)
    written = [] if request.out is None else [f"written to {request.out}: {', '.join(page.FILES)}"]
    return "\n".join([*page.told(content, verbose=request.verbose), *written])


def _content(request: Request) -> dict[str, Any]:
    return {"npmerge": __version__, "command": request.command} | compared(request.paths, request.base)


def compared(paths: Sequence[Path], base: Path | None = None) -> dict[str, Any]:
    """How far models are from the first of them: the content of `summary.json`.

    Args:
        paths: two or more models.
        base: the model that they were trained from, for task vectors.

    Raises:
        ValueError: fewer than two models, one that has no tensor in common with the first, what `open_checkpoint` raises.
    """
    if len(paths) < 2:
        raise ValueError(f"compare needs two models or more, got {len(paths)}")
    reference, *others = [open_checkpoint(path) for path in paths]
    models = Models(reference, tuple(others), None if base is None else open_checkpoint(base))
    left_out = _left_out(models)
    measured = differences_of(models, quiet=False)
    return {
        "reference": str(paths[0]),
        "base": None if base is None else str(base),
        "models": [{"path": str(path), **of} for path, of in zip(paths[1:], measured, strict=True)],
        "left_out": left_out,
    }


def differences_of(models: Models, *, quiet: bool) -> list[dict[str, Any]]:
    """How far each of the others is from the reference: as a whole, by layer and by tensor, as `Sums.measures` has it."""
    entries = list(models.reference.entries.values())
    with shown(sum(entry.nbytes for entry in entries), "comparing", quiet=quiet) as progress:
        found = each_tensor(models.sums, entries, progress.advance)
    names = [entry.name for entry in entries]
    by_model = [{name: sums[k] for name, sums in zip(names, found, strict=True)} for k in range(len(models.others))]
    return [_of_model({name: sums for name, sums in of.items() if sums}) for of in by_model]


def _of_model(tensors: Mapping[str, Sums]) -> dict[str, Any]:
    """Everything that is told of one model."""
    layers: dict[str, list[Sums]] = {}
    of = layer_of(tensors)
    for name, sums in tensors.items():
        layers.setdefault(of[name], []).append(sums)
    return {
        "whole": total(tensors.values()).measures(),
        "layers": {name: total(several).measures() for name, several in layers.items()},
        "tensors": {name: sums.measures() for name, sums in tensors.items()},
    }


def layer_of(names: Iterable[str]) -> dict[str, str]:
    """For each tensor the layer that it is counted in, or its module where layers hold less than half of the tensors.

    Numbers in names count layers in a transformer; in a network of named blocks with a `head.1` they say little.
    """
    names = list(names)
    layers = layers_of(names)
    places = {name: layers.place(name) for name in names}
    if 0 < 2 * sum(place is not None for place in places.values()) < len(names):
        return {name: re.sub(r"[./][^./]*$", "", name) for name in names}
    return {name: f"{place.stack}{place.number}" if place else OUTSIDE for name, place in places.items()}


def _left_out(models: Models) -> list[str]:
    """A line for each tensor that is not compared, or not with the base."""
    lines = []
    for model in (*models.others, *([models.base] if models.base else [])):
        lines += list(_differences(models.reference, model))
    return lines


def _differences(reference: StoredModel, model: StoredModel) -> Iterator[str]:
    """How the tensors of a model differ from the reference's in name and shape."""
    both = [entry for entry in reference.entries.values() if entry.name in model.entries]
    same = [entry for entry in both if _same_shape(entry, model)]
    if not same:
        first = " and ".join(
            f"{e.name!r} ({shape_of(e.shape)})" for m in (reference, model) for e in list(m.entries.values())[:1]
        )
        raise ValueError(f"{reference.path} and {model.path} have no tensor of one name and shape, the first are {first}")
    yield from (f"{name} is not in {model.path}" for name in reference.entries if name not in model.entries)
    yield from (f"{name} is only in {model.path}" for name in model.entries if name not in reference.entries)
    for entry in both:
        if entry not in same:
            theirs = shape_of(model.entries[entry.name].shape)
            yield f"{entry.name} has the shape {shape_of(entry.shape)} in {reference.path}, {theirs} in {model.path}"
