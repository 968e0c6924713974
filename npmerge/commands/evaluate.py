"""`npmerge evaluate`: accuracy and loss of stored models on examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from alignment.graph import PyTree
from npmerge.checkpoint.adapted import open_reference, paths_of
from npmerge.checkpoint.errors import from_hub
from npmerge.checkpoint.partial import RECORD
from npmerge.checkpoint.tensors import tensors_of
from npmerge.evaluate import Metrics, evaluate
from npmerge.folder.record import hash_of_path, recipe_of_record
from npmerge.learning.architectures import Architecture
from npmerge.learning.chosen import architecture_of
from npmerge.learning.data import Examples, read_examples, without
from npmerge.learning.judged import is_headless
from npmerge.learning.user_code import check_takes
from npmerge.objectives import check_labels
from npmerge.recipe.examples import Data
from npmerge.recipe.named import Named
from npmerge.reports.numbers import nats, plural
from npmerge.reports.tables import json_text
from npmerge.reports.text import columns
from npmerge.version import __version__


@dataclass(frozen=True)
class Request:
    """What is asked of `npmerge evaluate`.

    Attributes:
        models: as recipes name them.
        data: an .npz, a folder of images or text.
        architecture: a name, hf, torch:module:function or module:function; None to tell it by the tensors.
        batch_size: examples at a time.
        as_json: whether it is for programs.
    """

    models: tuple[str, ...]
    data: Path
    architecture: str | None = None
    batch_size: int = 128
    as_json: bool = False


def run_evaluate(request: Request) -> str:
    """A table with a line for each model. Raises ValueError for what cannot be read or does not fit (its path)."""
    if request.batch_size < 1:
        raise ValueError(f"--batch-size must be 1 or more, got {request.batch_size}")
    for path in (path for model in request.models for path in paths_of(model)):
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder{from_hub(path)}")
    rows = {model: _metrics(request, model) for model in request.models}
    known = _made_from(request)
    if request.as_json:
        data = {"path": str(request.data), "hash": hash_of_path(request.data)}
        found = {name: {**row._asdict(), "made_from_data": name in known} for name, row in rows.items()}
        return json_text({"npmerge": __version__, "data": data, "models": found})
    examples = max(row.examples for row in rows.values())
    table = [(name, f"{row.accuracy:.4f}", nats(row.loss)) for name, row in rows.items()]
    lines = columns([("model", "accuracy", "loss (nats)"), *table])
    notes = [f"{name} was made from {request.data}, by its npmerge.json: take other examples for a test" for name in known]
    return "\n".join([*lines, "", f"{plural(examples, 'prediction')} on {request.data}", *notes])


def _made_from(request: Request) -> list[str]:
    """The models whose records have the data among what they were made from."""
    records = {model: path for model in request.models if (path := Path(model) / RECORD).is_file()}
    if not records:
        return []
    data = hash_of_path(request.data)
    return [model for model, path in records.items() if data in _inputs(path).values()]


def _inputs(path: Path) -> Mapping[str, str]:
    """What a record says that a model was made from; nothing where it is none of a merge."""
    try:
        return recipe_of_record(path).provenance.inputs
    except ValueError:
        return {}


def _metrics(request: Request, name: str) -> Metrics:
    model = open_reference(name)
    tensors = tensors_of(model)
    given = None if request.architecture is None else Named(name=request.architecture)
    try:
        network = architecture_of(given, model, tensors)
        examples = read_examples(Data(path=str(request.data)), network.config, model.folder)
        if examples.targets is None:
            raise ValueError(without(str(request.data), "labels"))
        variables = network.variables(tensors)
        check_takes(network, variables, examples)
        if is_headless(network.config):
            shape = jax.eval_shape(network.apply, variables, examples.inputs).shape
            raise ValueError(f"gives features {shape} of no classes or tokens, that labels could judge: give one with a head")
        _check_labelled(examples, network, variables)
        return evaluate(network.apply, variables, examples.batches(request.batch_size))
    except ValueError as error:
        if not str(error).startswith(str(request.data)):
            raise ValueError(f"{name}: {error}") from None
        raise ValueError(f"{error} (for {name})" if len(request.models) > 1 else str(error)) from None


def _check_labelled(examples: Examples, network: Architecture, variables: PyTree) -> None:
    """Raise ValueError for labels that are not one integer for each prediction; the data are named."""
    outputs = jax.eval_shape(network.apply, variables, jax.ShapeDtypeStruct(examples.inputs.shape, examples.inputs.dtype))
    try:
        check_labels(examples.filled, outputs)
    except ValueError as error:
        raise ValueError(f"{examples.name}: {error}") from None
