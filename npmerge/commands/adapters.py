"""`npmerge merge-lora` and `npmerge extract-lora`: adapters from adapters, and from two models."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from npmerge.checkpoint.adapted import CONV1D
from npmerge.checkpoint.adapter import Adapter, open_adapter
from npmerge.checkpoint.adapter_writer import NewAdapter, write_adapter
from npmerge.checkpoint.dtypes import FLOATS
from npmerge.checkpoint.errors import CheckpointError
from npmerge.checkpoint.factors import Update, cut, extracted, joined
from npmerge.checkpoint.formats import open_checkpoint
from npmerge.checkpoint.lora_config import CONFIG
from npmerge.checkpoint.partial import check_apart, check_replaceable, partial_folder
from npmerge.checkpoint.stored import Entry, StoredModel
from npmerge.commands.stored_whole import (
    as_written,
    base_of,
    bias_kind,
    is_bias,
    is_matrix,
    module_of,
    saved_modules,
    sizes,
    summed,
    why_whole,
)
from npmerge.reports.numbers import plural
from npmerge.reports.progress import shown
from npmerge.reports.text import columns

TABLE = re.compile(r"wte|wpe|(?!.*out).*embed.*")
"""Last parts of the names of modules that are taken for embeddings, whose factors PEFT names otherwise."""


@dataclass(frozen=True)
class Request:
    """What an adapter is made with.

    Attributes:
        out: its folder.
        rank: the most that a weight gets; None for the sum of ranks.
        max_error: relative error of a weight up to which its rank may be smaller.
        force: whether an earlier result may be replaced.
        quiet: whether nothing is printed.
    """

    out: Path
    rank: int | None = None
    max_error: float | None = None
    force: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"--rank must be 1 or more, got {self.rank}")
        if self.max_error is not None and not 0 <= self.max_error < 1:
            raise ValueError(f"--max-error is a part of the norm, from 0 to less than 1, got {self.max_error}")


def merge_adapters(paths: Sequence[Path], weights: Sequence[float], request: Request) -> str:
    """Adapters of one base as one: the weighted sum of their updates, exact, or cut to a rank.

    Returns:
        What the terminal shows: a line for each tensor that was cut.

    Raises:
        ValueError: other weights than adapters, shapes that differ (both are named), a module that is whole in one
            adapter and has factors in another, or is whole and needs the base, which is not there.
    """
    weights = list(weights) or [1.0] * len(paths)
    if len(weights) != len(paths) or not all(map(math.isfinite, weights)):
        raise ValueError(f"expected one finite --weight for each of {plural(len(paths), 'adapter')}, got {weights}")
    check_apart(request.out, paths)
    check_replaceable(request.out, force=request.force)
    adapters = [open_adapter(path) for path in paths]
    modules = sorted({module for adapter in adapters for module in adapter.pairs})
    kept = summed(adapters, weights)
    tensors: dict[str, np.ndarray] = {}
    updates: dict[str, Update] = {}
    with shown(len(modules), "merging", quiet=request.quiet) as progress:
        for module in modules:
            update = _joined(adapters, weights, module)
            updates[module] = update if request.rank is None else cut(update, request.rank)
            tensors |= _named(adapters, module, updates[module])
            progress.advance(1)
    record = {"adapters": [str(x) for x in paths], "weights": weights, "rank": request.rank, "errors": _errors(updates)}
    fans = any(adapter.config.fan_in_fan_out for adapter in adapters)
    _write(request, _new(tensors, updates, kept, base_of(adapters), fan_in_fan_out=fans, record=record))
    return _page(updates, request)


def extract_adapter(model: str, base: str, request: Request) -> str:
    """The difference of two models as an adapter: matrices cut to a rank, biases beside, whole what differs in other tensors.

    Returns:
        What the terminal shows: rank and relative error of each tensor.

    Raises:
        ValueError: tensors that only one of them has or whose shapes differ, no rank, models that are the same.
    """
    if request.rank is None:
        raise ValueError("extract-lora needs --rank")
    check_apart(request.out, [Path(model), Path(base)])
    check_replaceable(request.out, force=request.force)
    for name in (model, base):
        if (Path(name) / CONFIG).is_file():
            raise ValueError(f"{name} is an adapter, expected a model: a recipe with base+adapter makes one of it")
    tuned, origin = open_checkpoint(model), open_checkpoint(base)
    _check_same(tuned, origin)
    changed = _changed(tuned, origin, request)
    if not changed:
        raise ValueError(f"{model} and {base} hold the same values: there is nothing to extract")
    if loose := [entry.name for entry in changed if not is_matrix(entry) and "." not in entry.name]:
        raise ValueError(f"{model} changes {', '.join(loose)}, of no module: an adapter of PEFT cannot hold that")
    whole = [e.name for e in changed if not is_matrix(e) and not is_bias(e, origin.entries)]
    saved = set(map(module_of, whole))
    biases = [e.name for e in changed if is_bias(e, origin.entries) and module_of(e.name) not in saved]
    if saved and not request.quiet:
        modules = {module_of(entry.name) for entry in changed}
        typer.echo(f"stored whole, not as factors: {len(saved)} of {plural(len(modules), 'changed module')}", err=True)
    entries = tuned.entries.items()
    kept = {name: tuned.read(name).reshape(e.shape) for name, e in entries if module_of(name) in saved or name in biases}
    factored = [entry for entry in changed if is_matrix(entry) and module_of(entry.name) not in saved]
    conv1d = origin.config.get("model_type") in CONV1D
    updates, tensors = _factored(tuned, origin, factored, request)
    record = {"model": model, "base": base, "rank": request.rank, "errors": _errors(updates)}
    adapter = _new(tensors, updates, kept, base, fan_in_fan_out=conv1d, record=record)
    _write(request, adapter)
    model_size = sum(entry.nbytes for entry in origin.entries.values())
    inside = sum(x.nbytes for name, x in kept.items() if module_of(name) in saved)
    lines = why_whole(whole, biases, [*origin.entries])
    return _page(updates, request, [*lines, *sizes(sum(x.nbytes for x in adapter.tensors.values()), model_size, inside)])


def _factored(
    tuned: StoredModel, origin: StoredModel, entries: Sequence[Entry], request: Request
) -> tuple[dict[str, Update], dict[str, np.ndarray]]:
    """The update of each weight by its module, and its factors by the names that PEFT has for them."""
    updates: dict[str, Update] = {}
    tensors: dict[str, np.ndarray] = {}
    conv1d = origin.config.get("model_type") in CONV1D
    with shown(sum(entry.nbytes for entry in entries), "extracting", quiet=request.quiet) as progress:
        for entry in entries:
            theirs, ours = (x.read(entry.name).astype(np.float32).reshape(entry.shape) for x in (tuned, origin))
            module = module_of(entry.name)
            updates[module], found = _extracted(module, theirs - ours, request, conv1d)
            tensors |= found
            progress.advance(entry.nbytes)
    return updates, tensors


def _new(
    factors: Mapping[str, np.ndarray], updates: Mapping[str, Update], kept: Mapping[str, np.ndarray], base: str, **options: Any
) -> NewAdapter:
    """An adapter of factors and of what is kept as it is: modules whole, and biases."""
    ranks, saved = {module: update.A.shape[0] for module, update in updates.items()}, saved_modules(kept)
    biases = [name for name in kept if module_of(name) not in saved]
    tensors = {**factors, **as_written(kept, ranks)}
    return NewAdapter(tensors, ranks, base, saved, bias=bias_kind(biases, ranks), **options)


def _changed(tuned: StoredModel, origin: StoredModel, request: Request) -> list[Entry]:
    """The tensors that differ. Raises CheckpointError where one of them is not finite."""
    found = []
    with shown(sum(e.nbytes for e in origin.entries.values()), "comparing", quiet=request.quiet) as progress:
        for entry in origin.entries.values():
            theirs, ours = tuned.read(entry.name), origin.read(entry.name)
            if not np.array_equal(theirs, ours):
                _check_finite(tuned, origin, entry, theirs, ours)
                found.append(entry)
            progress.advance(entry.nbytes)
    return found


def _joined(adapters: Sequence[Adapter], weights: Sequence[float], module: str) -> Update:
    own = [(a, w * a.pairs[module].scale) for a, w in zip(adapters, weights, strict=True) if module in a.pairs]
    first = own[0][0]
    shapes = [(a.shape(a.pairs[module].A)[1:], a.shape(a.pairs[module].B)[0], a.pairs[module].embedding) for a, _ in own]
    for (adapter, _), shape in zip(own, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"{module!r} has (in, out) {shapes[0][:2]} in {first.path}, {shape[:2]} in {adapter.path}")
    return joined([adapter.factors(module) for adapter, _ in own], [w for _, w in own])


def _named(adapters: Sequence[Adapter], module: str, update: Update) -> dict[str, np.ndarray]:
    adapter = next(a for a in adapters if module in a.pairs)
    pair, rank = adapter.pairs[module], update.A.shape[0]
    inside = adapter.shape(pair.A)[1:]
    ones = (1,) * (len(inside) - 1)
    return _pair(module, update.A.reshape(rank, *inside), update.B.reshape(-1, rank, *ones), embedding=pair.embedding)


def _extracted(module: str, delta: np.ndarray, request: Request, conv1d: bool) -> tuple[Update, dict[str, np.ndarray]]:
    embedding = delta.ndim == 2 and TABLE.fullmatch(module.rpartition(".")[2]) is not None
    swapped = delta.ndim == 2 and (embedding or (conv1d and module != "lm_head"))
    shape = delta.T.shape if swapped else delta.shape
    matrix = (delta.T if swapped else delta).reshape(shape[0], -1)
    update = extracted(matrix, int(request.rank or 1), request.max_error)
    rank = update.A.shape[0]
    A, B = update.A.reshape(rank, *shape[1:]), update.B.reshape(-1, rank, *(1,) * (len(shape) - 2))
    return update, _pair(module, A, B, embedding=embedding)


def _pair(module: str, A: np.ndarray, B: np.ndarray, *, embedding: bool) -> dict[str, np.ndarray]:
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return {f"{module}.{ends[0]}": A, f"{module}.{ends[1]}": B}


def _check_same(tuned: StoredModel, origin: StoredModel) -> None:
    for name in [*origin.entries, *tuned.entries]:
        got = [m.entries[name].shape if name in m.entries else "no such tensor" for m in (tuned, origin)]
        if got[0] != got[1]:
            raise ValueError(f"{name!r} differs: {got[0]} in {tuned.path}, {got[1]} in {origin.path}")


def _check_finite(tuned: StoredModel, origin: StoredModel, entry: Entry, theirs: np.ndarray, ours: np.ndarray) -> None:
    for model, values in ((tuned, theirs), (origin, ours)):
        if entry.dtype in FLOATS and not np.isfinite(values.astype(np.float32)).all():
            raise CheckpointError(model.path, "has NaN or infinite entries", entry.name)


def _errors(updates: Mapping[str, Update]) -> dict[str, Any]:
    return {module: {"rank": u.A.shape[0], "error": u.error} for module, u in updates.items()}


def _write(request: Request, adapter: NewAdapter) -> None:
    with partial_folder(request.out, force=request.force) as folder:
        write_adapter(folder / "model", adapter)


def _page(updates: Mapping[str, Update], request: Request, more: Sequence[str] = ()) -> str:
    rows = [(module, str(u.A.shape[0]), f"{u.error:.3g}") for module, u in updates.items()]
    lines = columns([("module", "rank", "relative error"), *rows]) if rows else []
    return "\n".join([*lines, *more, f"wrote {request.out}"])
