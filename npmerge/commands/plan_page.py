"""What `npmerge plan` says: a line for the tensors of all layers that are made alike, and every number that counts."""

from collections.abc import Sequence
from typing import Any

from npmerge.checkpoint.stored import StoredModel
from npmerge.commands.prediction import LIBRARIES, Prediction
from npmerge.recipe.layers import place_of
from npmerge.recipe.plan import Plan, Source, Step, Value
from npmerge.reports.numbers import duration, plural, size
from npmerge.reports.progress import peak_memory
from npmerge.reports.text import braced, columns, kind_of, ranges, shape_of

HEADER = ("tensor", "count", "shape", "dtype", "by", "of", "numbers", "")

SPELT = 4
"""Different values over depth that are spelt out with their layers."""

BESIDES = ", and what aligning takes"
"""What is told of a time that aligning comes on top of."""

LISTED = 12
"""Values over depth that are listed where they go up and down; of more the first and the last are told, and the ends."""


def told(plan: Plan, prediction: Prediction, *, verbose: bool = False, alone: bool = True) -> list[str]:
    """What the terminal shows of one document's plan.

    Args:
        plan: of it.
        prediction: of the merge of its tensors.
        verbose: whether each tensor has a line.
        alone: whether that is all there is to do; else networks are aligned or learned first.
    """
    groups: dict[Any, list[Step]] = {}
    for step in plan.steps:
        groups.setdefault(step.name if verbose else _alike(step), []).append(step)
    everywhere = {} if verbose else _everywhere(plan)
    rows = [_row(plan, group, set(everywhere)) for group in groups.values()]
    skipped = [f"left out: {s.name} of {letter(s.model)}: {s.why}" for s in plan.skipped] if verbose else []
    return [
        *columns([_model(plan, k) for k in range(len(plan.models))]),
        *([f"everywhere: {' '.join(f'{name}={value}' for name, value in everywhere.items())}"] if everywhere else []),
        "",
        *columns([HEADER, *rows]),
        "",
        _counts(plan),
        f"{'predicted' if alone else 'predicted for writing'}: {_takes(prediction)}",
        *skipped,
        *(f"warning: {text}" for text in plan.warnings),
    ]


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs; sources and bases are named by their place among the models."""
    return {
        "models": [{"path": m.name, "tensors": len(m.entries), "bytes": _bytes(m)} for m in plan.models],
        "reference": 0,
        "seed": plan.seed,
        "mergekit_semantics": plan.mergekit_semantics,
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "tensors": {step.name: _step(plan, step) for step in plan.steps},
        "left_out": [{"model": s.model, "name": s.name, "why": s.why} for s in plan.skipped],
        "warnings": list(plan.warnings),
    }


def letter(model: int) -> str:
    """What a model is called in the table: a to z, then a1 and so on."""
    return chr(ord("a") + model % 26) + (str(model // 26) if model >= 26 else "")


def coefficients(step: Step) -> tuple[float, ...] | None:
    """What each source, or its task vector after trimming, is multiplied by; None where the values decide it too."""
    weights, scale = step.parameters.get("weight"), step.parameters.get("scale")
    if step.method == "passthrough" and isinstance(scale, tuple):
        return scale
    summed = step.method in ("linear", "task_arithmetic", "dare_linear", "breadcrumbs", "della_linear")
    if not summed or not isinstance(weights, tuple):
        return None
    factor = step.parameters.get("lambda", 1.0)
    assert isinstance(factor, float | int)
    total = sum(weights) if step.parameters.get("normalize") else 1.0
    return tuple(factor * w / total for w in weights) if total else None


def _step(plan: Plan, step: Step) -> dict[str, Any]:
    def source(s: Source) -> dict[str, Any]:
        return {"model": s.model, "name": s.name, "rows_change": s.rows is not None}

    return {
        "action": step.action,
        "method": step.method or None,
        "shape": list(step.shape),
        "dtype": step.dtype,
        "sources": [source(s) for s in step.sources],
        "base": step.base and source(step.base),
        "parameters": dict(step.parameters),
        "coefficients": coefficients(step),
        "depth": step.depth,
        "note": step.note,
        "bytes_in": plan.bytes_read(step),
        "bytes_out": step.entry.nbytes,
    }


def _bytes(model: StoredModel) -> int:
    return sum(entry.nbytes for entry in model.entries.values())


def _alike(step: Step) -> Any:
    """What tensors of different layers must have in common to share a line."""
    sources = tuple(_from(step, s) for s in step.inputs)
    return kind_of(step.name), step.shape, step.dtype, step.action, step.method, sources, step.base is None, step.note


def _from(step: Step, source: Source) -> Any:
    """Which tensor it is as seen from the result: the model, the kind, and how many layers further on."""
    here, there = place_of(step.name), place_of(source.name)
    return source.model, kind_of(source.name), (there.number - here.number if here and there else 0), source.rows is None


def _model(plan: Plan, k: int) -> tuple[str, ...]:
    model = plan.models[k]
    role = "reference" if k == 0 else ""
    return (f"{letter(k)} = {model.name}", plural(len(model.entries), "tensor"), size(_bytes(model)), role)


def _everywhere(plan: Plan) -> dict[str, str]:
    """Parameters that have one value, for all models and in all tensors that are merged."""
    merged = [step for step in plan.steps if step.method]
    found: dict[str, set[str]] = {}
    for step in merged:
        for name, value in step.parameters.items():
            found.setdefault(name, set()).add(_value(value))
    everywhere = (name for name in found if all(name in step.parameters for step in merged))
    single = {name: next(iter(found[name])) for name in everywhere if len(found[name]) == 1}
    return {name: text for name, text in single.items() if "," not in text}


def _row(plan: Plan, group: Sequence[Step], told: set[str]) -> tuple[str, ...]:
    first = group[0]
    names = [step.name for step in group]
    of = ", ".join(_source(group, [step.sources[k] for step in group]) for k in range(len(first.sources)))
    if first.base:
        of += f" - {_source(group, [step.base for step in group if step.base])}"
    by = first.method or first.action
    count, shape = str(len(group)), shape_of(first.shape)
    return (braced(names), count, shape, first.dtype, by, of, _numbers(group, told), _note(first))


def _source(group: Sequence[Step], sources: Sequence[Source]) -> str:
    """The model, with its layers or its tensor where they are not those of the result."""
    letters = letter(sources[0].model) + ("*" if sources[0].rows else "")
    pairs = [(place_of(step.name), place_of(source.name)) for step, source in zip(group, sources, strict=True)]
    if all(step.name == source.name for step, source in zip(group, sources, strict=True)):
        return letters
    if all(here and there and here._replace(number=0) == there._replace(number=0) for here, there in pairs):
        return f"{letters}[{ranges(there.number for _, there in pairs if there)}]"
    return f"{letters}:{braced([source.name for source in sources])}"


def _note(step: Step) -> str:
    rows = [s for s in step.sources if s.rows is not None]
    return "; ".join(filter(None, [step.note, "* rows of tokens are put together" if rows else ""]))


def _numbers(group: Sequence[Step], told: set[str]) -> str:
    """Parameters with their values but those that are told already, and coefficients where they are not the weights."""
    names = [name for name in group[0].parameters if name not in told]
    named: list[tuple[str, list[Value]]] = [(name, [s.parameters[name] for s in group]) for name in names]
    found = [coefficients(step) for step in group]
    given = [step.parameters.get("weight", step.parameters.get("scale")) for step in group]
    known = [c for c in found if c is not None]
    if len(known) == len(group) and any(not _close(c, w) for c, w in zip(known, given, strict=True)):
        named.append(("coefficients", list(known)))
    layers = [place.number if (place := place_of(step.name)) else None for step in group]
    return " ".join(f"{name}={_over_depth(values, layers)}" for name, values in named)


def _close(a: tuple[float, ...], b: Value | None) -> bool:
    return isinstance(b, tuple) and len(a) == len(b) and all(abs(x - y) < 1e-12 for x, y in zip(a, b, strict=True))


def _over_depth(values: Sequence[Value], layers: Sequence[int | None]) -> str:
    """One value, or each with the layers that have it, or the first and the last."""
    where: dict[str, list[int]] = {}
    for value, layer in zip(values, layers, strict=True):
        where.setdefault(_value(value), []).append(layer or 0)
    if len(where) == 1:
        return next(iter(where))
    if len(where) <= SPELT:
        return " ".join(f"{text} ({ranges(numbers)})" for text, numbers in where.items())
    texts = [_value(value) for value in values]
    if _monotone(values):
        return f"{texts[0]} to {texts[-1]} ({len(where)} values)"
    if len(texts) <= LISTED:
        return f"{' '.join(texts)} ({ranges([layer or 0 for layer in layers])})"
    return f"{texts[0]} to {texts[-1]} ({len(where)} values, up and down)"


def _monotone(values: Sequence[Value]) -> bool:
    """Whether values over depth go up only or down only, each number of them."""
    numbers = zip(*(value if isinstance(value, tuple) else (value,) for value in values), strict=False)
    return all(list(column) in (sorted(column), sorted(column, reverse=True)) for column in numbers)


def _value(value: Value) -> str:
    if isinstance(value, tuple):
        texts = [_value(v) for v in value]
        return texts[0] if len(texts) > 1 and len(set(texts)) == 1 else ",".join(texts)
    return str(value).lower() if isinstance(value, bool) else f"{value:.4g}"


def _counts(plan: Plan) -> str:
    actions = [step.action for step in plan.steps]
    return (
        f"{actions.count('merge')} tensors merged, {actions.count('copy')} copied, {len(plan.skipped)} of the inputs left out; "
        f"{size(plan.bytes_in)} read, {size(plan.bytes_out)} written"
    )


def _takes(p: Prediction) -> str:
    time = f"not measured for {', '.join(p.unmeasured)}" if p.seconds is None else f"about {duration(p.seconds)}"
    where = f"on {plural(p.threads, 'thread')}, by a probe of this machine, if the disk keeps up"
    return f"at most about {size(p.memory)} of memory; time: {time} {where}"


def total(p: Prediction, held: int, learning: float | None, *, aligned: bool) -> str:
    """The last line of a document that learns: what all of it takes.

    Args:
        p: of the merge of its tensors.
        held: bytes of learning and judging.
        learning: seconds of both; None where they are not known.
        aligned: whether networks are aligned before, which takes time that nothing here tells.
    """
    memory, seconds = in_all(p, held, learning)
    if seconds is None:
        return f"predicted in all: about {size(memory)} of memory; time: not known"
    besides = BESIDES if aligned else ""
    return f"predicted in all: about {size(memory)} of memory; time: about {duration(seconds)}{besides}"


def in_all(p: Prediction, held: int, learning: float | None) -> tuple[int, float | None]:
    """Bytes and seconds of all of it; no seconds where they are not known. Arguments are those of `total`."""
    known = learning is not None and p.seconds is not None
    return max(peak_memory(), LIBRARIES + held, p.memory), p.seconds + learning if known else None  # type: ignore[operator]
